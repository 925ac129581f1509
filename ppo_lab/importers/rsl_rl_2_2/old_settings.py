"""The settings of an old run, as Genesis' examples wrote them for rsl-rl-lib 2.2.4, as an experiment of today.

`cfgs.pkl` is a list of five dicts. A setting is named by its dict and key: train_cfg.algorithm.gamma. Each is taken
over, dropped for a reason that is stated, or refused by name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from ppo_lab.config import ExperimentConfig, as_text
from ppo_lab.errors import ConfigError
from ppo_lab.runs.config import to_experiment

PARTS = ("env_cfg", "obs_cfg", "reward_cfg", "command_cfg", "train_cfg")
ENV_PARTS = PARTS[:4]

Settings = dict[str, Any]
"""Dotted key -> value."""
Defaults = Callable[[str], DictConfig]
"""Name of an env -> the configuration that today's run of it has without overrides."""


@dataclass(frozen=True)
class OldEnv:
    """What tells an env's example from others, and what its code knew beside its settings."""

    sizes: tuple[int, int]
    """num_obs, num_actions."""
    commands: frozenset[str]
    """The ranges in command_cfg."""
    in_code: Settings
    """Today's key -> the value that the old env's code fixed."""
    without_counterpart: tuple[str, ...]
    """Today's keys that change nothing in the MDP of the example."""
    dropped: dict[str, str]
    """Old key -> why nothing is lost."""


NOT_READ = "the example's env does not read it"
OLD_ENVS = {
    "go2": OldEnv(
        sizes=(45, 12),
        commands=frozenset({"lin_vel_x_range", "lin_vel_y_range", "ang_vel_range"}),
        in_code={
            "env.dt": 0.02,
            "env.substeps": 2,
            "env.simulate_action_latency": True,
            "env.robot.urdf": "urdf/go2/urdf/go2.urdf",
        },
        without_counterpart=("env.performance_mode", "env.max_collision_pairs"),
        dropped={
            "env_cfg.simulate_action_latency": "the example's env does not read it: its actions are always late",
            "reward_cfg.feet_height_target": NOT_READ,
        },
    ),
    "hover": OldEnv(
        sizes=(17, 4),
        commands=frozenset({"pos_x_range", "pos_y_range", "pos_z_range"}),
        in_code={
            "env.dt": 0.01,
            "env.substeps": 2,
            "env.robot.urdf": "urdf/drones/cf2x.urdf",
            "env.robot.hover_rpm": 14468.429183500699,
            "env.action_scale": 0.8,
        },
        without_counterpart=("env.performance_mode",),
        dropped={
            "env_cfg.simulate_action_latency": NOT_READ,
            "env_cfg.resampling_time_s": NOT_READ,
            "env_cfg.visualize_target": "only draws",
            "env_cfg.visualize_camera": "only draws",
            "env_cfg.max_visualize_FPS": "only draws",
        },
    ),
}

ALGORITHM = {
    "num_learning_epochs": 1,
    "num_mini_batches": 1,
    "clip_param": 0.2,
    "gamma": 0.998,
    "lam": 0.95,
    "value_loss_coef": 1.0,
    "entropy_coef": 0.0,
    "learning_rate": 1e-3,
    "max_grad_norm": 1.0,
    "use_clipped_value_loss": True,
    "schedule": "fixed",
    "desired_kl": 0.01,
    "normalize_advantage_per_mini_batch": False,
}
"""The parameters of PPO in rsl-rl-lib 2.2.4, with its defaults, which are not today's."""
POLICY = {
    "actor_hidden_dims": [256, 256, 256],
    "critic_hidden_dims": [256, 256, 256],
    "activation": "elu",
    "init_noise_std": 1.0,
    "noise_std_type": "scalar",
}
"""Those of ActorCritic."""
ALGORITHM_IN_CODE = {"algorithm.optimizer": "adam", "algorithm.use_mixed_precision": False}
CLASSES = {"train_cfg.policy.class_name": "ActorCritic", "train_cfg.algorithm.class_name": "PPO"}
SIZES = ("env_cfg.num_actions", "obs_cfg.num_obs", "command_cfg.num_commands")
TERMS = "reward_cfg.reward_scales."


@dataclass(frozen=True)
class Translation:
    """An old run's settings, sorted."""

    experiment: ExperimentConfig
    dropped: dict[str, dict[str, Any]]
    """Old key -> its value, and why it was dropped."""
    not_recorded: Settings
    """Today's keys of which the old run says nothing -> the value taken."""


