"""What logging and the memory rows cost, as a share of an iteration: `python benchmarks/logging_cost.py [overrides]`.

Runs `train.py` for 30 iterations (experiment=go2_small unless the overrides say otherwise). Counts all of an iteration
that is neither rollout nor update: memory rows, episodes, TensorBoard, metrics.jsonl, progress, the search for NaN, and
where several ranks train what rank 0 hears of the others; and the episode statistics within the rollout. Checkpoints,
the copy of the best model among them, are counted apart. Prints one JSON object. The share of CPU time, of all threads
of rank 0, leaves out waiting, as on a busy machine.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout, whatever is installed

import numpy as np

from ppo_lab.machine.preflight import yield_busy_cores

WARM_UP = 5
"""Iterations that allocate."""


def now() -> Any:
    """Seconds of the wall clock, and of CPU time of this process."""
    return np.array([time.perf_counter(), time.process_time()])


def main(overrides: list[str]) -> dict[str, Any]:
    yield_busy_cores()
    import torch

    from ppo_lab.cli import train
    from ppo_lab.learning.checkpoint import Checkpoints
    from ppo_lab.learning.episodes import EpisodeStatistics
    from ppo_lab.memory.measure.monitor import MemoryMonitor
    from ppo_lab.runs.manifest import describe_machine
    from ppo_lab.runs.record import read

    enter, phase, save = EpisodeStatistics.add, MemoryMonitor.phase, Checkpoints.maybe_save
    entering, began, iterations, logging, saving = [now() * 0], [now()], list[Any](), list[Any](), list[Any]()

    def clocked_enter(*args: Any) -> None:
        started = now()
        enter(*args)
        entering[0] += now() - started

    def clocked_save(*args: Any) -> None:
        started = now()
        save(*args)
        saving.append(now() - started)

    @contextmanager
    def clocked_phase(monitor: MemoryMonitor, name: str) -> Iterator[None]:
        """An iteration lasts from rollout to rollout, and what is logged from the end of the update."""
        if name == "rollout" and logging:
            iterations.append(now() - began[0])
            logging[-1] += now()
            began[0] = now()
        with phase(monitor, name):
            yield
        if name == "update":
            logging.append(entering[0] - now())
            entering[0] = now() * 0

    setattr(EpisodeStatistics, "add", clocked_enter)  # noqa: B010  mypy allows no method to be assigned
    setattr(MemoryMonitor, "phase", clocked_phase)  # noqa: B010
    setattr(Checkpoints, "maybe_save", clocked_save)  # noqa: B010
    asked = ["experiment=go2_small", "max_iterations=30", "save_interval=1000", *overrides]
    with tempfile.TemporaryDirectory() as parent:
        run = Path(parent) / "run"
        train.main([*asked, f"hydra.run.dir={run}"])
        config = read(run).config
    count = len(iterations)
    whole, logged, saved = (np.array(rows[:count])[WARM_UP:] for rows in (iterations, logging, saving))
    logged -= saved
    share, cpu_share = np.median(logged / whole, axis=0)
    return {
        "env": config["env"]["name"],
        "num_envs": config["num_envs"],
        "processes": config["processes"],
        "iteration_s": float(np.median(whole[:, 0])),
        "logging_s": float(np.median(logged[:, 0])),
        "logging_share": float(share),
        "logging_share_of_cpu_time": float(cpu_share),
        "checkpoints_s": float(np.median(saved[:, 0])),
        "machine": describe_machine(torch.device("cpu")),
    }


if __name__ == "__main__":
    output = os.dup(1)
    os.dup2(2, 1)  # what the run prints
    found = main(sys.argv[1:])
    os.write(output, (json.dumps(found, indent=2) + "\n").encode())
