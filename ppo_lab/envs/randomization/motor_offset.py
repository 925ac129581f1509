"""Where the motors believe that 0 is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppo_lab.envs.randomization import term
from ppo_lab.envs.randomization.term import TermConfig

if TYPE_CHECKING:
    from torch import Tensor


class Term(term.JointTerm[TermConfig]):
    """Added to the target of each joint."""

    unit = "rad"
    when = ("build", "reset")
    operations = ("add",)

    def on_targets(self, targets: Tensor) -> Tensor:
        return targets + self.values
