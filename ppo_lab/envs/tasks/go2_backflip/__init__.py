"""A legged robot, by default Unitree Go2, does a backflip, or two: its settings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ppo_lab.config import as_text, did_you_mean, setting
from ppo_lab.contracts import EnvSpec, ObservationTerm
from ppo_lab.envs.legged import LeggedConfig, ObsScales, base_terms, joint_terms

if TYPE_CHECKING:
    import torch

    from ppo_lab.envs.tasks.go2_backflip.env import Go2BackflipEnv

PHASE = "sine and cosine of f, f/2 and f/4, where f grows from 0 to pi over the episode"


@dataclass
class Windows:
    """When a reward counts: from, to; s after the start of the flip."""

    turn: list[float] = setting(items=2)
    push: list[float] = setting(items=2)
    stand_before: float = setting(at_least=0)
    stand_after: float = setting(at_least=0)


@dataclass
class RewardScales:
    """Weights per second."""

    ang_vel_y: float = setting()
    lin_vel_z: float = setting()
    orientation_control: float = setting()
    height_control: float = setting()
    feet_height: float = setting()
    gravity_y: float = setting()
    ang_vel_z: float = setting()
    actions_symmetry: float = setting()
    feet_distance: float = setting()
    action_rate: float = setting()
    stand: float = setting()
    upright: float = setting()
    low: float = setting()
    trunk_contact: float = setting()
    pose: float = setting()
    still: float = setting()


@dataclass
class RewardRamp:
    """Terms whose weights grow from 0 in the course of a training."""

    terms: list[str] = setting()
    from_step: int = setting(at_least=0)
    """Of each env, counted since the training began."""
    to_step: int = setting(at_least=0)


@dataclass
class Config(LeggedConfig):
    """Units are in conf/env/go2_backflip.yaml, beside the values."""

    flips: int = setting(at_least=1, at_most=2)
    flip_interval_s: float = setting(above=0)
    terminate_on_trunk_contact: bool = setting()
    windows: Windows = setting()
    obs_scales: ObsScales = setting()
    stand_height: float = setting(above=0)
    stance_width: float = setting(above=0)
    reward_ramp: RewardRamp = setting()
    reward_scales: RewardScales = setting()

    @property
    def max_episode_length(self) -> int:
        return math.ceil((self.episode_length_s + (self.flips - 1) * self.flip_interval_s) / self.dt)

    def spec(self) -> EnvSpec:
        """As `Go2BackflipEnv` observes."""
        of_joints = joint_terms(self.obs_scales, self.default_pose)
        last_actions = of_joints[-1]._replace(name="last_actions")
        phase = ObservationTerm("phase", "phase", "1", PHASE, (1.0,) * 6)
        observations = (*base_terms(self.obs_scales), *of_joints, last_actions, phase)
        privileged = {"base_height": 1, "base_lin_vel": 3}
        return self.legged_spec(observations, list(asdict(self.reward_scales)), privileged)

    def problems(self) -> Iterator[str]:
        yield from self.robot.problems()
        yield from self.robot.leg_problems()
        for term in self.reward_ramp.terms:
            if term not in (names := asdict(self.reward_scales)):
                yield f"env.reward_ramp.terms: {as_text(term)} is no reward term.{did_you_mean(term, names)}"


def make(cfg: Config, num_envs: int, device: torch.device, seed: int) -> Go2BackflipEnv:
    """Builds the scene and the env."""
    from ppo_lab.envs.tasks.go2_backflip.env import Go2BackflipEnv

    return Go2BackflipEnv(cfg, num_envs, device, seed)
