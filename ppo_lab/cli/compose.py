"""From overrides to a composed configuration: the one file that knows the groups and their choices."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ppo_lab import envs
from ppo_lab.cli import argv as command_line
from ppo_lab.cli import automatic
from ppo_lab.cli.argv import Source, parse
from ppo_lab.config import as_text, did_you_mean
from ppo_lab.config.overrides import RUN_DIR, first_line, one_of
from ppo_lab.errors import ConfigError
from ppo_lab.machine import commands
from ppo_lab.runs.config import all_keys, refuse_key

CONF = (commands.CHECKOUT or commands.PACKAGE) / "conf"
TRAIN, ESTIMATE = Source("config"), Source("estimate")
VERSION_BASE = "1.3"
SEARCH_PATH = "hydra.searchpath"

_CFG = ("job", "hydra", "all")
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_COMPLETION = tuple(
    f"{what}={shell}" for what in ("install", "uninstall", "query") for shell in ("bash", "zsh", "fish")
)
QUESTIONS: dict[str, tuple[str, ...]] = {
    **{"--help": (), "-h": (), "--hydra-help": (), "--resolve": ()},
    **{"--cfg": _CFG, "-c": _CFG, "--info": _INFO, "-i": _INFO},
    **{"--shell-completion": _COMPLETION, "-sc": _COMPLETION},
}
"""Options that Hydra answers, without a run -> the arguments of which one must follow."""

OWN = {path.name for path in CONF.iterdir() if path.is_dir()}
"""Our groups, which alone may have groups in them."""


class _SearchPath(SearchPathPlugin):
    """conf/ comes after the folder of --config-dir, and then the conf/ of each package that brings envs."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        known = {str(element.path).removeprefix("file://") for element in search_path.get_path()}
        for folder in (CONF, *envs.conf_folders()):
            if str(folder) not in known:
                search_path.append("ppo-lab", f"file://{folder}")


Plugins.instance().register(_SearchPath)


def is_question(argv: Sequence[str]) -> bool:
    """Whether Hydra answers `argv`, as it does --help."""
    return not QUESTIONS.keys().isdisjoint(argv)


def ask_hydra(argv: Sequence[str], config_name: str) -> None:
    """Lets Hydra answer `argv` on stdout. Raises a ConfigError where it would with a traceback or a page of usage."""
    source = _check_question(argv, config_name)
    OmegaConf.register_new_resolver("groups", lambda _: _list_groups(source), replace=True)

    @hydra.main(version_base=VERSION_BASE, config_path=str(CONF), config_name=config_name)
    def answer(_: DictConfig) -> None:
        """Is not called."""

    sys.argv[1:] = argv
    answer()


def _check_question(argv: Sequence[str], config_name: str) -> Source:
    rest = list(argv)
    if not {"--cfg", "-c", "--help", "-h"}.isdisjoint(rest):
        rest = [argument for argument in rest if argument != "--resolve"]
    option, *more = [argument for argument in rest if argument in QUESTIONS]
    if more or option == "--resolve":
        raise ConfigError(
            f"{' '.join((option, *more))}: one question at a time; --resolve goes with --cfg. Try --help."
        )
    at = rest.index(option)
    if choices := QUESTIONS[option]:
        if rest[at + 1 : at + 2] not in [[choice] for choice in choices]:
            raise ConfigError(f"{option} must be followed by one of {', '.join(choices)}.")
        del rest[at + 1]
    del rest[at]
    overrides, source = command_line.read(rest, config_name)
    compose(overrides, source)
    return source


@contextmanager
def loader(source: Source) -> Iterator[ConfigLoader]:
    """Hydra's loader, which finds what `source` names."""
    with hydra.initialize_config_dir(str(source.folder or CONF), job_name="train", version_base=VERSION_BASE):
        yield GlobalHydra.instance().config_loader()


