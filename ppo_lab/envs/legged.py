"""What the settings of legged robots' envs have in common, and how their observations are made. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ppo_lab.config import EnvConfig, count, setting
from ppo_lab.contracts import Deployment, EnvSpec, ObservationTerm
from ppo_lab.envs.robots import JointedRobotConfig

SPIN = "angular velocity of the base, in its own frame: x forward, y left, z up"
GRAVITY = "direction of gravity, of length 1, in the base's frame: 0 0 -1 where it stands level"
POSITIONS = "positions of the joints, in their order"
VELOCITIES = "velocities of the joints, in their order"
ACTIONS = "the clipped actions given last; 0 before the first"
FOOT_RADIUS_M = 0.02
"""How high the center of a foot of Go2 is that stands on the ground."""


@dataclass
class ObsScales:
    """What each measured quantity is multiplied by in the observation."""

    lin_vel: float = setting()
    ang_vel: float = setting()
    dof_pos: float = setting()
    dof_vel: float = setting()


@dataclass
class LeggedConfig(EnvConfig):
    """Of an env derived from `ppo_lab.envs.genesis.legged.LeggedEnv`. Units are in its YAML, beside the values."""

    can_be_randomized = True

    max_collision_pairs: int = count()
    robot: JointedRobotConfig = setting()
    action_scale: float = setting(above=0)
    simulate_action_latency: bool = setting()

    @property
    def default_pose(self) -> tuple[float, ...]:
        """Of the joints, in the order of the actions, rad."""
        return tuple(self.robot.default_joint_angles.values())

    def legged_spec(
        self, observations: tuple[ObservationTerm, ...], rewards: Sequence[str], privileged: Mapping[str, int]
    ) -> EnvSpec:
        """The spec of an env whose policy sees `observations`, and whose critic sees the `privileged` terms as well.

        `privileged`: term -> width; where there is none, actor and critic share a group.
        """
        joints, policy = tuple(self.robot.default_joint_angles), {term.name: len(term.scale) for term in observations}
        groups = {"policy": policy} | ({"critic": policy | dict(privileged)} if privileged else {})
        deployment = Deployment(
            joints=joints,
            default_pose=self.default_pose,
            kp=self.robot.kp,
            kd=self.robot.kd,
            action_scale=self.action_scale,
            clip_actions=self.clip_actions,
            latency_steps=int(self.simulate_action_latency),
            observations=observations,
        )
        return EnvSpec(groups, joints, tuple(rewards), self.dt, self.max_episode_length, deployment)


def base_terms(scales: ObsScales) -> tuple[ObservationTerm, ...]:
    """What a policy sees of the base."""
    return (
        ObservationTerm("base_ang_vel", "base_ang_vel", "rad/s", SPIN, (scales.ang_vel,) * 3),
        ObservationTerm("projected_gravity", "projected_gravity", "1", GRAVITY, (1.0,) * 3),
    )


def joint_terms(scales: ObsScales, pose: tuple[float, ...]) -> tuple[ObservationTerm, ...]:
    """What a policy sees of the joints, and of its own newest actions."""
    return (
        ObservationTerm("dof_pos", "joint_pos", "rad", POSITIONS, (scales.dof_pos,) * len(pose), pose),
        ObservationTerm("dof_vel", "joint_vel", "rad/s", VELOCITIES, (scales.dof_vel,) * len(pose)),
        ObservationTerm("actions", "actions", "1", ACTIONS, (1.0,) * len(pose), actions_ago=1),
    )
