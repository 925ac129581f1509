"""A Crazyflie, a quadrotor, flies to a target and on to the next: its settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ppo_lab.config import EnvConfig, setting
from ppo_lab.contracts import Deployment, EnvSpec, ObservationTerm
from ppo_lab.envs.robots import DroneConfig, with_robot

if TYPE_CHECKING:
    import torch

    from ppo_lab.envs.tasks.hover.env import HoverEnv


TO_TARGET = "the target's position less the drone's, in the world's frame: z up"
ORIENTATION = "orientation of the drone in the world, a quaternion w x y z of length 1"
VELOCITY = "velocity of the drone, in its own frame: z up"
SPIN = "angular velocity of the drone, in its own frame"
ACTIONS = "the clipped actions given before the last ones; 0 before there were any"


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
        observations = self._observations()
        policy = {term.name: len(term.scale) for term in observations}
        rotors = tuple(f"rotor_{number}" for number in range(4))
        deployment = Deployment(
            joints=rotors,
            default_pose=(self.robot.hover_rpm,) * 4,
            kp=None,
            kd=None,
            action_scale=self.action_scale * self.robot.hover_rpm,
            clip_actions=self.clip_actions,
            latency_steps=0,
            unit="rpm",
            observations=observations,
        )
        rewards = tuple(asdict(self.reward_scales))
        return EnvSpec({"policy": policy}, rotors, rewards, self.dt, self.max_episode_length, deployment)

    def _observations(self) -> tuple[ObservationTerm, ...]:
        """As `HoverEnv` observes."""
        scales = self.obs_scales
        return (
            ObservationTerm("rel_pos", "rel_pos", "m", TO_TARGET, (scales.rel_pos,) * 3, clip=1.0),
            ObservationTerm("quat", "quat", "1", ORIENTATION, (1.0,) * 4),
            ObservationTerm("lin_vel", "lin_vel", "m/s", VELOCITY, (scales.lin_vel,) * 3, clip=1.0),
            ObservationTerm("ang_vel", "ang_vel", "rad/s", SPIN, (scales.ang_vel,) * 3, clip=1.0),
            ObservationTerm("last_actions", "actions", "1", ACTIONS, (1.0,) * 4, actions_ago=2),
        )

    def problems(self) -> Iterator[str]:
        yield from self.unordered_ranges("pos_x_range", "pos_y_range", "pos_z_range")
        yield from self.robot.problems()


def make(cfg: Config, num_envs: int, device: torch.device, seed: int) -> HoverEnv:
    """Builds the scene and the env."""
    from ppo_lab.envs.tasks.hover.env import HoverEnv

    return HoverEnv(cfg, num_envs, device, seed)
