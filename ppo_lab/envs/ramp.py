"""Reward weights that grow from 0 in the course of a training, so that what is hard to combine is learned in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ppo_lab.contracts import State


class RewardRampConfig(Protocol):
    """The setting `reward_ramp` of an env that has one."""

    terms: list[str]
    from_step: int
    to_step: int


class RewardRamp:
    """Weights 0 until `from_step`, whole from `to_step` on, in between linear. Counts the env's steps, its state."""

    def __init__(self, cfg: RewardRampConfig, rewards: Sequence[str], device: torch.device) -> None:
        """`rewards`: the names of all terms, K."""
        self.cfg = cfg
        self.is_growing = torch.tensor([name in cfg.terms for name in rewards], device=device).unsqueeze(1)  # (K, 1)
        self.steps = 0

    def applied_to(self, weights: Tensor) -> Tensor:
        """The weights (K, 1) in this step, which is counted."""
        self.steps += 1
        length = max(self.cfg.to_step - self.cfg.from_step, 1)
        factor = min(max((self.steps - self.cfg.from_step) / length, 0.0), 1.0)
        return weights if factor == 1.0 else torch.where(self.is_growing, weights * factor, weights)

    def finish(self) -> None:
        """From now on all weights are whole."""
        self.steps = max(self.cfg.to_step, self.cfg.from_step + 1)

    def state(self) -> State:
        return {"steps": self.steps}

    def restore(self, state: State) -> None:
        self.steps = state["steps"]
