"""The inertia of the motors' rotors, as the joints feel it."""

from ppo_lab.envs.randomization import term
from ppo_lab.envs.randomization.term import TermConfig, changed


class Term(term.JointTerm[TermConfig]):
    """Of each joint apart."""

    unit = "kg m^2"
    when = ("build",)
    operations = ("set", "add", "scale")
    lowest = 0.0
    has_neutral = False
    simulator_options = {"batch_dofs_info": True}

    def apply(self) -> None:
        self.robot.set_armature(changed(self.robot.nominal_armature, self.cfg.operation, self.values))
