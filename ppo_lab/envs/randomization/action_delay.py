"""How much later than it should an action takes effect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ppo_lab.envs.randomization import term
from ppo_lab.envs.randomization.term import TermConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ppo_lab.config import EnvConfig
    from ppo_lab.envs.genesis.robot import JointedRobot


class Term(term.Term[TermConfig]):
    """Whole control steps, on top of the env's own latency. Until the first action arrives, the robot is told 0."""

    unit = "steps"
    when = ("build", "reset")
    operations = ("add",)
    lowest = 0.0

    def __init__(self, cfg: TermConfig, env: EnvConfig, robot: JointedRobot, generator: torch.Generator) -> None:
        super().__init__(cfg, env, robot, generator)
        longest = int(cfg.range[1])
        self.newest = self.values.new_zeros(longest + 1, robot.num_envs, robot.num_joints)  # actions, the newest first

    def draw(self, *shape: int) -> Tensor:
        low, high = self.cfg.range
        return (low + (high - low + 1) * self.uniform(*shape)).floor().clip(max=high)

    def on_actions(self, actions: Tensor) -> Tensor:
        self.newest = self.newest.roll(1, dims=0)
        self.newest[0] = actions
        ago = self.values.long().expand(-1, actions.shape[1]).unsqueeze(0)
        return self.newest.gather(0, ago).squeeze(0)

    def on_reset(self, ended: Tensor) -> None:
        super().on_reset(ended)
        self.newest = self.newest.masked_fill(ended.unsqueeze(1), 0.0)

    @classmethod
    def problems(cls, cfg: TermConfig, env: EnvConfig) -> Iterator[str]:
        yield from super().problems(cfg, env)
        low, high = cfg.range
        if low % 1 or high % 1:
            yield f"range=[{low},{high}] must be whole steps. Try [{int(low)},{int(high)}]."
        if high > env.max_episode_length:
            yield f"range=[{low},{high}] is longer than an episode, which has {env.max_episode_length} steps."
