"""How slippery the contact between robot and ground is."""

from ppo_lab.envs.randomization import term
from ppo_lab.envs.randomization.term import TermConfig


class Term(term.Term[TermConfig]):
    """The coefficient of friction of every contact. Of two bodies Genesis takes the larger one: both get the same."""

    unit = "1"
    when = ("build", "reset")
    operations = ("set",)
    lowest = 0.01

    @property
    def neutral(self) -> float:
        return self.robot.nominal_friction

    def apply(self) -> None:
        self.robot.set_friction(self.values)
