"""How well short trainings of each env end, over several seeds: the bands that the learning regression is held to.

python benchmarks/learning_bands.py [go2] [hover]     # all where none is named; a minute a run on one core

Writes tests/system/learning_bands.json: the settings, which it reads from there, how each seed ended, and the lowest
mean reward and episode length to be accepted: the mean over the seeds less MARGIN standard deviations. That the curve
of a learner that learns nothing lies below them is checked with a learning rate of almost 0.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
BANDS = REPOSITORY / "tests" / "system" / "learning_bands.json"
SEEDS = (1, 2, 3, 4, 5)
MARGIN = 4.0
"""Standard deviations over the seeds. Of 5 seeds, one run in 100 or fewer that is as good as they are ends below."""
LAST = 5
"""Iterations at the end of a curve whose mean counts."""
LEARNS_NOTHING = ("algorithm.schedule=fixed", "algorithm.learning_rate=1e-9")


def command(env: str, overrides: Sequence[str], folder: Path) -> list[str]:
    """Arguments of `python` for the training of `env`, into `folder`."""
    rest = ("device=cpu", "quiet=true", "save_interval=100000", f"hydra.run.dir={folder}")
    return ["train.py", f"env={env}", *overrides, *rest]


def end_of_curve(folder: Path) -> dict[str, float]:
    """Mean reward (per episode) and mean episode length (steps) over the LAST iterations of the run in `folder`."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][-LAST:]
    return {
        name: round(statistics.fmean(row[f"Train/{name}"] for row in rows), 4)
        for name in ("mean_reward", "mean_episode_length")
    }


def run(env: str, overrides: Sequence[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        subprocess.run([sys.executable, *command(env, overrides, path)], cwd=REPOSITORY, check=True)
        return end_of_curve(path)


def measure(env: str, overrides: Sequence[str]) -> dict[str, Any]:
    seeds = [run(env, [*overrides, f"seed={seed}"]) for seed in SEEDS]
    without = run(env, [*overrides, *LEARNS_NOTHING])
    lowest = {}
    for name in without:
        ends = [seed[name] for seed in seeds]
        lowest[name] = round(statistics.fmean(ends) - MARGIN * statistics.stdev(ends), 4)
    if without["mean_reward"] >= lowest["mean_reward"]:
        raise SystemExit(f"{env}: without learning it ends with {without}, and the band begins at {lowest}: too wide")
    return {"overrides": list(overrides), "lowest": lowest, "seeds": seeds, "without_learning": without}


def main(names: Sequence[str]) -> None:
    bands = json.loads(BANDS.read_text())
    for env in names or bands:
        bands[env] = measure(env, bands[env]["overrides"])
        print(env, json.dumps(bands[env]), flush=True)
        BANDS.write_text(json.dumps(bands, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
