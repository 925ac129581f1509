"""From the overrides on the command line to a composed configuration: the only user of Hydra."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ppo_lab import envs
from ppo_lab.config import as_text, did_you_mean
from ppo_lab.config.overrides import RUN_DIR, SWEEP_DIR, first_line, one_of, quoted
from ppo_lab.errors import ConfigError
from ppo_lab.runs.config import all_keys, refuse_key

CONF = Path(__file__).resolve().parents[2] / "conf"


_CFG = ("job", "hydra", "all")


_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


_COMPLETION = tuple(
    f"{what}={shell}" for what in ("install", "uninstall", "query") for shell in ("bash", "zsh", "fish")
)


HYDRA_ANSWERS: dict[str, tuple[str, ...]] = {
    **{"--help": (), "-h": (), "--hydra-help": (), "--version": (), "--resolve": ()},
    **{"--cfg": _CFG, "-c": _CFG, "--info": _INFO, "-i": _INFO},
    **{"--shell-completion": _COMPLETION, "-sc": _COMPLETION},
}
"""Options to which Hydra answers by itself, without a run -> the words of which one must follow."""


PATHS = ("resume", "reproduce", "hydra.run.dir", "hydra.sweep.dir", "sweep.resume", "run", "plot")
"""The settings that are paths, of train.py and of estimate.py."""


def is_for_hydra(argv: list[str]) -> bool:
    """Whether Hydra answers by itself, as to --help."""
    return not HYDRA_ANSWERS.keys().isdisjoint(argv)


def check_question(argv: list[str], config_name: str = "config") -> None:
    """Raises a ConfigError where Hydra would answer `argv` with a traceback, a page of usage, or by unpickling."""
    words = list(argv)
    if not {"--cfg", "-c", "--help", "-h"}.isdisjoint(words):
        words = [word for word in words if word != "--resolve"]
    option, *more = [word for word in words if word in HYDRA_ANSWERS]
    if more or option == "--resolve":
        raise ConfigError(
            f"{' '.join((option, *more))}: one question at a time; --resolve goes with --cfg. Try --help."
        )
    at = words.index(option)
    if choices := HYDRA_ANSWERS[option]:
        if words[at + 1 : at + 2] not in [[choice] for choice in choices]:
            raise ConfigError(f"{option} must be followed by one of {', '.join(choices)}.")
        del words[at + 1]
    del words[at]
    compose(words, config_name)


def is_multirun(word: str) -> bool:
    """Whether `word` asks for a sweep."""
    return word in ("-m", "--multirun")


def compose(words: list[str], config_name: str = "config") -> DictConfig:
    """Composes `conf/<config_name>.yaml` with overrides, Hydra's own settings included. Raises a ConfigError."""
    overrides = [parse(word) for word in words]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return hydra.compose(config_name, words, return_hydra_config=True)
        except Exception as error:  # Hydra has its own, and lets AssertionError and ValueError out as well
            env = [word for word in words if word in {f"env={name}" for name in envs.names()}]
            groups = _groups(config_name)
            known = all_keys(hydra.compose(config_name, env))
            for override in overrides:
                key, value = override.key_or_group, override.value()
                if key in groups and not isinstance(value, str):
                    _refuse_choice(key, value)
                if key not in known and key not in groups and not key.startswith("hydra"):
                    refuse_key(key, known | groups)
            raise ConfigError(f"cannot apply {' '.join(map(as_text, words))}: {first_line(error)}") from None


def folder_of(cfg: DictConfig, word: str = RUN_DIR) -> Path:
    """Where the composed `cfg` wants its run, or with SWEEP_DIR its sweep. Raises a ConfigError."""
    try:
        folder = str(OmegaConf.select(cfg, word.rstrip("=")))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{word[:-1]} has no value: {first_line(error)}. Try {word}FOLDER.") from None
    if not folder.isprintable() or "\\" in folder or "${" in folder:  # Hydra reads it once more
        raise ConfigError(f"{word}{as_text(folder)}: allowed are printable characters but for backslashes and ${{.")
    return Path(os.path.normpath(folder))  # or a/../b would make a


