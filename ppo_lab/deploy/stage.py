"""Envs in which a policy is looked at: built, and refused where they lack what looking at them needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ppo_lab.contracts import Looks
from ppo_lab.envs import make_env
from ppo_lab.errors import ConfigError
from ppo_lab.machine import loading

if TYPE_CHECKING:
    import torch

    from ppo_lab.config import EnvConfig
    from ppo_lab.contracts import FilmedEnv, VisibleEnv, WatchedEnv

ANY = "An env that is derived from ppo_lab.envs.batched.BatchedEnv"
SIMULATED = "An env on the simulator, derived from ppo_lab.envs.genesis.env.GenesisEnv,"


def watched_env(cfg: EnvConfig, num_envs: int, device: torch.device, seed: int) -> WatchedEnv:
    """Just reset. Raises a ConfigError where it cannot be looked into."""
    env: WatchedEnv = _built(cfg, num_envs, device, seed, None, ["watch"], f"evaluated: it has no method watch. {ANY}")
    return env


def visible_env(cfg: EnvConfig, device: torch.device, seed: int) -> VisibleEnv:
    """One env, just reset. Raises a ConfigError where it cannot be drawn."""
    why = f"viewed: it has no method shapes. {SIMULATED}"
    env: VisibleEnv = _built(cfg, 1, device, seed, Looks(), ["shapes"], why)
    return env


def filmed_env(cfg: EnvConfig, device: torch.device, seed: int, looks: Looks) -> FilmedEnv:
    """One env, just reset, with a camera. Raises a ConfigError where it cannot be filmed."""
    why = f"filmed: it has no method picture. {SIMULATED}"
    env: FilmedEnv = _built(cfg, 1, device, seed, looks, ["watch", "picture"], why)
    return env


def _built(
    cfg: EnvConfig,
    num_envs: int,
    device: torch.device,
    seed: int,
    looks: Looks | None,
    methods: list[str],
    why_not: str,
) -> Any:
    env = make_env(cfg, num_envs, device, seed, looks)
    loading.end()
    if not all(hasattr(env, method) for method in methods):
        raise ConfigError(f"the env {cfg.name} cannot be {why_not} has it.")
    return env
