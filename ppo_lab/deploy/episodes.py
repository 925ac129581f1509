"""One episode of each env under a policy: what it came to, and statistics over the envs.

N = num_envs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from scipy import stats

if TYPE_CHECKING:
    from tensordict import TensorDict
    from torch import Tensor

    from ppo_lab.contracts import Measurement, StepDetails, WatchedEnv

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Episodes:
    """The first episode of each env. Every tensor is (N,), on the CPU."""

    returns: Tensor
    """Sum of the rewards, float64."""
    lengths: Tensor
    """Steps, int64."""
    rewards: dict[str, Tensor]
    """Term -> its share of the return."""
    endings: dict[str, Tensor]
    """Termination -> bool."""
    measured: dict[str, Tensor]
    """Quantity -> what the episode sums it up to, float64; NaN where it never came about."""


@torch.inference_mode()
def play(env: WatchedEnv, act: Callable[[TensorDict], Tensor]) -> Episodes:
    """Steps `env`, just built or restored, until every env's first episode has ended; `act` gives actions (N, A)."""
    record = _Record(env)
    env.watch(record.add)
    try:
        for _ in range(env.spec.max_episode_length + 1):  # an episode ends in the step after its last
            result = env.step(act(env.get_observations()))
            record.end(result.dones)
            if not record.is_open.any():
                break
    finally:
        env.watch(None)
    return record.episodes()


class _Record:
    """Adds up the steps of episodes that are still open."""

    def __init__(self, env: WatchedEnv) -> None:
        self.is_open = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
        self._dt = env.spec.dt
        self._lengths = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)
        self._rewards: dict[str, Tensor] = {}
        self._endings: dict[str, Tensor] = {}
        self._measured: dict[str, Tensor] = {}
        self._means: set[str] = set()

    def add(self, step: StepDetails) -> None:
        self._lengths += self.is_open
        for name, values in step.rewards.items():
            self._rewards[name] = self._rewards.get(name, 0.0) + torch.where(self.is_open, values.double(), 0.0)
        for name, ended in step.terminations.items():
            self._endings[name] = self._endings.get(name, False) | (ended & self.is_open)
        for name, measurement in step.measurements.items():
            self._measured[name] = self._summed_up(name, measurement)

    def end(self, dones: Tensor) -> None:
        self.is_open = self.is_open & ~dones

    def episodes(self) -> Episodes:
        measured = {
            name: values / self._lengths if name in self._means else values for name, values in self._measured.items()
        }
        returns = torch.stack(list(self._rewards.values())).sum(dim=0)
        parts = (self._rewards, self._endings, measured)
        on_cpu = ({name: values.cpu() for name, values in part.items()} for part in parts)
        return Episodes(returns.cpu(), self._lengths.cpu(), *on_cpu)

    def _summed_up(self, name: str, measurement: Measurement) -> Tensor:
        values, before = measurement.values.double(), self._measured.get(name)
        match measurement.over_episode:
            case "max":
                before = torch.full_like(values, -math.inf) if before is None else before
                return torch.where(self.is_open, torch.maximum(before, values), before)
            case "first_s":
                before = torch.full_like(values, math.nan) if before is None else before
                is_first = self.is_open & (values != 0) & before.isnan()
                return torch.where(is_first, self._lengths * self._dt, before)
            case "mean":
                self._means.add(name)
        return torch.where(self.is_open, values, 0.0) + (0.0 if before is None else before)


def statistics(values: Tensor) -> dict[str, Any]:
    """Of (N,) numbers, without those that are NaN: n, mean, std, min, max, and the 95 % interval of the mean.

    The interval is Student's; None for fewer than two. Everything but n is None where there is no number.
    """
    found = values[~values.isnan()].double()
    count = len(found)
    if count == 0:
        return {"n": 0, "mean": None, "std": None, "ci95": None, "min": None, "max": None}
    mean, std = float(found.mean()), float(found.std()) if count > 1 else None
    margin = None if std is None else float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * std / math.sqrt(count)
    interval = None if margin is None else [mean - margin, mean + margin]
    return {
        "n": count,
        "mean": mean,
        "std": std,
        "ci95": interval,
        "min": float(found.min()),
        "max": float(found.max()),
    }


def rate(happened: Tensor) -> dict[str, Any]:
    """Of (N,) bool: n, count, rate, and Wilson's 95 % interval of the rate."""
    count, n = int(happened.sum()), len(happened)
    interval = stats.binomtest(count, n).proportion_ci(CONFIDENCE, method="wilson")
    return {"n": n, "count": count, "rate": count / n, "ci95": [float(interval.low), float(interval.high)]}
