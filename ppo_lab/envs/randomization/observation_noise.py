"""What the policy sees is not quite what is."""

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
    amplitudes: dict[str, float] = setting(at_least=0)
    """Term of the observation -> what the range is multiplied by, in the unit of the quantity before it is scaled."""


class Term(term.Term[Config]):
    """Added to terms of the group "policy", to each number apart. The group "critic" sees what is."""

    unit = "1"
    when = ("step",)
    operations = ("add",)

    def __init__(self, cfg: Config, env: EnvConfig, robot: JointedRobot, generator: torch.Generator) -> None:
        super().__init__(cfg, env, robot, generator)
        scales = _scales(env)
        self._amplitudes = tuple(
            (name, robot.tensor([amplitude * scale for scale in scales[name]]))
            for name, amplitude in cfg.amplitudes.items()
        )

    def width(self, robot: JointedRobot) -> int:
        return 0

    def on_observations(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        noisy = {
            name: terms[name] + self.new_values(*terms[name].shape) * amplitude for name, amplitude in self._amplitudes
        }
        return terms | noisy

    @classmethod
    def problems(cls, cfg: Config, env: EnvConfig) -> Iterator[str]:
        yield from super().problems(cfg, env)
        scales = _scales(env)
        for name in cfg.amplitudes:
            if name not in scales:
                hint = did_you_mean(name, scales)
                yield f"amplitudes.{as_text(name)} is no term of the observation.{hint} Allowed: {', '.join(scales)}."


def _scales(env: EnvConfig) -> dict[str, tuple[float, ...]]:
    """Of each number of each measured term."""
    deployment = env.spec().deployment
    return {term.name: term.scale for term in deployment.observations if not term.actions_ago} if deployment else {}
