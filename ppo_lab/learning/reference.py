"""The policy that a run began with, kept as it was: with `init.kl_coef` the loss holds the learned one near it.

A = number of actions.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from rsl_rl.algorithms import PPO

    from ppo_lab.contracts import State
    from ppo_lab.learning.perceptron import Networks


class Reference:
    """A copy of the actor, with its normalizer and its deviations, that nothing but `load` changes."""

    std: Tensor
    """(A,), the deviations of the actions."""

    def __init__(self, alg: PPO, networks: Networks, coef: float) -> None:
        """Of `alg.actor` as it is now; what it computes goes through buffers of `networks`."""
        self.coef = coef
        """The weight in the loss of KL(reference || policy)."""
        copies: dict[int, Tensor] = {id(buffer): buffer.clone() for buffer in alg.actor.buffers()}
        for parameter in alg.actor.parameters():
            copies[id(parameter)] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
        self.actor = copy.deepcopy(alg.actor, copies).eval()  # alone it would ask where a traced tensor's memory is
        self.perceptron = networks.actor.in_its_buffers(self.actor.mlp)
        self._no_mean = torch.zeros(1, alg.storage.actions.shape[-1], device=alg.storage.actions.device)
        self._follow()

    def load(self, saved: State) -> None:
        """Becomes the actor of a checkpoint, whole."""
        self.actor.load_state_dict(saved)
        self._follow()

    def _follow(self) -> None:
        self.perceptron.follow()
        self.actor.distribution.update(self._no_mean)
        self.std = self.actor.distribution.std.squeeze(0)
