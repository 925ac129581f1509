"""What logging and the memory rows cost, as a share of an iteration: `python benchmarks/logging_cost.py [overrides]`.

Runs `train.py` for 30 iterations (512 Go2 envs unless the overrides say otherwise, such as processes=2). Counts all of
an iteration that is neither rollout nor update: memory rows, episodes, TensorBoard, metrics.jsonl, progress, the search
for NaN, and where several ranks train what they tell each other; and the episode statistics within the rollout. Prints
one JSON object.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout, whatever is installed

from ppo_lab.machine.preflight import yield_busy_cores

WARM_UP = 5
"""Iterations that allocate."""


def main(words: list[str]) -> dict[str, Any]:
    yield_busy_cores()
    import torch

    from ppo_lab.cli import train
    from ppo_lab.learning.episodes import EpisodeStatistics
    from ppo_lab.runs.manifest import describe_machine
    from ppo_lab.runs.record import read
    from ppo_lab.training.recording import Recording

    enter, add = EpisodeStatistics.add, Recording.add
    entering_s, ended_s, logging_s = [0.0], [math.nan], list[float]()

    def clocked_enter(*args: Any) -> None:
        started_s = time.perf_counter()
        enter(*args)
        entering_s[0] += time.perf_counter() - started_s

    def clocked_add(record: Recording, iteration: int, scalars: dict[str, float]) -> None:
        """Closes an iteration, which began where the one before ended."""
        add(record, iteration, scalars)
        ended_s.append(time.perf_counter())
        trained_s = scalars["Perf/collection_time"] + scalars["Perf/learning_time"]
        logging_s.append(ended_s[-1] - ended_s[-2] - trained_s + entering_s[0])
        entering_s[0] = 0.0

    setattr(EpisodeStatistics, "add", clocked_enter)  # noqa: B010  mypy allows no method to be assigned
    setattr(Recording, "add", clocked_add)  # noqa: B010
    asked = ["experiment=go2_small", "max_iterations=30", "save_interval=1000", *words]
    with tempfile.TemporaryDirectory() as parent:
        run = Path(parent) / "run"
        train.main([*asked, f"hydra.run.dir={run}"])
        config = read(run).config
    iterations_s = [after - before for before, after in itertools.pairwise(ended_s)]
    shares = [log / whole for log, whole in zip(logging_s, iterations_s, strict=True)]
    return {
        "env": config["env"]["name"],
        "num_envs": config["num_envs"],
        "processes": config["processes"],
        "iteration_s": statistics.median(iterations_s[WARM_UP:]),
        "logging_s": statistics.median(logging_s[WARM_UP:]),
        "logging_share": statistics.median(shares[WARM_UP:]),
        "machine": describe_machine(torch.device("cpu")),
    }


if __name__ == "__main__":
    output = os.dup(1)
    os.dup2(2, 1)  # what the run prints
    found = main(sys.argv[1:])
    os.write(output, (json.dumps(found, indent=2) + "\n").encode())
