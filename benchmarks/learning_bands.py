"""How well short trainings of each env end, over several seeds: the bands that the learning regression is held to.

python benchmarks/learning_bands.py [go2] [hover]     # all where none is named; a minute a run on one core

Writes tests/system/learning_bands.json: the settings, which it reads from there; how each seed ended; how a learner
ended whose learning rate is almost 0; and the lowest mean reward and episode length to be accepted, halfway between
that one and the worst seed. So a run fails that has lost half of what the worst of the seeds has learned. The margin is
wide, since runs of one seed on other processors and versions differ as much as runs of other seeds do.
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
    return {
        "overrides": list(overrides),
        "lowest": lowest_to_accept(seeds, without),
        "seeds": seeds,
        "without_learning": without,
    }


def lowest_to_accept(seeds: Sequence[dict[str, float]], without: dict[str, float]) -> dict[str, float]:
    """Halfway between the end without learning and the worst seed, for what every seed has learned to raise.

    Raises a ValueError where that is not the mean reward.
    """
    worst = {name: min(seed[name] for seed in seeds) for name in without}
    if worst["mean_reward"] <= without["mean_reward"]:
        raise ValueError(f"mean reward: {worst} with learning, {without} without; give the env more iterations")
    return {name: round((worst[name] + value) / 2, 4) for name, value in without.items() if worst[name] > value}


def main(names: Sequence[str]) -> None:
    bands = json.loads(BANDS.read_text())
    for env in names or bands:
        bands[env] = measure(env, bands[env]["overrides"])
        print(env, json.dumps(bands[env]), flush=True)
        BANDS.write_text(json.dumps(bands, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