class _Sorting:
    """What is still to be sorted, and where the rest went."""

    def __init__(self, old: Settings) -> None:
        self.old = old
        self.new: Settings = {}
        self.dropped: dict[str, dict[str, Any]] = {}

    def of(self, *parts: str) -> list[str]:
        """The old keys under `parts` that are still to be sorted."""
        return [key for key in self.old if key.startswith(tuple(f"{part}." for part in parts))]

    def take(self, key: str, counterpart: str) -> None:
        if key in self.old:
            self.new[counterpart] = self.old.pop(key)

    def drop(self, key: str, why: str) -> None:
        if key in self.old:
            self.dropped[key] = {"value": self.old.pop(key), "why": why}


def translate(cfgs: Any, num_envs: int | None, defaults: Defaults) -> Translation:
    """What the plain data in `cfgs.pkl` says. `num_envs`: of which it says nothing. Raises a ConfigError."""
    settings = _Sorting(_read(cfgs))
    name = _recognise(settings.old)
    composed = defaults(name)
    settings.new |= {"run_name": "imported"} | (
        {} if num_envs is None else {"num_envs": num_envs, "envs_per_scene": num_envs}
    )
    _sort_env(settings, OLD_ENVS[name], _flatten(_plain(composed.env), "env."))
    _sort_training(settings)
    for key, value in settings.old.items():
        raise ConfigError(f"{key}={as_text(value)} has no counterpart in env={name}, so the run cannot be represented.")
    for key, value in settings.new.items():
        OmegaConf.update(composed, key, value, merge=False)
    experiment = to_experiment(composed)
    known = ("env.name", *settings.new)
    today = _flatten(dataclasses.asdict(experiment))
    silent = {key: value for key, value in today.items() if not f"{key}.".startswith(tuple(f"{k}." for k in known))}
    return Translation(experiment, settings.dropped, silent)


def _read(cfgs: Any) -> Settings:
    is_list = isinstance(cfgs, list | tuple) and len(cfgs) == len(PARTS)
    if not is_list or not all(isinstance(part, dict) for part in cfgs):
        raise ConfigError(f"it is not what the examples write. Allowed: a list of five dicts, {', '.join(PARTS)}.")
    old = dict(zip(PARTS, cfgs, strict=True))
    train_cfg = old["train_cfg"]
    if {"obs_groups", "actor"} & set(train_cfg):
        raise ConfigError("train_cfg is of a newer rsl-rl-lib. Allowed: runs of rsl-rl-lib 2.2.4.")
    if not {"num_steps_per_env", "save_interval", "empirical_normalization"} <= set(train_cfg):
        raise ConfigError(
            "train_cfg lacks num_steps_per_env, save_interval or empirical_normalization, without which rsl-rl-lib "
            "2.2.4 does not start. Allowed: runs of that version."
        )
    return _flatten(old)


def _flatten(node: dict[Any, Any], prefix: str = "") -> Settings:
    flat: Settings = {}
    for name, value in node.items():
        if not (isinstance(name, str) and name.isidentifier()):
            raise ConfigError(f"{prefix}{name!r} is not a setting's name. Allowed: letters, digits and underscores.")
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{key}.")
        else:
            flat[key] = _checked(key, value)
    return flat


def _checked(key: str, value: Any) -> Any:
    match value:
        case None | bool() | float() | {}:
            return value
        case int() if abs(value) < 2**63:
            return value
        case str() if value.isprintable() and "${" not in value:  # which OmegaConf would put something in place of
            return value
        case list() | tuple() if not any(isinstance(item, list | tuple | dict) for item in value):
            return [_checked(key, item) for item in value]
    raise ConfigError(f"{key}={value!r:.60} is no setting. Allowed: numbers, words, null, and lists of them.")


def _recognise(old: Settings) -> str:
    """The env, recognised by the sizes of observation and action and by its commands, not by values that one tunes."""
    sizes = (old.get("obs_cfg.num_obs"), old.get("env_cfg.num_actions"))
    commands = {key.removeprefix("command_cfg.") for key in old if re.fullmatch(r"command_cfg\.\w+_range", key)}
    for name, env in OLD_ENVS.items():
        if sizes == env.sizes and commands == env.commands:
            return name
    known = "; ".join(
        f"{name}, with {env.sizes[0]}, {env.sizes[1]} and {', '.join(sorted(env.commands))}"
        for name, env in OLD_ENVS.items()
    )
    raise ConfigError(
        f"the env is none that is known: num_obs={sizes[0]}, num_actions={sizes[1]}, "
        f"commands {', '.join(sorted(commands)) or 'none'}. Allowed: {known}."
    )


