"""From what the shell gave to overrides in Hydra's grammar, and to the configuration that they are for."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from ppo_lab.config import as_text
from ppo_lab.config.overrides import RUN_DIR, SWEEP_DIR, quoted
from ppo_lab.errors import ConfigError
from ppo_lab.runs import ancestry

PATHS = ("resume", "reproduce", "init_from", "hydra.run.dir", "hydra.sweep.dir", "sweep.resume", "run", "plot")
"""The settings that are paths, of train.py and of estimate.py."""
OPTIONS = {
    "--config-dir": "--config-dir",
    "-cd": "--config-dir",
    "--config-name": "--config-name",
    "-cn": "--config-name",
}
"""Options of Hydra's that take a value -> their long name."""
HYDRA_SETTINGS = "hydra.run.dir, hydra.sweep.dir, hydra.verbose, hydra.job.*, hydra.searchpath"
_SWEEPS = (
    "a sweep runs every combination of the values given after -m, each in a process of its own, on this machine's "
    "devices; sweep.jobs_per_device and the other sweep.* set how (docs/sweeps.md)"
)
_LOGS = "messages go to the console and to train.log; hydra.verbose=true shows more of them, quiet=true fewer"
INSTEAD = {
    "hydra.launcher": _SWEEPS,
    "hydra.sweeper": _SWEEPS,
    "hydra.sweep": "jobs are numbered, and named by what they differ in; hydra.sweep.dir= sets the sweep's folder",
    "hydra.run": "hydra.run.dir=FOLDER sets the run's folder",
    "hydra.mode": "-m makes it a sweep",
    "hydra.job_logging": _LOGS,
    "hydra.hydra_logging": _LOGS,
    "hydra.output_subdir": "what Hydra composed is in .hydra of the run's folder",
    "hydra.job.chdir": "all that a run writes goes to its folder; the commands that it prints are for the current one",
    "hydra.callbacks": "no callbacks are called",
    "hydra.runtime": "Hydra fills it in",
    "hydra.overrides": "Hydra fills it in",
}
"""What cannot be set of Hydra -> what to know or to use instead."""


class Source(NamedTuple):
    """The primary configuration, and where it and the groups are looked for."""

    name: str = "config"
    folder: Path | None = None
    """Of --config-dir: comes before conf/."""
    options: tuple[str, ...] = ()
    """The options that say so, as they are typed."""


class CommandLine(NamedTuple):
    """What follows the program's name, but for -m."""

    overrides: list[str]
    source: Source


def is_multirun(argument: str) -> bool:
    """Whether it asks for a sweep."""
    return argument in ("-m", "--multirun")


def read(argv: Sequence[str], config_name: str = "config") -> CommandLine:
    """Sorts `argv` into overrides and options of Hydra's. `config_name`: where no other is named.

    Raises a ConfigError.
    """
    overrides: list[str] = []
    found: dict[str, str] = {}
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        option, is_joined, value = argument.partition("=")
        if option not in OPTIONS:
            overrides.append(argument)
            continue
        if not is_joined:
            value = rest.pop(0) if rest and not rest[0].startswith("-") else ""
        name = OPTIONS[option]
        if not value or name in found:
            raise ConfigError(f"{option} must be given once, with a value: {name}=...")
        if not value.isprintable():
            raise ConfigError(f"{option}={as_text(value)}: allowed are printable characters.")
        found[name] = value
    folder = None
    if directory := found.get("--config-dir"):
        folder = Path(directory).expanduser().absolute()
        if not folder.is_dir():
            raise ConfigError(f"--config-dir={as_text(directory)}: there is no such folder.")
    options = tuple(f"{name}={value}" for name, value in found.items())
    source = Source(found.get("--config-name", config_name).removesuffix(".yaml"), folder, options)
    return CommandLine(as_overrides(overrides), source)


