"""Where the motors believe that 0 is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppo_lab.envs.randomization import term
from ppo_lab.envs.randomization.term import TermConfig

if TYPE_CHECKING:
    from torch import Tensor

    from ppo_lab.envs.genesis.robot import JointedRobot


class Term(term.Term[TermConfig]):
    """Added to the target of each joint."""

    unit = "rad"
    when = ("build", "reset")
    operations = ("add",)

    def width(self, robot: JointedRobot) -> int:
        return robot.num_joints

    def on_targets(self, targets: Tensor) -> Tensor:
        return targets + self.values
