"""What the episodes of a rollout were worth. Accumulated on the device, read once an iteration."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from operator import itemgetter
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppo_lab.states import check_fits

if TYPE_CHECKING:
    from ppo_lab.contracts import State


class EpisodeStatistics:
    """Returns and lengths of the last 100 episodes, as rsl_rl's logger keeps them, without its syncs each step.

    N = num_envs, T = num_steps_per_env, K = len(reward_names).
    """

    WINDOW = 100

    def __init__(
        self, num_envs: int, num_steps_per_env: int, reward_names: Sequence[str], device: torch.device
    ) -> None:
        self._names = tuple(reward_names)
        self._return = torch.zeros(num_envs, device=device)  # of the episode so far
        self._length = torch.zeros(num_envs, device=device)
        shape = (num_steps_per_env, num_envs)
        self._returns = torch.zeros(shape, device=device)  # (T, N), valid where an episode ended
        self._lengths = torch.zeros(shape, device=device)
        self._ended = torch.zeros(shape, dtype=torch.bool, device=device)
        self._sums = torch.zeros(len(self._names), device=device)
        self._step = 0
        self.last_returns: deque[float] = deque(maxlen=self.WINDOW)
        self.last_lengths: deque[float] = deque(maxlen=self.WINDOW)

    def add(self, rewards: Tensor, dones: Tensor, episode_sums: Tensor) -> None:
        """Enters one step: rewards (N,), dones (N,) bool, episode_sums (K,) over the episodes that ended in it."""
        self._return += rewards
        self._length += 1
        self._returns[self._step] = self._return
        self._lengths[self._step] = self._length
        self._ended[self._step] = dones
        self._return.masked_fill_(dones, 0.0)
        self._length.masked_fill_(dones, 0.0)
        self._sums += episode_sums
        self._step += 1

    def state(self) -> dict[str, Any]:
        """What the coming rollouts depend on. Valid between rollouts."""
        return {
            "return": self._return,
            "length": self._length,
            "last_returns": list(self.last_returns),
            "last_lengths": list(self.last_lengths),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Puts back what `state` gave. Raises a ValueError that names what does not fit, before anything is changed."""
        check_fits("the episode statistics", state, self.state())
        self._return.copy_(state["return"])
        self._length.copy_(state["length"])
        self.last_returns = deque(state["last_returns"], maxlen=self.WINDOW)
        self.last_lengths = deque(state["last_lengths"], maxlen=self.WINDOW)

    def close_rollout(self) -> State:
        """The episodes that ended in the rollout, in the order of their ends, and the sums of their reward terms."""
        ended = self._ended[: self._step].flatten()
        closed = {
            "steps": torch.arange(self._step).repeat_interleave(len(self._return))[ended.cpu()].tolist(),
            "returns": self._returns[: self._step].flatten()[ended].tolist(),
            "lengths": self._lengths[: self._step].flatten()[ended].tolist(),
            "sums": self._sums.tolist(),
        }
        self._sums.zero_()
        self._step = 0
        return closed

    def scalars(self, rollouts: Sequence[State]) -> dict[str, float]:
        """Takes what `close_rollout` gave on every rank. A tag is absent as long as no episode has ended.

        `Train/*` are means over the last 100 episodes; `Episode/rew_*` over the episodes that ended in this rollout,
        each episode counted once, per second of a whole episode.
        """
        ended = [episode for of in rollouts for episode in zip(of["steps"], of["returns"], of["lengths"], strict=True)]
        ended.sort(key=itemgetter(0))  # as one rank with all envs would meet them
        self.last_returns.extend(one[1] for one in ended)
        self.last_lengths.extend(one[2] for one in ended)
        sums, count = [sum(term) for term in zip(*(of["sums"] for of in rollouts), strict=True)], len(ended)
        scalars = {f"Episode/rew_{name}": total / count for name, total in zip(self._names, sums, strict=True) if count}
        if self.last_returns:
            scalars["Train/mean_reward"] = mean(self.last_returns)
            scalars["Train/mean_episode_length"] = mean(self.last_lengths)
        return scalars
