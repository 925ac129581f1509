"""Go2 walks at any velocity that is commanded, and lifts its feet: its settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ppo_lab.config import as_text, setting
from ppo_lab.contracts import EnvSpec
from ppo_lab.envs.robots import asset, feet
from ppo_lab.envs.tasks import go2

if TYPE_CHECKING:
    import torch

    from ppo_lab.envs.tasks.go2_walk.env import Go2WalkEnv


@dataclass
class RewardScales(go2.RewardScales):
    """Weights per second."""

    orientation: float = setting()
    ang_vel_xy: float = setting()
    air_time: float = setting()
    foot_clearance: float = setting()
    foot_slip: float = setting()
    hips: float = setting()
    torque: float = setting()


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

    air_time_s: float = setting(above=0)
    foot_clearance: float = setting(above=0)
    curriculum: Curriculum = setting()
    reward_scales: RewardScales = setting()

    def spec(self) -> EnvSpec:
        spec = super().spec()
        policy = spec.observations["policy"]
        privileged = {"base_lin_vel": 3, "base_height": 1, "feet_touch": len(feet(asset(self.robot.urdf)))}
        return spec._replace(observations={"policy": policy, "critic": {**policy, **privileged}})

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        path = asset(self.robot.urdf)
        if path.is_file() and not feet(path):
            yield f"env.robot.urdf={as_text(self.robot.urdf)} names no feet: fixed links that end in foot."


def make(cfg: Config, num_envs: int, device: torch.device, seed: int) -> Go2WalkEnv:
    """Builds the scene and the env."""
    from ppo_lab.envs.tasks.go2_walk.env import Go2WalkEnv

    return Go2WalkEnv(cfg, num_envs, device, seed)