def compose(overrides: Sequence[str], source: Source = TRAIN) -> DictConfig:
    """Composes the configuration, Hydra's own settings included. Raises a ConfigError."""
    parsed = [parse(override) for override in overrides]
    groups = choices(source, overrides)
    for override in parsed:
        key, chosen = override.key_or_group, override.value()
        if key in groups and not override.is_delete():
            for choice in chosen if isinstance(chosen, list) else [chosen]:
                if isinstance(choice, str) and choice not in groups[key]:
                    _refuse_choice(key, choice, groups[key])
    with loader(source), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a folder of hydra.searchpath that is not there, which `choices` refused
        try:
            cfg = hydra.compose(source.name, list(overrides), return_hydra_config=True)
        except Exception as error:  # Hydra has its own, and lets AssertionError and ValueError out as well
            chosen = [text for text, override in zip(overrides, parsed, strict=True) if override.key_or_group in groups]
            known: set[str] = set()
            with suppress(Exception):  # of a primary configuration that is wrong in itself
                known = all_keys(hydra.compose(source.name, chosen))
            for override in parsed:
                key, value = override.key_or_group, override.value()
                if key in groups and not isinstance(value, str):
                    _refuse_choice(key, value, groups[key])
                if known and key not in known and key not in groups and not key.startswith("hydra"):
                    refuse_key(key, known | groups.keys())
            shown = " ".join(map(as_text, overrides))
            raise ConfigError(f"cannot apply {shown}: {first_line(error)}") from None
    automatic.resolve(cfg)
    return cfg


def folder_of(cfg: DictConfig, key: str = RUN_DIR) -> Path:
    """Where the composed `cfg` wants its run, or with SWEEP_DIR its sweep. Raises a ConfigError."""
    try:
        folder = str(OmegaConf.select(cfg, key.rstrip("=")))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key[:-1]} has no value: {first_line(error)}. Try {key}FOLDER.") from None
    if not folder.isprintable() or "\\" in folder or "${" in folder:  # Hydra reads it once more
        raise ConfigError(f"{key}{as_text(folder)}: allowed are printable characters but for backslashes and ${{.")
    return Path(os.path.normpath(folder))  # or a/../b would make a


def choices(source: Source, overrides: Sequence[str] = ()) -> dict[str, list[str]]:
    """Group -> its choices, wherever they are looked for. Raises a ConfigError where `source` is not there."""
    search = [text for text in overrides if text.startswith(f"{SEARCH_PATH}=")]
    return _choices(source, tuple(search[:1]))


@cache
def _choices(source: Source, search: tuple[str, ...]) -> dict[str, list[str]]:
    primary = source.name if source.options or search else None  # may have a hydra.searchpath; ours has none
    with loader(source) as found, warnings.catch_warnings():
        warnings.simplefilter("error")

        def options(group: str, kind: ObjectType) -> list[str]:
            return found.get_group_options(group, kind, primary, list(search))

        def of(group: str) -> list[str]:
            """No deeper than a group in a group: a folder that is given may be the whole disk, or lead to itself."""
            parts = [] if "/" in group else options(group, ObjectType.GROUP)
            below = [f"{part}/{name}" for part in parts for name in of(f"{group}/{part}")] if group in OWN else []
            return [*options(group, ObjectType.CONFIG), *below]

        try:
            groups = options("", ObjectType.GROUP)
        except Exception as error:  # also a warning of a folder that is not there
            given = " ".join((*source.options, *search)) or source.name
            raise ConfigError(f"{as_text(given)}: {first_line(error)}") from None
        folder, _, name = source.name.rpartition("/")
        there = [option for option in options(folder, ObjectType.CONFIG) if not option.startswith("_")]
        if name not in there:
            hint = did_you_mean(name, there)
            raise ConfigError(f"--config-name={as_text(source.name)}: there is no such file.{hint} {one_of(there)}")
        hidden = {"hydra", "commands"} | ({"hardware"} if source.name != ESTIMATE.name else set())
        return {group: of(group) for group in groups if group not in hidden and not group.startswith("__")}


def _refuse_choice(group: str, choice: Any, options: list[str]) -> NoReturn:
    hint = did_you_mean(str(choice), options)
    raise ConfigError(f"{group}={as_text(choice)}: there is no such {group}.{hint} {one_of(options)}") from None


def _list_groups(source: Source) -> str:
    """For --help: the groups and their choices."""
    return "\n".join(f"  {group}: {', '.join(options)}" for group, options in sorted(choices(source).items()))
