"""A legged robot, by default Unitree Go2, walks at a commanded velocity: its settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ppo_lab.config import setting
from ppo_lab.contracts import EnvSpec, ObservationTerm
from ppo_lab.envs.legged import LeggedConfig, ObsScales, base_terms, joint_terms
from ppo_lab.envs.robots import JointedRobotConfig, with_robot

if TYPE_CHECKING:
    import torch

    from ppo_lab.envs.tasks.go2.env import Go2Env


COMMANDS = "velocity wanted of the base, in its own frame: forward, left, yaw rate"


@dataclass
class RewardScales:
    """Weights per second."""

    tracking_lin_vel: float = setting()
    tracking_ang_vel: float = setting()
    lin_vel_z: float = setting()
    base_height: float = setting()
    action_rate: float = setting()
    similar_to_default: float = setting()


@dataclass
class Config(LeggedConfig):
    """Units are in conf/env/go2.yaml, beside the values."""

    termination_if_roll_greater_than: float = setting(above=0)
    termination_if_pitch_greater_than: float = setting(above=0)
    resampling_time_s: float = setting(above=0)
    lin_vel_x_range: list[float] = setting(items=2)
    lin_vel_y_range: list[float] = setting(items=2)
    ang_vel_range: list[float] = setting(items=2)
    obs_scales: ObsScales = setting()
    tracking_sigma: float = setting(above=0)
    base_height_target: float = setting(above=0)
    reward_scales: RewardScales = setting()

    @classmethod
    def from_older_version(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return with_robot(settings, JointedRobotConfig, urdf="urdf/go2/urdf/go2.urdf")

    @property
    def command_ranges(self) -> dict[str, list[float]]:
        return {
            "lin_vel_x_m_s": self.lin_vel_x_range,
            "lin_vel_y_m_s": self.lin_vel_y_range,
            "ang_vel_rad_s": self.ang_vel_range,
        }

    @property
    def observed(self) -> tuple[ObservationTerm, ...]:
        """As `Go2Env` observes."""
        scales = self.obs_scales
        told = (scales.lin_vel, scales.lin_vel, scales.ang_vel)
        commands = ObservationTerm("commands", "commands", "m/s, m/s, rad/s", COMMANDS, told)
        return *base_terms(scales), commands, *joint_terms(scales, self.default_pose)

    def spec(self) -> EnvSpec:
        return self.legged_spec(self.observed, list(asdict(self.reward_scales)), privileged={})

    def problems(self) -> Iterator[str]:
        yield from self.unordered_ranges("lin_vel_x_range", "lin_vel_y_range", "ang_vel_range")
        yield from self.robot.problems()
        yield from self.too_long("resampling_time_s")
        if self.resampling_time_s < self.dt:
            yield f"env.resampling_time_s={self.resampling_time_s} is shorter than one step. Try {self.dt} or more."


def make(cfg: Config, num_envs: int, device: torch.device, seed: int) -> Go2Env:
    """Builds the scene and the env."""
    from ppo_lab.envs.tasks.go2.env import Go2Env

    return Go2Env(cfg, num_envs, device, seed)
