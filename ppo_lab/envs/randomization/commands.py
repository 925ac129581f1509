"""What the policy is told to do: other commands than those of the env."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ppo_lab.config import as_text, did_you_mean, setting
from ppo_lab.envs.randomization import term

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ppo_lab.config import EnvConfig
    from ppo_lab.envs.genesis.robot import JointedRobot


@dataclass
class Config(term.TermConfig):
    range: list[float] = setting(items=2, default_factory=lambda: [0.0, 1.0])
    """0 is `low`, 1 is `high`."""
    low: dict[str, float] = setting()
    """Command -> the lowest, in its unit. A command that is not named stays as the env has drawn it."""
    high: dict[str, float] = setting()
    """Of the same commands."""


class Term(term.Term[Config]):
    """Drawn anew where the env draws its commands: at the start of an episode, and every `env.resampling_time_s`."""

    unit = "1"
    when = ("interval",)
    operations = ("set", "add")

    def __init__(self, cfg: Config, env: EnvConfig, robot: JointedRobot, generator: torch.Generator) -> None:
        self._columns = [list(env.command_ranges).index(name) for name in cfg.low]
        self._bounds = robot.tensor([*cfg.low.values()]), robot.tensor([cfg.high[name] for name in cfg.low])
        super().__init__(cfg, env, robot, generator)

    def width(self, robot: JointedRobot) -> int:
        return 0

    def on_commands(self, commands: Tensor) -> Tensor:
        low, high = self._bounds
        drawn = low + (high - low) * self.draw(len(commands), len(self._columns))
        told = commands.clone()
        chosen = slice(self.num_changed), self._columns
        told[chosen] = term.changed(told[chosen], self.cfg.operation, drawn[: self.num_changed])
        return told

    @classmethod
    def on_ranges(cls, cfg: Config, ranges: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        widened = dict(ranges)
        for name in cfg.low:
            low, high = cfg.low[name], cfg.high[name]
            if cfg.operation == "add":
                low, high = ranges[name][0] + low, ranges[name][1] + high
            widened[name] = (low, high) if cfg.share == 1 else (min(low, ranges[name][0]), max(high, ranges[name][1]))
        return widened

    @classmethod
    def problems(cls, cfg: Config, env: EnvConfig) -> Iterator[str]:
        yield from super().problems(cfg, env)
        allowed = ", ".join(env.command_ranges) or f"none, the env {env.name} has no commands"
        if not cfg.low:
            yield f"low={{}} names no command. Allowed: {allowed}."
        for name in cfg.low:
            if name not in env.command_ranges:
                hint = did_you_mean(name, env.command_ranges)
                yield f"low.{as_text(name)} is no command.{hint} Allowed: {allowed}."
        if cfg.low.keys() != cfg.high.keys():
            yield f"high names {', '.join(cfg.high) or 'none'}, and low {', '.join(cfg.low)}. Name the same commands."
        else:
            for name, low in cfg.low.items():
                if low > cfg.high[name]:
                    yield f"low.{name}={low} is above high.{name}={cfg.high[name]}. Exchange them."
