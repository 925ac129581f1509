"""Pushes: the robot's base suddenly moves otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ppo_lab.config import setting
from ppo_lab.envs.randomization import term

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ppo_lab.config import EnvConfig
    from ppo_lab.envs.genesis.robot import JointedRobot


@dataclass
class Config(term.TermConfig):
    interval_s: list[float] = setting(items=2, above=0)
    """The shortest and the longest time from one push to the next, drawn each time."""


class Term(term.Term[Config]):
    """Added to the horizontal velocity of the base in the world, of which both parts are drawn apart."""

    unit = "m/s"
    when = ("interval",)
    operations = ("add",)

    def __init__(self, cfg: Config, env: EnvConfig, robot: JointedRobot, generator: torch.Generator) -> None:
        super().__init__(cfg, env, robot, generator)
        self._interval_steps = tuple(time_s / env.dt for time_s in cfg.interval_s)
        self.steps_left = self._interval()

    def width(self, robot: JointedRobot) -> int:
        return 2

    def on_step(self) -> None:
        self.steps_left = self.steps_left - 1
        is_due = self.steps_left <= 0
        self.begin(is_due)
        self.robot.push(self.values * is_due.unsqueeze(1))
        self.steps_left = self._interval().where(is_due, self.steps_left)

    def _interval(self) -> Tensor:
        low, high = self._interval_steps
        return (low + (high - low) * self.uniform(self.robot.num_envs)).round()

    @classmethod
    def problems(cls, cfg: Config, env: EnvConfig) -> Iterator[str]:
        yield from super().problems(cfg, env)
        yield from term.unordered("interval_s", cfg.interval_s)
