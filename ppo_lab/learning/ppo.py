"""rsl_rl's PPO, built from an experiment: networks, rollout storage and optimizer."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from rsl_rl.algorithms import PPO

from ppo_lab.config import ExperimentConfig, ModelConfig

if TYPE_CHECKING:
    from tensordict import TensorDict

    from ppo_lab.contracts import EnvSpec

log = logging.getLogger(__name__)


def build_ppo(cfg: ExperimentConfig, observations: TensorDict) -> PPO:
    """The learner of `cfg` on the device of `observations`, which are those of its env."""
    sizes = SimpleNamespace(num_envs=cfg.num_envs, num_actions=len(cfg.env.spec().actions))  # what PPO reads of an env
    with contextlib.redirect_stdout(_LogLines()):  # rsl_rl prints the networks
        return PPO.construct_algorithm(observations, sizes, rsl_rl_config(cfg), str(observations.device))


def rsl_rl_config(cfg: ExperimentConfig) -> dict[str, Any]:
    """The experiment as rsl_rl 5.5 wants it: plain dicts, every key that `PPO.construct_algorithm` reads."""
    return {
        "num_steps_per_env": cfg.num_steps_per_env,
        "multi_gpu": None,
        "obs_groups": obs_groups(cfg.env.spec()),
        "algorithm": {"class_name": "PPO", **dataclasses.asdict(cfg.algorithm)},
        "actor": actor_config(cfg),
        "critic": _mlp(cfg.network.critic),
    }


def obs_groups(spec: EnvSpec) -> dict[str, list[str]]:
    """Network -> the observation groups that it sees."""
    return {"actor": ["policy"], "critic": [spec.critic_group]}


def actor_config(cfg: ExperimentConfig) -> dict[str, Any]:
    """The actor as rsl_rl's MLPModel takes it."""
    distribution = {
        "class_name": "GaussianDistribution",
        "init_std": cfg.network.actor.init_std,
        "std_type": cfg.network.actor.std_type,
    }
    return _mlp(cfg.network.actor) | {"distribution_cfg": distribution}


def _mlp(cfg: ModelConfig) -> dict[str, Any]:
    return {
        "class_name": "MLPModel",
        "hidden_dims": list(cfg.hidden_dims),
        "activation": cfg.activation,
        "obs_normalization": cfg.obs_normalization,
    }


class _LogLines:
    """A stream whose lines go to the log."""

    def write(self, text: str) -> int:
        for line in filter(None, text.splitlines()):
            log.debug(line)
        return len(text)

    def flush(self) -> None:
        pass
