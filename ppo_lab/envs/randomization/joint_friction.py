"""Dry friction in the joints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppo_lab.envs.randomization import term
from ppo_lab.envs.randomization.term import TermConfig

if TYPE_CHECKING:
    from ppo_lab.envs.genesis.robot import JointedRobot


class Term(term.Term[TermConfig]):
    """Of each joint apart."""

    unit = "N m"
    when = ("build", "reset")
    operations = ("set",)
    lowest = 0.0
    simulator_options = {"batch_dofs_info": True}

    def width(self, robot: JointedRobot) -> int:
        return robot.num_joints

    def apply(self) -> None:
        self.robot.set_joint_friction(self.values)
