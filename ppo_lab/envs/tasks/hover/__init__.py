"""A Crazyflie, a quadrotor, flies to a target and on to the next: its settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ppo_lab.config import EnvConfig, setting
from ppo_lab.contracts import Deployment, EnvSpec
from ppo_lab.envs.robots import DroneConfig, with_robot

if TYPE_CHECKING:
    import torch

    from ppo_lab.envs.tasks.hover.env import HoverEnv


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

    robot: DroneConfig = setting()
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

    @classmethod
    def from_older_version(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return with_robot(settings, DroneConfig, urdf="urdf/drones/cf2x.urdf")

    def spec(self) -> EnvSpec:
        policy = {"rel_pos": 3, "quat": 4, "lin_vel": 3, "ang_vel": 3, "last_actions": 4}
        rotors = tuple(f"rotor_{number}" for number in range(4))
        deployment = Deployment(
            joints=rotors,
            default_pose=(),
            kp=None,
            kd=None,
            action_scale=self.action_scale,
            clip_actions=self.clip_actions,
            latency_steps=0,
        )
        rewards = tuple(asdict(self.reward_scales))
        return EnvSpec({"policy": policy}, rotors, rewards, self.dt, self.max_episode_length, deployment)

    def problems(self) -> Iterator[str]:
        yield from self.unordered_ranges("pos_x_range", "pos_y_range", "pos_z_range")
        yield from self.robot.problems()


def make(cfg: Config, num_envs: int, device: torch.device, seed: int) -> HoverEnv:
    """Builds the scene and the env."""
    from ppo_lab.envs.tasks.hover.env import HoverEnv

    return HoverEnv(cfg, num_envs, device, seed)
