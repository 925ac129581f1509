"""Ranges of commands that grow with success: a robot that cannot walk slowly need not learn to run."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ppo_lab.contracts import State
from ppo_lab.states import gather, put_back


class CurriculumConfig(Protocol):
    """The setting `curriculum` of an env that has one."""

    start: float
    step: float
    success: float


class Curriculum:
    """The share of the commands' ranges that commands are drawn from. Begins with `start` and grows to 1."""

    def __init__(self, cfg: CurriculumConfig, device: torch.device) -> None:
        self.cfg = cfg
        self.share = torch.tensor(cfg.start, device=device)

    def learn(self, success: Tensor, ended: Tensor) -> None:
        """Grows by `step` where the episodes that ended in this step were successful enough, on average.

        success: (N,), 0 to 1; ended: (N,) bool. Costs no host sync.
        """
        mean = torch.where(ended, success, 0.0).sum() / ended.sum().clip(min=1)
        grown = (self.share + self.cfg.step).clip(max=1.0)
        self.share = torch.where(mean > self.cfg.success, grown, self.share)

    def finish(self) -> None:
        """From now on commands are drawn from the whole ranges."""
        self.share = torch.ones_like(self.share)

    def state(self) -> State:
        return gather(self)

    def restore(self, state: State) -> None:
        put_back(self, state, self.share.device)
