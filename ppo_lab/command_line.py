"""From the words on the command line to a checked ExperimentConfig, or to one message and an exit code."""

from __future__ import annotations

import dataclasses
import enum
import json
import logging
import os
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import hydra
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ppo_lab import envs, preflight
from ppo_lab.config import ConfigError, ExperimentConfig, as_text, check, did_you_mean

CONF = Path(__file__).resolve().parent.parent / "conf"
HYDRA_ANSWERS = {"--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--info", "-i", "-sc"}
"""Options to which Hydra answers by itself, without a run."""


START_KEYS = {"hydra", "sweep", "resume", "reproduce"}


class RunFailedError(RuntimeError):
    """The run ended early; the text says why, and where to look."""


class StoppedError(RuntimeError):
    """A signal asked the run to stop, which it did after a checkpoint; the text says how to go on."""


class NotReproducedError(RuntimeError):
    """A run was repeated and came out different; the text says where."""


class OverBudgetError(RuntimeError):
    """The run is predicted not to fit; the text says by how much, and what would."""


class ExitCode(enum.IntEnum):
    """How a command ended."""

    DONE = 0
    FAILED = 1
    WRONG_INPUT = 2
    OVER_BUDGET = 3
    REQUEUE = 75
    """Stopped by SIGTERM or SIGUSR1 after a checkpoint; the number is EX_TEMPFAIL of sysexits.h: try again."""
    INTERRUPTED = 130


@contextmanager
def exit_codes() -> Iterator[None]:
    """Ends the process with one message and the exit code that belongs to what went wrong."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets exceptions through
    try:
        yield
    except (ConfigError, preflight.MachineError) as error:
        _exit(ExitCode.WRONG_INPUT, f"error: {error}")
    except KeyboardInterrupt:
        _exit(ExitCode.INTERRUPTED, "interrupted")
    except OverBudgetError as error:
        _exit(ExitCode.OVER_BUDGET, f"error: {error}")
    except StoppedError as error:
        _exit(ExitCode.REQUEUE, f"stopped: {error}")
    except (RunFailedError, NotReproducedError) as error:
        _exit(ExitCode.FAILED, f"error: {error}")


def is_for_hydra(argv: list[str]) -> bool:
    """Whether Hydra answers by itself, as to --help."""
    return bool(HYDRA_ANSWERS.intersection(argv))


def is_multirun(word: str) -> bool:
    """Whether `word` asks for a sweep."""
    return word in ("-m", "--multirun")


def compose(words: list[str], config_name: str = "config") -> DictConfig:
    """Composes `conf/<config_name>.yaml` with overrides, Hydra's own settings included. Raises a ConfigError."""
    overrides = [parse(word) for word in words]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return hydra.compose(config_name, words, return_hydra_config=True)
        except MissingConfigException as error:
            group, _, choice = (error.missing_cfg_file or "").rpartition("/")
            _refuse_choice(group, choice, error.options or [])
        except Exception as error:  # Hydra has its own, and lets AssertionError and ValueError out as well
            env = [word for word in words if word in {f"env={name}" for name in envs.names()}]
            known = _keys(hydra.compose(config_name, env))
            for override in overrides:
                key, value = override.key_or_group, override.value()
                if key in _groups() and not isinstance(value, str):
                    _refuse_choice(key, as_text(value), [path.stem for path in (CONF / key).glob("*.yaml")])
                if key not in known and key not in _groups() and not key.startswith("hydra"):
                    _refuse_key(key, known)
            raise ConfigError(f"cannot apply {' '.join(words)}: {_first_line(error)}") from None


def to_experiment(cfg: DictConfig) -> ExperimentConfig:
    """The typed and checked experiment of a composed configuration. Raises a ConfigError."""
    cfg = without_start(cfg)
    schema = OmegaConf.structured(ExperimentConfig)
    name = OmegaConf.select(cfg, "env.name")
    if name not in envs.names():
        raise ConfigError(
            f"env.name={name} is not an env.{did_you_mean(str(name), envs.names())} " + _one_of(envs.names())
        )
    schema.env = OmegaConf.structured(envs.config_class(name))
    return to_settings(cfg, schema)


def without_start(cfg: DictConfig) -> DictConfig:
    """`cfg` without the keys that say how a run starts rather than what it is."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in START_KEYS])


def read_experiment(path: Path) -> ExperimentConfig:
    """The experiment that a run folder's config.yaml holds, checked anew. Raises a ConfigError."""
    try:
        return to_experiment(DictConfig(yaml.safe_load(path.read_text())))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from None


