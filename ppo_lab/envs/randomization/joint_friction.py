"""Dry friction in the joints."""

from ppo_lab.envs.randomization import term
from ppo_lab.envs.randomization.term import TermConfig


class Term(term.JointTerm[TermConfig]):
    """Of each joint apart."""

    unit = "N m"
    when = ("build", "reset")
    operations = ("set",)
    lowest = 0.0
    has_neutral = False
    simulator_options = {"batch_dofs_info": True}

    def apply(self) -> None:
        self.robot.set_joint_friction(self.values)
