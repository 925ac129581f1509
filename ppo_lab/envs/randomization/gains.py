"""How stiff and how damped the joints' control is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppo_lab.envs.randomization import term
from ppo_lab.envs.randomization.term import TermConfig

if TYPE_CHECKING:
    from ppo_lab.envs.genesis.robot import JointedRobot


class Term(term.Term[TermConfig]):
    """kp and kd of each joint are drawn apart."""

    unit = "1"
    when = ("build", "reset")
    operations = ("scale",)
    simulator_options = {"batch_dofs_info": True}

    def width(self, robot: JointedRobot) -> int:
        return 2 * robot.num_joints

    def apply(self) -> None:
        kp_factors, kd_factors = self.values.chunk(2, dim=1)
        self.robot.set_gains(kp_factors, kd_factors)
