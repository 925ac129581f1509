"""A legged robot, by default Unitree Go2, trots at any velocity that is commanded and lifts its feet: its settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ppo_lab.config import setting
from ppo_lab.contracts import EnvSpec, ObservationTerm
from ppo_lab.envs.robots import asset, feet
from ppo_lab.envs.tasks import go2

if TYPE_CHECKING:
    import torch

    from ppo_lab.envs.tasks.go2_walk.env import Go2WalkEnv

CLOCK = "sine and cosine of the gait's phase, 2 pi t / env.gait.period_s from the start of the episode; 0 0 to stand"


@dataclass
class RewardScales(go2.RewardScales):
    """Weights per second."""

    orientation: float = setting()
    ang_vel_xy: float = setting()
    gait: float = setting()
    swing_height: float = setting()
    foot_slip: float = setting()
    hips: float = setting()
    torque: float = setting()


@dataclass
class Gait:
    """A trot: the front left leg steps together with the rear right one, and the two others half a period later."""

    period_s: float = setting(above=0)
    stance_share: float = setting(above=0, at_most=1)
    """Of the period, in which a foot is to be on the ground."""
    swing_height: float = setting(above=0)
    """The highest that a foot's center is to be in its swing, m."""
    stands_below: float = setting(at_least=0)
    """A command that is slower (norm of m/s, m/s, rad/s) is one to stand."""


@dataclass
class Curriculum:
    """Of the commands, whose ranges grow with success."""

    start: float = setting(above=0, at_most=1)
    """The share of the ranges at first; 1: all of them from the beginning."""
    step: float = setting(at_least=0)
    """What the share grows by in a step in which successful episodes end."""
    success: float = setting(at_least=0, at_most=1)
    """From which share of perfect tracking on an episode is successful."""


@dataclass
class Config(go2.Config):
    """Units are in conf/env/go2_walk.yaml, beside the values."""

    gait: Gait = setting()
    curriculum: Curriculum = setting()
    reward_scales: RewardScales = setting()

    def spec(self) -> EnvSpec:
        """As `Go2WalkEnv` observes."""
        clock = ObservationTerm("gait_clock", "gait_clock", "1", CLOCK, (1.0, 1.0))
        privileged = {"base_lin_vel": 3, "base_height": 1, "feet_touch": len(feet(asset(self.robot.urdf)))}
        return self.legged_spec((*self.observed, clock), list(asdict(self.reward_scales)), privileged)

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.robot.leg_problems()


def make(cfg: Config, num_envs: int, device: torch.device, seed: int) -> Go2WalkEnv:
    """Builds the scene and the env."""
    from ppo_lab.envs.tasks.go2_walk.env import Go2WalkEnv

    return Go2WalkEnv(cfg, num_envs, device, seed)
