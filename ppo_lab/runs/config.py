"""config.yaml and JSON, in and out: from plain keys and values to a checked ExperimentConfig."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ppo_lab import envs
from ppo_lab.config import ExperimentConfig, as_text, check, did_you_mean
from ppo_lab.config.overrides import first_line, leaves, one_of
from ppo_lab.envs import randomization
from ppo_lab.errors import ConfigError

MAX_CONFIG_BYTES = 64 * 1024
MAX_CONFIG_DEPTH = 16
"""Of a config.yaml. Ours have 4 KiB, and mappings in mappings in one."""

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Makes plain values alone; ten times as fast where libyaml is there."""

AS_WRITTEN = "Allowed: a config.yaml as train.py writes it."

START_KEYS = ("hydra", "sweep", "resume", "reproduce")
"""Keys that say how a run starts, and are no settings of it."""

LABELS = ("quiet", "run_name")
"""Settings that change nothing of what a run does; one that repeats a run may have others."""

ON_REQUEST = ("max_iterations", "device")
"""Settings that a run may go on with changed where it is named; resume=auto takes a run that has the same."""

MAY_CHANGE = (*ON_REQUEST, "save_interval", "evaluate_every", "checkpoint", "memory", "quiet")
"""Settings that a run may go on with changed: none of them touches what is learned, but for another kind of device."""


CONSTANT: dict[str, Any] = {"final_coef": None, "from_iteration": 0, "to_iteration": 0}
"""Of a run folder whose config.yaml says nothing of `entropy_schedule`."""
FROM_SCRATCH: dict[str, Any] = {
    "init_from": None,
    "init": {"critic": True, "optimizer": False, "std": True, "kl_coef": 0.0},
}
"""Of a run folder whose config.yaml says nothing of `init_from`, or not all of `init`."""


def to_experiment(cfg: DictConfig) -> ExperimentConfig:
    """The typed and checked experiment of a composed configuration. Raises a ConfigError."""
    cfg = without_start(cfg)
    schema = OmegaConf.structured(ExperimentConfig)
    try:
        name = OmegaConf.select(cfg, "env.name")
    except OmegaConfBaseException as error:
        raise ConfigError(f"env.name has no value: {first_line(error)}. {one_of(envs.names())}") from None
    if name not in envs.names():
        hint = did_you_mean(str(name), envs.names())
        raise ConfigError(f"env.name={as_text(name)} is not an env.{hint} {one_of(envs.names())}{envs.HOW_TO_ADD}")
    schema.env = OmegaConf.structured(envs.config_class(name))
    schema.env.randomization = _schema_of_terms(OmegaConf.select(cfg, "env.randomization"))
    experiment: ExperimentConfig = to_settings(cfg, schema)
    for problem in randomization.problems(experiment.env):
        raise ConfigError(problem)
    return experiment


def _schema_of_terms(terms: Any) -> dict[str, Any]:
    if terms is not None and not isinstance(terms, DictConfig):
        raise ConfigError(f"env.randomization={as_text(terms)} is of the wrong kind. Allowed: terms with settings.")
    schemas = {}
    for name, term in (terms or {}).items():
        if name not in randomization.names():
            raise ConfigError(f"env.randomization.{randomization.unknown(str(name))}.")
        if not isinstance(term, DictConfig):
            raise ConfigError(f"env.randomization.{name}={as_text(term)} is of the wrong kind. Allowed: settings.")
        schemas[name] = OmegaConf.structured(randomization.config_class(name))
    return schemas


def from_older_version(content: dict[Any, Any]) -> dict[Any, Any]:
    """The settings that an older version may have written into a run folder, as they are now."""
    num_envs = content.get("num_envs")
    content = {"processes": 1, "envs_per_scene": num_envs} | content  # before 2026-11-26 there was one of each
    content = FROM_SCRATCH | {"evaluate_every": None, "entropy_schedule": CONSTANT} | content
    if isinstance(content["init"], dict):
        content["init"] = FROM_SCRATCH["init"] | content["init"]
    env = content.get("env")
    if not isinstance(env, dict) or env.get("name") not in envs.names():
        return content
    return content | {"env": {"randomization": {}} | envs.config_class(env["name"]).from_older_version(env)}


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
        return from_plain(read_plain(path))
    except ConfigError as error:
        raise ConfigError(f"{as_text(path)}: {error}") from None