def words_of(argv: Sequence[str]) -> list[str]:
    """What the shell gave, as Hydra is to read it: paths are taken literally, but for ~ that means the home.

    Raises a ConfigError for a setting that reached this program in several words.
    """
    for start, word in enumerate(argv):
        if word.startswith(("-", "~")):
            continue
        following = argv[start + 1] if start + 1 < len(argv) else "="
        if (
            word.partition("=")[0].lstrip("+") in PATHS
            and "=" in word
            and not following.startswith("-")
            and "=" not in following
        ):
            raise ConfigError(f"{as_text(word)} {as_text(following)}: a path with spaces needs quotes around it.")
        if "=" not in word and "=" not in following:
            raise ConfigError(
                f"{as_text(word)} {as_text(following)}: a setting and its value are one word. "
                f"Try {as_text(word)}={as_text(following)}."
            )
        if _is_open(word):
            for stop in range(start + 2, len(argv) + 1):
                if not _is_open(joined := "".join(argv[start:stop])):
                    pieces = as_text(" ".join(argv[start:stop]))
                    raise ConfigError(f"{pieces} came in pieces, as it has spaces. Try {as_text(joined)}.")
    return [_with_literal_path(word) for word in argv]


def _is_open(word: str) -> bool:
    """Whether a list or mapping in it has no end, or another value is to come."""
    return word.count("[") > word.count("]") or word.count("{") > word.count("}") or word.endswith(",")


def _with_literal_path(word: str) -> str:
    key, _, value = word.partition("=")
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if key.lstrip("+") not in PATHS or value in ("", "null", "auto") or is_quoted:
        return word
    return f"{key}={quoted(os.path.expanduser(value))}"  # noqa: PTH111


def parse(word: str, several: bool = False) -> Override:
    """One word of the command line; `several`: it may give several values. Raises a ConfigError."""
    if is_multirun(word):
        raise ConfigError(f"{word} is for sweeps, which train.py alone runs. Leave it out.")
    if word.startswith("-"):
        bare = word.lstrip("-").partition("=")[0]
        shown = as_text(word)
        raise ConfigError(f"unknown option {shown}. Allowed: words of the form key=value. Try {bare}=..., or --help.")
    try:
        word.encode()
        override = OverridesParser.create().parse_override(word)
    except Exception:  # Hydra has its own, and lets those of int() and of deep recursion out as well
        hint = f" Try {as_text(word)}=..." if word and "=" not in word else ""
        raise ConfigError(f"cannot read '{as_text(word)}'. Allowed: words of the form key=value.{hint}") from None
    key = override.key_or_group
    if override.is_sweep_override() and not several:
        raise ConfigError(
            f"{as_text(word)} gives {key} several values. Give one, or a list in brackets: {key}=[...]; "
            "or add -m to train with each."
        )
    if override.package is not None:
        raise ConfigError(f"{as_text(word)} moves {key} to another place. Allowed: {key}=..., without @.")
    if re.split("[./]", key)[0] == "hydra" and not word.startswith((RUN_DIR, SWEEP_DIR)):
        raise ConfigError(f"{as_text(word)}: of Hydra's own settings only the run's folder can be set: {RUN_DIR}...")
    if key in _groups():
        chosen = override.value()
        for choice in chosen if isinstance(chosen, list) else [chosen]:
            if isinstance(choice, str) and choice not in _choices(key) and not override.is_delete():
                _refuse_choice(key, choice)
    return override


def _refuse_choice(group: str, choice: Any) -> NoReturn:
    options = _choices(group)
    hint = did_you_mean(str(choice), options)
    raise ConfigError(f"{group}={as_text(choice)}: there is no such {group}.{hint} {one_of(options)}") from None


def _groups(config_name: str = "estimate") -> set[str]:
    """The groups of that configuration; by default all that there are."""
    others = {"hydra"} if config_name == "estimate" else {"hydra", "hardware"}
    return {path.name for path in CONF.iterdir() if path.is_dir()} - others


def _list_groups(config_name: str) -> str:
    """For --help: the groups and their choices."""
    return "\n".join(f"  {group}: {', '.join(sorted(_choices(group)))}" for group in sorted(_groups(config_name)))


def _choices(group: str) -> list[str]:
    return [path.stem for path in (CONF / group).glob("*.yaml")]
