"""Acting in the envs for one rollout: rsl_rl's `PPO.act` and `process_env_step`, with nothing done that can wait.

The actions are those that rsl_rl would draw. What a step gives goes straight into rsl_rl's storage, and the host reads
nothing: rsl_rl's normal distribution looks at its deviations on every step.

T = num_steps_per_env, N = num_envs, A = number of actions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppo_lab.learning.perceptron import Networks
from ppo_lab.learning.update import log_prob, network_input

if TYPE_CHECKING:
    from rsl_rl.algorithms import PPO
    from rsl_rl.models import MLPModel
    from tensordict import TensorDict


class Rollout:
    """Fills the storage of `alg`, transition by transition: `begin`, then `act` and `enter` in turn."""

    def __init__(self, alg: PPO, networks: Networks) -> None:
        storage = alg.storage
        self._alg, self._networks, self._storage = alg, networks, storage
        self._observations = dict(storage.observations.items())  # group -> (T, N, width)
        self._means, self._stds = torch.zeros_like(storage.actions), torch.zeros_like(storage.actions)
        storage.distribution_params = self._means, self._stds

    def begin(self) -> None:
        """Takes over the networks' parameters as they are now."""
        self._networks.follow()
        distribution = self._alg.actor.distribution
        distribution.update(self._means[0, :1])
        self._std = distribution.std.squeeze(0)  # (A,)
        self._stds.copy_(self._std)

    def act(self, observations: TensorDict) -> Tensor:
        """Draws actions, (N, A)."""
        alg, step = self._alg, self._storage.step
        for group, stored in self._observations.items():
            stored[step] = observations[group]
        mean, values = self._means[step], self._storage.values[step]
        mean.copy_(self._networks.actor.predict(self._input(alg.actor)))
        values.copy_(self._networks.critic.predict(self._input(alg.critic)))
        actions = torch.empty_like(mean).normal_().mul_(self._std).add_(mean)
        self._storage.actions[step] = actions
        self._storage.actions_log_prob[step, :, 0] = log_prob(actions, mean, self._std)
        alg.transition.actions = actions  # of a step that is not complete
        return actions

    def enter(self, rewards: Tensor, dones: Tensor, time_outs: Tensor) -> None:
        """What the envs gave for the actions, each (N,). Where an episode ended by time, its value is in its reward."""
        storage, step = self._storage, self._storage.step
        torch.add(rewards, self._alg.gamma * (storage.values[step, :, 0] * time_outs), out=storage.rewards[step, :, 0])
        storage.dones[step, :, 0] = dones
        storage.step += 1
        self._alg.transition.actions = None

    def _input(self, network: MLPModel) -> Tensor:
        step = self._storage.step
        return network_input(network, [self._observations[group][step] for group in network.obs_groups])