def from_plain(content: dict[str, Any]) -> ExperimentConfig:
    """The experiment that an older version may have written, of which nothing is looked up. Raises a ConfigError."""
    try:
        _refuse_lookups(content)
        cfg = DictConfig(from_older_version(content))
    except (OmegaConfBaseException, ValueError, RecursionError) as error:
        raise ConfigError(f"is not plain YAML: {first_line(error)}. {AS_WRITTEN}") from None
    return to_experiment(cfg)


def read_plain(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file that anyone may have written. Raises a ConfigError."""
    try:
        if not path.is_file():
            raise ConfigError(f"is missing, or no file. {AS_WRITTEN}")
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            raise ConfigError(f"the file is larger than {MAX_CONFIG_BYTES // 1024} KiB. {AS_WRITTEN}")
        depth = 0
        for event in yaml.parse(text, LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > MAX_CONFIG_DEPTH:
                raise ConfigError(f"the file has aliases (*name) or is nested too deeply. {AS_WRITTEN}")
        content = LOADER(text).get_single_data()
        if not isinstance(content, dict):
            raise ConfigError(f"the file does not hold keys with values. {AS_WRITTEN}")
        _refuse_lookups(content)
        return content
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}. {AS_WRITTEN}") from None
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"is not plain YAML: {first_line(error)}. {AS_WRITTEN}") from None


def _refuse_lookups(content: dict[Any, Any]) -> None:
    for key, value in leaves(content):
        if isinstance(value, str) and "${" in value:
            raise ConfigError(f"{key}={as_text(value)} would be looked up. Allowed: plain values.")


def refuse_key(key: str, known: set[str]) -> NoReturn:
    if key.partition(".")[0] == "hardware":
        raise ConfigError(f"{as_text(key)} is for estimate.py, which takes it beside these overrides. Leave it out.")
    if randomization.is_setting(key):
        raise ConfigError(f"{key} is not among this experiment's settings. Add it: +{key}=...") from None
    hint = f" Did you mean env.{key}?" if f"env.{key}" in known else did_you_mean(key, known)
    raise ConfigError(f"unknown key {as_text(key)}.{hint} Allowed: the keys that --cfg job prints.") from None


def _refuse_value(error: OmegaConfBaseException, schema: DictConfig, cfg: DictConfig) -> NoReturn:
    key = re.sub(r"\[\d+\]", "", error.full_key or "")
    kind = _kind_of(key, schema)
    if kind is None:
        refuse_key(key, all_keys(schema))
    got: Any = OmegaConf.to_container(cfg, resolve=False)
    for part in key.split("."):
        got = got[part] if isinstance(got, dict) else got
    raise ConfigError(f"{key}={as_text(got)} is of the wrong kind. Allowed: {kind}.") from None


def _kind_of(key: str, schema: DictConfig) -> str | None:
    """What may stand at `key`, in words; None where the schema has no such key."""
    kind: Any = OmegaConf.get_type(schema)
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if parts[:depth] == ["env", "randomization"]:
            kind = OmegaConf.get_type(schema.env.randomization, part)
        elif (kind, part) == (ExperimentConfig, "env"):
            kind = OmegaConf.get_type(schema.env)
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        elif dataclasses.is_dataclass(kind) and part in typing.get_type_hints(kind):
            kind = typing.get_type_hints(kind)[part]
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


def as_yaml(cfg: ExperimentConfig) -> str:
    """What config.yaml holds; `read_experiment` reads it."""
    return yaml.safe_dump(asdict(cfg), sort_keys=False)


def all_keys(cfg: DictConfig, prefix: str = "") -> set[str]:
    keys = set()
    for name in map(str, cfg):
        key = prefix + name
        keys.add(key)
        node = cfg._get_node(name)
        if isinstance(node, DictConfig) and not node._is_interpolation() and not node._is_missing():
            keys |= all_keys(node, f"{key}.")
    return keys
