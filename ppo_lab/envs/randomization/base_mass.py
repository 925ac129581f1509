"""What the robot carries: the mass of its base."""

from ppo_lab.envs.randomization import term
from ppo_lab.envs.randomization.term import TermConfig, changed


class Term(term.Term[TermConfig]):
    """Its inertia stays as it is."""

    unit = "kg"
    when = ("build",)
    operations = ("add", "scale")
    simulator_options = {"batch_links_info": True}

    def apply(self) -> None:
        self.robot.set_base_mass(changed(self.robot.base_mass, self.cfg.operation, self.values))
