"""From the words on the command line to a checked ExperimentConfig, or to one message and an exit code."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
import logging
import os
import re
import signal
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
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ppo_lab import envs, preflight, streams
from ppo_lab.config import ConfigError, ExperimentConfig, as_text, check, did_you_mean

CONF = Path(__file__).resolve().parent.parent / "conf"
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
RUN_DIR = "hydra.run.dir="
SWEEP_DIR = "hydra.sweep.dir="
"""The settings of Hydra's own that are the user's: others write elsewhere, call anything, or change what is shown."""
PATHS = ("resume", "reproduce", "hydra.run.dir", "hydra.sweep.dir", "sweep.resume", "run", "plot")
"""The settings that are paths, of train.py and of estimate.py."""
MAX_CONFIG_BYTES = 64 * 1024
MAX_CONFIG_DEPTH = 16
"""Of a config.yaml. Ours have 4 KiB, and mappings in mappings in one."""


START_KEYS = {"hydra", "sweep", "resume", "reproduce"}


class RunFailedError(RuntimeError):
    """The run ended early; the text says why, and where to look."""


class StoppedError(BaseException):
    """A signal other than Ctrl-C stopped the run. Like KeyboardInterrupt, it is no Exception, which means a failure."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(received.name)
        self.exit_code = STOPS[received]


class NothingToDo(Exception):
    """What was asked for is done already; the text says so."""


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
    HANGUP = 129
    """The same, as the terminal was closed or the connection to it dropped: 128 and the number of SIGHUP."""
    INTERRUPTED = 130
    """The same by Ctrl-C."""


STOPS = {
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGTERM: ExitCode.REQUEUE,
    signal.SIGUSR1: ExitCode.REQUEUE,
    signal.SIGHUP: ExitCode.HANGUP,
}
"""The signals that stop a run after a checkpoint, and the exit codes that say so."""


@contextmanager
def exit_codes() -> Iterator[None]:
    """Ends the process with one message and the exit code that belongs to what went wrong."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets exceptions through
    logging.raiseExceptions = False  # a log that cannot be written ends nothing
    streams.outlive_readers()
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except (ConfigError, preflight.MachineError, HydraException, OmegaConfBaseException) as error:
        _exit(ExitCode.WRONG_INPUT, f"error: {error}")
    except NothingToDo as done:
        _exit(ExitCode.DONE, str(done))
    except KeyboardInterrupt:
        _exit(ExitCode.INTERRUPTED, "interrupted")
    except OverBudgetError as error:
        _exit(ExitCode.OVER_BUDGET, f"error: {error}")
    except StoppedError as stopped:
        _exit(stopped.exit_code, f"stopped: {stopped}")
    except (RunFailedError, NotReproducedError) as error:
        _exit(ExitCode.FAILED, f"error: {error}")
    except OSError as error:
        logging.getLogger(__name__).debug("the run failed", exc_info=True)
        where = f"{error.filename}: " if error.filename else ""
        _exit(ExitCode.FAILED, f"error: {where}{error.strerror or error}")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as a ConfigError."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help.")


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
            known = _keys(hydra.compose(config_name, env))
            for override in overrides:
                key, value = override.key_or_group, override.value()
                if key in groups and not isinstance(value, str):
                    _refuse_choice(key, value)
                if key not in known and key not in groups and not key.startswith("hydra"):
                    _refuse_key(key, known | groups)
            raise ConfigError(f"cannot apply {' '.join(map(as_text, words))}: {_first_line(error)}") from None


def folder_of(cfg: DictConfig, word: str = RUN_DIR) -> Path:
    """Where the composed `cfg` wants its run, or with SWEEP_DIR its sweep. Raises a ConfigError."""
    try:
        folder = str(OmegaConf.select(cfg, word.rstrip("=")))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{word[:-1]} has no value: {_first_line(error)}. Try {word}FOLDER.") from None
    if not folder.isprintable() or "\\" in folder or "${" in folder:  # Hydra reads it once more
        raise ConfigError(f"{word}{as_text(folder)}: allowed are printable characters but for backslashes and ${{.")
    return Path(os.path.normpath(folder))  # or a/../b would make a


def quoted(path: Path | str) -> str:
    """A path as a value for Hydra, which would read commas, brackets and others in it."""
    text = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + found[2].replace("'", r"\'"), str(path))
    return f"'{text}'"


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


def to_experiment(cfg: DictConfig) -> ExperimentConfig:
    """The typed and checked experiment of a composed configuration. Raises a ConfigError."""
    cfg = without_start(cfg)
    schema = OmegaConf.structured(ExperimentConfig)
    try:
        name = OmegaConf.select(cfg, "env.name")
    except OmegaConfBaseException as error:
        raise ConfigError(f"env.name has no value: {_first_line(error)}. {_one_of(envs.names())}") from None
    if name not in envs.names():
        hint = did_you_mean(str(name), envs.names())
        raise ConfigError(f"env.name={as_text(name)} is not an env.{hint} {_one_of(envs.names())}")
    schema.env = OmegaConf.structured(envs.config_class(name))
    return to_settings(cfg, schema)


def without_start(cfg: DictConfig) -> DictConfig:
    """`cfg` without the keys that say how a run starts rather than what it is."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in START_KEYS])


