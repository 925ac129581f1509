"""How much torque the motors have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppo_lab.envs.randomization import term
from ppo_lab.envs.randomization.term import TermConfig

if TYPE_CHECKING:
    from ppo_lab.envs.genesis.robot import JointedRobot


class Term(term.Term[TermConfig]):
    """The most that each joint's control can exert."""

    unit = "1"
    when = ("build", "reset")
    operations = ("scale",)
    simulator_options = {"batch_dofs_info": True}

    def width(self, robot: JointedRobot) -> int:
        return robot.num_joints

    def apply(self) -> None:
        self.robot.set_torque_limits(self.robot.nominal_torque_limits * self.values)
