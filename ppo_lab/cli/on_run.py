"""Arguments of the commands that take a trained run: `RUN [key=value ...]`, with `env.KEY=VALUE` among them.

A command's settings are a dataclass with types and ranges; `conf/commands/<command>.yaml` has their values, and is what
--help shows.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf

from ppo_lab.cli.compose import CONF
from ppo_lab.config import INT32_MAX, as_text, did_you_mean, setting
from ppo_lab.config.overrides import one_of
from ppo_lab.deploy.trained import Trained
from ppo_lab.errors import ConfigError
from ppo_lab.machine import commands
from ppo_lab.runs.config import to_settings

Settings = TypeVar("Settings")


def checkpoints() -> Any:
    """A field: which checkpoints."""
    return setting(pattern=r"best|last|all|six|\d+(,\d+)*", examples=("best", "last", "all", "six", "100", "0,50,100"))


def checkpoint() -> Any:
    """A field: which one."""
    return setting(pattern=r"best|last|\d+", examples=("best", "last", "100"))


def seed() -> Any:
    return setting(at_least=0, at_most=INT32_MAX)


def device() -> Any:
    return setting(pattern=r"auto|cpu|cuda(:\d+)?", examples=("auto", "cpu", "cuda", "cuda:1"))


def read(argv: list[str], command: str, schema: type[Settings]) -> tuple[Trained, Settings]:
    """The run that `argv` names, with the settings of its env changed as asked, and the command's settings.

    Ends the process where --help is asked. Raises a ConfigError.
    """
    defaults = CONF / "commands" / f"{command}.yaml"
    if not argv or any(argument in ("-h", "--help") for argument in argv):
        print(f"{commands.portable(command)} RUN [key=value ...]\n\n{defaults.read_text()}", end="")
        sys.exit(0 if argv else 2)
    folders = [argument for argument in argv if "=" not in argument or Path(argument).is_dir()]
    if option := next((argument for argument in folders if argument.startswith("-")), None):
        raise ConfigError(f"unknown option {as_text(option)}; settings are written as key=value; see --help.")
    if len(folders) != 1:
        given = "none was given" if not folders else f"got {len(folders)}: {', '.join(map(as_text, folders))}"
        raise ConfigError(f"name one run folder; {given}. {commands.portable('runs')} lists the runs.")
    values = _values([argument for argument in argv if argument not in folders])
    names = [f.name for f in dataclasses.fields(schema)]  # type: ignore[arg-type]
    for key in values:
        if key not in names and not key.startswith("env."):
            hint = did_you_mean(key, names)
            raise ConfigError(f"unknown setting {as_text(key)}.{hint} {one_of([*names, 'env.KEY'])}")
    own = yaml.safe_load(defaults.read_text()) | {key: value for key, value in values.items() if key in names}
    settings = to_settings(DictConfig(own), OmegaConf.structured(schema))
    return Trained.read(Path(folders[0]), {key: value for key, value in values.items() if key not in names}), settings


def _values(arguments: list[str]) -> dict[str, Any]:
    """Settings as typed, with values as YAML has them."""
    found = {}
    for argument in arguments:
        key, _, text = argument.partition("=")
        try:
            found[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(
                f"{as_text(argument)}: the value is no YAML; quote it for the shell: '{key}=...'."
            ) from None
    return found
