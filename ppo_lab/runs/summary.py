"""How a run went, in one small file: summary.json."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil

from ppo_lab.runs.files import write_json
from ppo_lab.runs.record import iteration_s

log = logging.getLogger(__name__)


class Summary:
    """Collects what summary.json says; docs/run_folder.md lists the keys."""

    def __init__(self, path: Path, transitions_per_iteration: int, earlier: Iterable[dict[str, Any]] = ()) -> None:
        """`earlier`: the rows of the iterations before this process, where a run goes on; None for what is null."""
        self._path = path
        self._transitions = transitions_per_iteration
        self._process_started_s = psutil.Process().create_time()
        self._training_started_s: float | None = None
        self.iterations = 0
        self._last: dict[str, float | None] = {}
        self._best_reward: float | None = None
        self.peak_mib: dict[str, float] = {}
        """The highest value of each memory row."""
        self._earlier_s = 0.0
        for row in earlier:
            self.add(row)
            self._earlier_s += iteration_s(row)

    def begin_training(self) -> None:
        """Everything is built; the first iteration begins."""
        self._training_started_s = time.time()

    def add(self, scalars: Mapping[str, float | None]) -> None:
        """Takes one iteration's scalars. A value that is not finite, or None, is neither the best nor a peak."""
        self.iterations += 1
        self._last |= scalars
        for tag, value in scalars.items():
            if value is None or not math.isfinite(value):
                continue
            if tag == "Train/mean_reward":
                self._best_reward = value if self._best_reward is None else max(value, self._best_reward)
            elif tag.startswith("Memory/"):
                self.peak_mib[tag] = max(value, self.peak_mib.get(tag, 0.0))

    def write(self, status: str, message: str | None, memory: list[dict[str, Any]]) -> str:
        """Writes the file, where the disk takes it, and returns the main figures as a sentence.

        Args:
            status: running, completed, interrupted or failed.
            message: why.
            memory: what was predicted, beside what was measured.
        """
        now_s = time.time()
        training_s = self._earlier_s + now_s - self._training_started_s if self._training_started_s else None
        steps_per_s = self.iterations * self._transitions / training_s if training_s else None
        reward, length = self._last.get("Train/mean_reward"), self._last.get("Train/mean_episode_length")
        content = {
            "status": status,
            "message": message,
            "iterations": self.iterations,
            "wall_s": now_s - self._process_started_s,
            "startup_s": (self._training_started_s or now_s) - self._process_started_s,
            "training_s": training_s,
            "steps_per_s": steps_per_s,
            "final_reward": reward,
            "best_reward": self._best_reward,
            "final_episode_length": length,
            "peak_mib": self.peak_mib,
            "memory": memory,
        }
        try:
            write_json(self._path, content)
        except OSError as error:
            log.warning("%s was not written: %s", self._path, error.strerror)
        outcome = f"{self.iterations} iterations in {now_s - self._process_started_s:.0f} s"
        if reward is None or length is None:
            return outcome
        return f"{outcome}, mean reward {reward:.2f}, mean episode length {length:.0f}"