def to_settings(cfg: DictConfig, schema: DictConfig) -> Any:
    """What `cfg` says, as the dataclass that `schema` was made of, checked. Raises a ConfigError."""
    try:
        content = OmegaConf.to_container(cfg, resolve=True)  # the schema does not check what it has to look up
        for key, value in leaves(content):
            if isinstance(value, int) and abs(value) >= 2**63:
                raise ConfigError(f"{key}={as_text(value)} is out of range. Allowed: numbers of 64 bits.")
        merged = OmegaConf.merge(schema, content)
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


def read_experiment(path: Path) -> ExperimentConfig:
    """The experiment in a run folder's config.yaml, from whomever it came: nothing in it is looked up or called.

    Raises:
        ConfigError: the file cannot be read, or is not an experiment of this version.
    """
    try:
        return to_experiment(read_plain(path))
    except ConfigError as error:
        raise ConfigError(f"{as_text(path)}: {error}") from None


def leaves(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Each value in nested dicts and lists, with its dotted key."""
    if isinstance(content, dict | list):
        for part, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from leaves(value, f"{key}.{part}" if key else str(part))
    else:
        yield key, content


def read_plain(path: Path) -> DictConfig:
    """The keys and values of a YAML file that a stranger may have written. Raises a ConfigError."""
    allowed = "Allowed: a config.yaml as train.py writes it."
    try:
        if not path.is_file():
            raise ConfigError(f"is missing, or no file. {allowed}")
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            raise ConfigError(f"the file is larger than {MAX_CONFIG_BYTES // 1024} KiB. {allowed}")
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > MAX_CONFIG_DEPTH:
                raise ConfigError(f"the file has aliases (*name) or is nested too deeply. {allowed}")
        content = yaml.safe_load(text)
        if not isinstance(content, dict):
            raise ConfigError(f"the file does not hold keys with values. {allowed}")
        for key, value in leaves(content):
            if isinstance(value, str) and "${" in value:
                raise ConfigError(f"{key}={as_text(value)} would be looked up. Allowed: plain values.")
        return DictConfig(content)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}. {allowed}") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"is not plain YAML: {_first_line(error)}. {allowed}") from None


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
    raise ConfigError(f"{group}={as_text(choice)}: there is no such {group}.{hint} {_one_of(options)}") from None


def _refuse_key(key: str, known: set[str]) -> NoReturn:
    if key.partition(".")[0] == "hardware":
        raise ConfigError(f"{as_text(key)} is for estimate.py, which takes it beside these words. Leave it out.")
    hint = did_you_mean(key, known)
    raise ConfigError(f"unknown key {as_text(key)}.{hint} Allowed: the keys that --cfg job prints.") from None


def _refuse_value(error: OmegaConfBaseException, schema: DictConfig, cfg: DictConfig) -> NoReturn:
    key = re.sub(r"\[\d+\]", "", error.full_key or "")
    kind = _kind_of(key, schema)
    if kind is None:
        _refuse_key(key, _keys(schema))
    got: Any = OmegaConf.to_container(cfg, resolve=False)
    for part in key.split("."):
        got = got[part] if isinstance(got, dict) else got
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
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if type(None) in typing.get_args(kind):
        return f"{words[typing.get_args(kind)[0]]} or null"
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


def _groups(config_name: str = "estimate") -> set[str]:
    """The groups of that configuration; by default all that there are."""
    others = {"hydra"} if config_name == "estimate" else {"hydra", "hardware"}
    return {path.name for path in CONF.iterdir() if path.is_dir()} - others


def _list_groups(config_name: str) -> str:
    """For --help: the groups and their choices."""
    return "\n".join(f"  {group}: {', '.join(sorted(_choices(group)))}" for group in sorted(_groups(config_name)))


OmegaConf.register_new_resolver("groups", _list_groups, replace=True)


def _choices(group: str) -> list[str]:
    return [path.stem for path in (CONF / group).glob("*.yaml")]


def _one_of(options: Sequence[str]) -> str:
    return "Allowed: " + ", ".join(sorted(options)) + "."


def _first_line(error: BaseException) -> str:
    return as_text(str(error).strip().partition("\n")[0])


def _exit(code: ExitCode, message: str) -> NoReturn:
    logging.shutdown()
    print("".join(c if c.isprintable() else " " for c in message.strip()), file=sys.stderr)
    sys.exit(code)
