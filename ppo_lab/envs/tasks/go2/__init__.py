"""A legged robot, by default Unitree Go2, walks at a commanded velocity: its settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ppo_lab.config import EnvConfig, count, setting
from ppo_lab.contracts import Deployment, EnvSpec, ObservationTerm
from ppo_lab.envs.robots import JointedRobotConfig, with_robot

if TYPE_CHECKING:
    import torch

    from ppo_lab.envs.tasks.go2.env import Go2Env


SPIN = "angular velocity of the base, in its own frame: x forward, y left, z up"
GRAVITY = "direction of gravity, of length 1, in the base's frame: 0 0 -1 where it stands level"
COMMANDS = "velocity wanted of the base, in its own frame: forward, left, yaw rate"
POSITIONS = "positions of the joints, in their order"
VELOCITIES = "velocities of the joints, in their order"
ACTIONS = "the clipped actions given last; 0 before the first"


@dataclass
class ObsScales:
    """What each measured quantity is multiplied by in the observation."""

    lin_vel: float = setting()
    ang_vel: float = setting()
    dof_pos: float = setting()
    dof_vel: float = setting()


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
class Config(EnvConfig):
    """Units are in conf/env/go2.yaml, beside the values."""

    can_be_randomized = True

    max_collision_pairs: int = count()
    robot: JointedRobotConfig = setting()
    action_scale: float = setting(above=0)
    simulate_action_latency: bool = setting()
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

    def spec(self) -> EnvSpec:
        joints, pose = tuple(self.robot.default_joint_angles), tuple(self.robot.default_joint_angles.values())
        observations = self._observations(pose)
        policy = {term.name: len(term.scale) for term in observations}
        deployment = Deployment(
            joints=joints,
            default_pose=pose,
            kp=self.robot.kp,
            kd=self.robot.kd,
            action_scale=self.action_scale,
            clip_actions=self.clip_actions,
            latency_steps=int(self.simulate_action_latency),
            observations=observations,
        )
        rewards = tuple(asdict(self.reward_scales))
        return EnvSpec({"policy": policy}, joints, rewards, self.dt, self.max_episode_length, deployment)

    def _observations(self, pose: tuple[float, ...]) -> tuple[ObservationTerm, ...]:
        """As `Go2Env` observes."""
        scales, joints = self.obs_scales, len(pose)
        commands = (scales.lin_vel, scales.lin_vel, scales.ang_vel)
        return (
            ObservationTerm("base_ang_vel", "base_ang_vel", "rad/s", SPIN, (scales.ang_vel,) * 3),
            ObservationTerm("projected_gravity", "projected_gravity", "1", GRAVITY, (1.0,) * 3),
            ObservationTerm("commands", "commands", "m/s, m/s, rad/s", COMMANDS, commands),
            ObservationTerm("dof_pos", "joint_pos", "rad", POSITIONS, (scales.dof_pos,) * joints, pose),
            ObservationTerm("dof_vel", "joint_vel", "rad/s", VELOCITIES, (scales.dof_vel,) * joints),
            ObservationTerm("actions", "actions", "1", ACTIONS, (1.0,) * joints, actions_ago=1),
        )

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
