"""A Crazyflie, a quadrotor, flies to a target and on to the next: its settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ppo_lab.config import EnvConfig, setting

if TYPE_CHECKING:
    import torch

    from ppo_lab.envs.hover.env import HoverEnv


@dataclass
class ObsScales:
    """What each measured quantity is multiplied by in the observation, before it is clipped to +-1."""

    rel_pos: float = setting()
    lin_vel: float = setting()
    ang_vel: float = setting()


@dataclass
class RewardScales:
    """Weights per second."""

    target: float = setting()
    smooth: float = setting()
    yaw: float = setting()
    angular: float = setting()
    crash: float = setting()


@dataclass
class Config(EnvConfig):
    """Units are in conf/env/hover.yaml, beside the values."""

    num_obs: ClassVar[int] = 17
    num_actions: ClassVar[int] = 4

    base_init_pos: list[float] = setting(items=3)
    base_init_quat: list[float] = setting(items=4)
    hover_rpm: float = setting(above=0)
    action_scale: float = setting(above=0)
    termination_if_roll_greater_than: float = setting(above=0)
    termination_if_pitch_greater_than: float = setting(above=0)
    termination_if_x_greater_than: float = setting(above=0)
    termination_if_y_greater_than: float = setting(above=0)
    termination_if_z_greater_than: float = setting(above=0)
    termination_if_close_to_ground: float = setting()
    at_target_threshold: float = setting(at_least=0)
    pos_x_range: list[float] = setting(items=2)
    pos_y_range: list[float] = setting(items=2)
    pos_z_range: list[float] = setting(items=2)
    obs_scales: ObsScales = setting()
    yaw_lambda: float = setting(at_most=0)
    reward_scales: RewardScales = setting()

    def problems(self) -> Iterator[str]:
        yield from self.unordered_ranges("pos_x_range", "pos_y_range", "pos_z_range")
        yield from self.not_unit("base_init_quat")


def make(cfg: Config, num_envs: int, device: torch.device) -> HoverEnv:
    """Builds the scene and the env."""
    from ppo_lab.envs.hover.env import HoverEnv

    return HoverEnv(cfg, num_envs, device)