def as_overrides(arguments: Sequence[str]) -> list[str]:
    """What the shell gave, as Hydra is to read it: paths are taken literally, but for ~, which is the home folder.

    Raises a ConfigError for a setting that the shell took apart.
    """
    for start, argument in enumerate(arguments):
        if argument.startswith(("-", "~")):
            continue
        following = arguments[start + 1] if start + 1 < len(arguments) else "="
        if (
            argument.partition("=")[0].lstrip("+") in PATHS
            and "=" in argument
            and not following.startswith("-")
            and "=" not in following
        ):
            raise ConfigError(f"{as_text(argument)} {as_text(following)}: a path with spaces needs quotes around it.")
        if "=" not in argument and "=" not in following:
            raise ConfigError(
                f"{as_text(argument)} {as_text(following)}: a setting and its value have no space between them. "
                f"Try {as_text(argument)}={as_text(following)}."
            )
        if _is_open(argument):
            for stop in range(start + 2, len(arguments) + 1):
                if not _is_open(joined := "".join(arguments[start:stop])):
                    pieces = as_text(" ".join(arguments[start:stop]))
                    raise ConfigError(f"{pieces} came in pieces, as it has spaces. Try {as_text(joined)}.")
    return [_with_literal_path(argument) for argument in arguments]


def _is_open(argument: str) -> bool:
    """Whether a list or mapping in it has no end, or another value is to come."""
    return (
        argument.count("[") > argument.count("]") or argument.count("{") > argument.count("}") or argument.endswith(",")
    )


def _with_literal_path(argument: str) -> str:
    key, _, value = argument.partition("=")
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if key.lstrip("+") not in PATHS or value in ("", "null", "auto") or is_quoted:
        return argument
    values = ancestry.several(value) if key.lstrip("+") == "init_from" else [value]
    return f"{key}={','.join(v if v == 'null' else quoted(os.path.expanduser(v)) for v in values)}"  # noqa: PTH111


def parse(text: str, several: bool = False) -> Override:
    """One override; `several`: it may give several values. Raises a ConfigError, not yet for what its value is."""
    if is_multirun(text):
        raise ConfigError(f"{text} is for sweeps, which train.py alone runs. Leave it out.")
    shown = as_text(text)
    if text.startswith("-"):
        bare = text.lstrip("-").partition("=")[0]
        raise ConfigError(
            f"unknown option {shown}. Allowed: settings of the form key=value. Try {bare}=..., or --help."
        )
    try:
        text.encode()
        override = OverridesParser.create().parse_override(text)
    except Exception:  # Hydra has its own, and lets those of int() and of deep recursion out as well
        hint = f" Try {shown}=..." if text and "=" not in text else ""
        raise ConfigError(f"cannot read '{shown}'. Allowed: settings of the form key=value.{hint}") from None
    key = override.key_or_group
    if override.is_sweep_override() and not several:
        raise ConfigError(
            f"{shown} gives {key} several values. Give one, or a list in brackets: {key}=[...]; "
            "or add -m to train with each."
        )
    if override.package is not None:
        raise ConfigError(f"{shown} moves {key} to another part of the configuration. Allowed: {key}=..., without @.")
    if re.split("[./]", key)[0] == "hydra":
        _check_hydra_setting(text, key)
    return override


def _check_hydra_setting(text: str, key: str) -> None:
    """Raises a ConfigError where `key` is of Hydra's own settings, and not one that a run can follow."""
    is_folder = text.startswith((RUN_DIR, SWEEP_DIR, "hydra.verbose=", "hydra.searchpath="))
    dotted = key.replace("/", ".")
    hint = next((hint for setting, hint in INSTEAD.items() if f"{dotted}.".startswith(f"{setting}.")), None)
    is_of_job = key.startswith("hydra.job.") and hint is None and not text.startswith("~")
    if not is_folder and not is_of_job:
        why = f"{hint[0].upper()}{hint[1:]}. " if hint else ""
        raise ConfigError(f"{as_text(text)} cannot be set. {why}Allowed of Hydra's own settings: {HYDRA_SETTINGS}.")
