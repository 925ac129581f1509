"""The envs. Loads neither torch nor the simulator.

An env called NAME is `conf/env/NAME.yaml` and the module `ppo_lab.envs.tasks.NAME`, which defines

    Config                              its settings, a dataclass derived from `ppo_lab.config.EnvConfig`
    make(cfg, num_envs, device, seed)   the env itself, a `ppo_lab.contracts.Env`

docs/add_an_env.md has worked examples.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from ppo_lab.config import EnvConfig
from ppo_lab.envs import tasks

if TYPE_CHECKING:
    import torch

    from ppo_lab.contracts import Env


def names() -> list[str]:
    """The envs there are."""
    return sorted(module.name for module in iter_modules(tasks.__path__))


def config_class(name: str) -> type[EnvConfig]:
    """The settings' class of the env called `name`. Imports neither torch nor the simulator."""
    return import_module(f"ppo_lab.envs.tasks.{name}").Config


def make_env(cfg: EnvConfig, num_envs: int, device: torch.device, seed: int) -> Env:
    """Builds the env that `cfg` describes on `device`; it draws from a generator of its own, which `seed` begins.

    Raises a ValueError where the env observes or pays something else than its Config's `spec` says.
    """
    return import_module(f"ppo_lab.envs.tasks.{cfg.name}").make(cfg, num_envs, device, seed)