def to_settings(cfg: DictConfig, schema: DictConfig) -> Any:
    """What `cfg` says, as the dataclass that `schema` was made of, checked. Raises a ConfigError."""
    try:
        merged = OmegaConf.merge(schema, cfg)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"{missing[0]} has no value. Give it one: {missing[0]}=...")
        settings = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        _refuse_value(error, schema, cfg)
    check(settings)
    return settings


def from_json(text: str) -> ExperimentConfig:
    """The experiment that `config.to_json` wrote, checked anew. Raises a ConfigError."""
    return to_experiment(DictConfig(json.loads(text)))


def parse(word: str, several: bool = False) -> Override:
    """One word of the command line; `several`: it may give several values. Raises a ConfigError."""
    if is_multirun(word):
        raise ConfigError(f"{word} is for sweeps, which train.py alone runs. Leave it out.")
    if word.startswith("-"):
        bare = word.lstrip("-").partition("=")[0]
        raise ConfigError(f"unknown option {word}. Allowed: words of the form key=value. Try {bare}=..., or --help.")
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        raise ConfigError(f"cannot read {word!r}. Allowed: words of the form key=value; see --help.") from None
    if override.is_sweep_override() and not several:
        key = override.key_or_group
        raise ConfigError(
            f"{word} gives {key} several values. Give one, or a list in brackets: {key}=[...]; "
            "or add -m to train with each."
        )
    return override


def _refuse_choice(group: str, choice: str, options: Sequence[str]) -> NoReturn:
    hint = did_you_mean(choice, options)
    raise ConfigError(f"{group}={choice}: there is no such {group}.{hint} {_one_of(options)}") from None


def _refuse_key(key: str, known: set[str]) -> NoReturn:
    hint = did_you_mean(key, known | _groups())
    raise ConfigError(f"unknown key {key}.{hint} Allowed: the keys that --cfg job prints.") from None


def _refuse_value(error: OmegaConfBaseException, schema: DictConfig, cfg: DictConfig) -> NoReturn:
    key = re.sub(r"\[\d+\]", "", error.full_key or "")
    kind = _kind_of(key, schema)
    if kind is None:
        _refuse_key(key, _keys(schema))
    got: Any = OmegaConf.to_container(cfg, resolve=False)
    for part in key.split("."):
        got = got[part]
    raise ConfigError(f"{key}={as_text(got)} is of the wrong kind. Allowed: {kind}.") from None


def _kind_of(key: str, schema: DictConfig) -> str | None:
    """What may stand at `key`, in words; None where the schema has no such key."""
    kind: Any = OmegaConf.get_type(schema)
    for part in key.split("."):
        if typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        elif dataclasses.is_dataclass(kind) and part in typing.get_type_hints(kind):
            is_env = (kind, part) == (ExperimentConfig, "env")
            kind = OmegaConf.get_type(schema.env) if is_env else typing.get_type_hints(kind)[part]
        else:
            return None
    if dataclasses.is_dataclass(kind):
        return "a group of settings: " + ", ".join(f.name for f in dataclasses.fields(kind))
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        str | None: "text or null",
        float | None: "a number or null",
    }
    items = {int: "whole numbers", float: "numbers"}
    if typing.get_origin(kind) is list:
        return f"a list of {items[typing.get_args(kind)[0]]}, as in [1,2,3]"
    if typing.get_origin(kind) is dict:
        return f"names with {items[typing.get_args(kind)[1]]}, as in {{a: 1, b: 2}}"
    return words[kind]


def _keys(cfg: DictConfig, prefix: str = "") -> set[str]:
    keys = set()
    for name in map(str, cfg):
        key = prefix + name
        keys.add(key)
        node = cfg._get_node(name)
        if isinstance(node, DictConfig) and not node._is_interpolation() and not node._is_missing():
            keys |= _keys(node, f"{key}.")
    return keys


def _groups() -> set[str]:
    return {path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"}


def _one_of(options: Sequence[str]) -> str:
    return "Allowed: " + ", ".join(sorted(options)) + "."


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _exit(code: ExitCode, message: str) -> NoReturn:
    logging.shutdown()
    print(message, file=sys.stderr)
    sys.exit(code)