def _sort_env(settings: _Sorting, env: OldEnv, today: Settings) -> None:
    """Sorts the four env dicts, whose keys are today's, the robot's among them. `today`: the env's settings."""
    old, new = settings.old, settings.new
    new |= env.in_code
    if settings.of("env_cfg.default_joint_angles"):
        new["env.robot.default_joint_angles"] = _joint_angles(old)
        today = {key: value for key, value in today.items() if not key.startswith("env.robot.default_joint_angles.")}
    expected = set(today) - {"env.name", "env.randomization", *env.in_code, *env.without_counterpart}
    for key in settings.of(*ENV_PARTS):
        name = key.partition(".")[2]
        counterparts = {f"env.{name}", f"env.robot.{name}"} & expected
        if counterparts:
            settings.take(key, counterparts.pop())
        elif key.startswith(TERMS) and old[key] == 0:
            settings.drop(key, "its weight is 0")
    for key, why in ({key: "follows from the env" for key in SIZES} | env.dropped).items():
        settings.drop(key, why)
    for key in sorted(expected - set(new)):
        if not key.startswith("env.reward_scales."):
            name = key.removeprefix("env.").removeprefix("robot.")
            raise ConfigError(f"{name} is missing, without which the example's env does not start.")
        new[key] = 0.0  # the old env pays the terms that are named, and no other


def _joint_angles(old: Settings) -> dict[str, Any]:
    """Today the order of the actions is that of the angles; the examples gave it apart (dof_names until April 2025)."""
    order = old.pop("env_cfg.joint_names", None) or old.pop("env_cfg.dof_names", None)
    prefix = "env_cfg.default_joint_angles."
    angles = {key.removeprefix(prefix): old.pop(key) for key in list(old) if key.startswith(prefix)}
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(angles):
        raise ConfigError("env_cfg.joint_names must name the joints of env_cfg.default_joint_angles, each once.")
    return {joint: angles[joint] for joint in order}


def _sort_training(settings: _Sorting) -> None:
    """Sorts train_cfg; what it left to rsl-rl-lib 2.2.4 gets that version's defaults."""
    old, new = settings.old, settings.new
    for key, allowed in CLASSES.items():
        if old.get(key) != allowed:
            raise ConfigError(f"{key}={as_text(old.get(key))} has no counterpart. Allowed: {allowed}.")
        settings.drop(key, "the only one there is")
    new |= ALGORITHM_IN_CODE
    for name, default in ALGORITHM.items():
        new[f"algorithm.{name}"] = old.pop(f"train_cfg.algorithm.{name}", default)
    policy = {name: old.pop(f"train_cfg.policy.{name}", default) for name, default in POLICY.items()}
    for model in ("actor", "critic"):
        new[f"network.{model}.hidden_dims"] = policy[f"{model}_hidden_dims"]
        new[f"network.{model}.activation"] = policy["activation"]
        new[f"network.{model}.obs_normalization"] = bool(old["train_cfg.empirical_normalization"])
    for name in ("hidden_dims", "activation", "obs_normalization"):
        new[f"network.{name}"] = new[f"network.actor.{name}"]
    del old["train_cfg.empirical_normalization"]
    new["network.actor.init_std"] = policy["init_noise_std"]
    new["network.actor.std_type"] = policy["noise_std_type"]
    for name in ("num_steps_per_env", "save_interval", "seed", "runner.max_iterations"):
        settings.take(f"train_cfg.{name}", name.rpartition(".")[2])
    for key in settings.of("train_cfg"):
        if not key.startswith("train_cfg.algorithm."):  # where 2.2.4 refuses what it does not know
            settings.drop(key, "does not change what rsl-rl-lib 2.2.4 learns")
        elif key.endswith(("rnd_cfg", "symmetry_cfg")) and old[key] is None:
            settings.drop(key, "off")


def _plain(node: Any) -> dict[Any, Any]:
    return cast(dict[Any, Any], OmegaConf.to_container(node, resolve=True))
