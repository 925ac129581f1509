"""What logging and the memory rows cost, as a share of an iteration: `python benchmarks/logging_cost.py [overrides]`.

Runs `train.py` for 30 iterations (512 Go2 envs unless the overrides say otherwise, such as processes=2) with a clock
around every call that only tells: memory rows, episode statistics, TensorBoard, metrics.jsonl, progress. Where several
ranks train, the clock is on rank 0, which waits for what the others tell. Prints one JSON object.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout, whatever is installed

from ppo_lab.machine.preflight import yield_busy_cores

WARM_UP = 5
"""Iterations that allocate."""

spent_s = 0.0


def clocked(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, whose seconds are added to `spent_s`. What it calls in turn must not be clocked."""

    @functools.wraps(call)
    def timed(*args: Any, **kwargs: Any) -> Any:
        global spent_s
        started_s = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            spent_s += time.perf_counter() - started_s

    return timed


def main(words: list[str]) -> dict[str, Any]:
    yield_busy_cores()
    import torch

    from ppo_lab.cli import train
    from ppo_lab.learning.episodes import EpisodeStatistics
    from ppo_lab.memory.measure.monitor import MemoryMonitor
    from ppo_lab.runs.manifest import describe_machine
    from ppo_lab.runs.record import read
    from ppo_lab.training.recording import Recording

    for owner, name in (
        (MemoryMonitor, "scalars"),
        (EpisodeStatistics, "add"),
        (EpisodeStatistics, "scalars"),
        (Recording, "add"),
    ):
        setattr(owner, name, clocked(getattr(owner, name)))
    ended_s, logging_s = list[float](), list[float]()
    add = Recording.add

    def add_and_note(record: Recording, iteration: int, scalars: dict[str, float]) -> None:
        """Closes an iteration, which began where the one before ended."""
        global spent_s
        add(record, iteration, scalars)
        ended_s.append(time.perf_counter())
        logging_s.append(spent_s)
        spent_s = 0.0

    setattr(Recording, "add", add_and_note)  # noqa: B010  mypy allows no method to be assigned
    asked = ["experiment=go2_small", "max_iterations=30", "save_interval=1000", *words]
    with tempfile.TemporaryDirectory() as parent:
        run = Path(parent) / "run"
        train.main([*asked, f"hydra.run.dir={run}"])
        config = read(run).config
    iterations_s = [after - before for before, after in itertools.pairwise(ended_s)]
    shares = [log / whole for log, whole in zip(logging_s[1:], iterations_s, strict=True)]
    return {
        "env": config["env"]["name"],
        "num_envs": config["num_envs"],
        "processes": config["processes"],
        "iteration_s": statistics.median(iterations_s[WARM_UP:]),
        "logging_s": statistics.median(logging_s[WARM_UP + 1 :]),
        "logging_share": statistics.median(shares[WARM_UP:]),
        "machine": describe_machine(torch.device("cpu")),
    }


if __name__ == "__main__":
    output = os.dup(1)
    os.dup2(2, 1)  # what the run prints
    found = main(sys.argv[1:])
    os.write(output, (json.dumps(found, indent=2) + "\n").encode())
