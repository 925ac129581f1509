"""In which pose an episode begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppo_lab.envs.randomization import term
from ppo_lab.envs.randomization.term import TermConfig

if TYPE_CHECKING:
    from torch import Tensor


class Term(term.JointTerm[TermConfig]):
    """Added to each joint of the default pose."""

    unit = "rad"
    when = ("reset",)
    operations = ("add",)

    def on_start(self, pose: Tensor) -> Tensor:
        return pose + self.values
