"""How much torque the motors have."""

from ppo_lab.envs.randomization import term
from ppo_lab.envs.randomization.term import TermConfig


class Term(term.JointTerm[TermConfig]):
    """The most that each joint's control can exert."""

    unit = "1"
    when = ("build", "reset")
    operations = ("scale",)
    simulator_options = {"batch_dofs_info": True}

    def apply(self) -> None:
        self.robot.set_torque_limits(self.robot.nominal_torque_limits * self.values)
