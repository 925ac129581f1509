"""Checkpoints: what is saved, when, and never half."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ppo_lab.files import write_atomically

State = dict[str, Any]
"""rsl_rl's own keys (actor_state_dict, critic_state_dict, optimizer_state_dict, iter, infos) and learning_rate.

Tensors, numbers, strings and None alone, so that `torch.load(path, weights_only=True)` reads it.
"""


class Checkpoints:
    """The folder `checkpoints/` of a run: model_<iteration>.pt at intervals, and best.pt."""

    def __init__(self, folder: Path, save_interval: int) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.save_interval = save_interval
        self.best_reward = -math.inf
        self._best: bytes | None = None

    def offer(self, iteration: int, state: Callable[[], State], reward: float | None, last: bool = False) -> None:
        """Called at the end of every iteration; saves what is due.

        A new best is serialized at once, so that it takes no tensors, and written along with the next checkpoint.

        Args:
            iteration: counted from 0.
            state: gives the learner's state; called only when it is needed.
            reward: `Train/mean_reward`, None before an episode has ended.
            last: nothing comes after.
        """
        if reward is not None and reward > self.best_reward:
            self.best_reward, self._best = reward, _to_bytes(state())
        if last or iteration % self.save_interval == 0:
            save(self.folder / f"model_{iteration}.pt", state())
            self.write_best()
        if last and not (self.folder / "best.pt").exists():
            save(self.folder / "best.pt", state())

    def write_best(self) -> None:
        """Writes the best so far, where it is not on disk yet."""
        if self._best is not None:
            best = self._best
            write_atomically(self.folder / "best.pt", lambda file: file.write(best))
            self._best = None


def save(path: Path, state: State) -> None:
    """Writes `state` to `path` in one stroke: a reader finds the old file or the new one, whole."""
    write_atomically(path, lambda file: torch.save(state, file))


def _to_bytes(state: State) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
