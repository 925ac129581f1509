"""Where the center of mass of the base is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppo_lab.envs.randomization import term
from ppo_lab.envs.randomization.term import TermConfig

if TYPE_CHECKING:
    from ppo_lab.envs.genesis.robot import JointedRobot


class Term(term.Term[TermConfig]):
    """Forward, left and up are drawn apart."""

    unit = "m"
    when = ("build",)
    operations = ("add",)
    simulator_options = {"batch_links_info": True}

    def width(self, robot: JointedRobot) -> int:
        return 3

    def apply(self) -> None:
        self.robot.set_base_center(self.robot.base_center + self.values)
