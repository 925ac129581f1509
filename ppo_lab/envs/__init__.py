"""The envs: the only room that knows the simulator.

An env called NAME is `conf/env/NAME.yaml` and the module `ppo_lab.envs.tasks.NAME`, which defines

    Config                        its settings, a dataclass derived from `ppo_lab.config.EnvConfig`
    make(cfg, num_envs, device)   the env itself, a `VecEnv`

docs/add_an_env.md is a worked example.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Protocol

from ppo_lab.config import EnvConfig
from ppo_lab.envs import tasks

if TYPE_CHECKING:
    import torch
    from tensordict import TensorDict


class VecEnv(Protocol):
    """N envs of one kind, stepped together. N = num_envs, A = num_actions, O = num_obs, K = len(reward_names)."""

    num_envs: int
    num_actions: int
    max_episode_length: int
    device: torch.device
    cfg: EnvConfig
    reward_names: tuple[str, ...]
    episode_length_buf: torch.Tensor
    """(N,) int32. Steps since each env was reset. rsl_rl's runner may set it before the first step."""

    def get_observations(self) -> TensorDict:
        """The newest observations, {"policy": (N, O) float32}. Changes nothing."""
        ...

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Steps every env by `cfg.dt` and resets at once those whose episode ended.

        Args:
            actions: (N, A) float32.

        Returns:
            The observations, of the new episode where one began; the rewards (N,) float32 of the step; the dones
            (N,) bool; and extras: "time_outs" (N,) float32, 1 where the episode ended by its length alone, and
            "episode_sums" (K,) float32, each reward term summed over the episodes that ended in this step, per
            second of a whole episode.

            Every tensor is a fresh one, never written again: the learner keeps references (rsl_rl issue 222).
        """
        ...

    def check(self) -> dict[str, float]:
        """Asked once an iteration. Rows worth logging, none where all went well. Raises a SimulatorError."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything that the coming steps depend on but for the random generators: tensors on the CPU, in dicts."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Puts back what `state` gave, of an env built alike: the coming steps are the same, bit for bit.

        Raises a ValueError that names what does not fit, before anything is changed.
        """
        ...


def names() -> list[str]:
    """The envs there are."""
    return sorted(module.name for module in iter_modules(tasks.__path__))


def config_class(name: str) -> type[EnvConfig]:
    """The settings' class of the env called `name`. Imports neither torch nor the simulator."""
    return import_module(f"ppo_lab.envs.tasks.{name}").Config


def make_env(cfg: EnvConfig, num_envs: int, device: torch.device) -> VecEnv:
    """Builds the env that `cfg` describes on `device`. Start the simulator first: `genesis.base.start_simulator`.

    Raises a ValueError where the env's observations or actions are not of the sizes that its Config says.
    """
    env: VecEnv = import_module(f"ppo_lab.envs.tasks.{cfg.name}").make(cfg, num_envs, device)
    has = {"num_obs": env.get_observations()["policy"].shape[-1], "num_actions": env.num_actions}
    for name, found in has.items():
        said = getattr(cfg, name)
        if found != said:
            raise ValueError(
                f"env {cfg.name} has {name}={found}, and its Config says {said}. Set {name}: ClassVar[int] = {found} "
                f"in Config of ppo_lab.envs.tasks.{cfg.name}, or mend what the env observes."
            )
    return env
