"""How much of task A a policy forgets while it learns task B, and what helps: docs/forgetting.md.

    python benchmarks/forgetting.py train FOLDER [seed ...]    two runs at a time; goes on where it stopped
    python benchmarks/forgetting.py write FOLDER OUT.json OUT.png

A: Go2 walks forwards at 0.5 m/s on a floor with a friction of 1. B: it walks backwards and turns, on a slippery floor,
and is pushed.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout, whatever is installed

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import one_core
from ppo_lab.memory.show import palette
from ppo_lab.runs.files import write_json

SEEDS = (1, 2, 3)
SMALL = ["experiment=go2_small", "network.obs_normalization=false", "save_interval=25"]
"""Without normalization: a normalizer of one command alone makes any other look huge (docs/init_from.md)."""
FRICTION = {"when": "reset", "operation": "set", "range": [0.3, 0.6]}
PUSH = {"when": "interval", "operation": "add", "range": [-0.5, 0.5], "interval_s": [2.0, 4.0]}
COMMANDS = {
    "when": "interval",
    "operation": "set",
    "low": {"lin_vel_x_m_s": -0.8, "ang_vel_rad_s": -0.8},
    "high": {"lin_vel_x_m_s": -0.4, "ang_vel_rad_s": 0.8},
}
B: dict[str, dict[str, Any]] = {"friction": FRICTION, "push": PUSH, "commands": COMMANDS}
WIDE = B | {
    "friction": FRICTION | {"range": [0.3, 1.2]},
    "commands": COMMANDS | {"high": {"lin_vel_x_m_s": 0.8, "ang_vel_rad_s": 0.8}},
}
"""Of A's training where it is randomized from the start: A is within it, and B."""
ARMS: dict[str, tuple[str, list[str]]] = {
    "B alone": ("A", []),
    "A and B mixed": ("A", []),
    "penalty 0.1": ("A", ["init.kl_coef=0.1"]),
    "penalty 1": ("A", ["init.kl_coef=1.0"]),
    "B after A randomized": ("A randomized", []),
}
"""What goes on with B -> the training that it begins with, and its settings."""
CONDITIONS = {"A": {"env.randomization": {}}, "B": {"env.randomization": B}}
EVALUATION, NAME = ["episodes=64", "env.episode_length_s=6"], "forgetting"
MEASURED = ("speed_m_s", "velocity_error_m_s", "yaw_rate_error_rad_s")


def train(folder: Path, seeds: list[int]) -> None:
    """Two chains at a time, each on one core."""
    folder.mkdir(parents=True, exist_ok=True)
    conditions = folder / "conditions.yaml"
    conditions.write_text(json.dumps(CONDITIONS))
    evaluation = [f"conditions={conditions}", *EVALUATION]
    firsts = [(seed, start) for seed in seeds for start in ("A", "A randomized")]
    arms = [(seed, arm) for seed in seeds for arm in ARMS]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda first: begin(folder, evaluation, *first), firsts))
        list(pool.map(lambda later: go_on(folder, evaluation, *later), arms))


def begin(folder: Path, evaluation: list[str], seed: int, start: str) -> None:
    """A training from scratch, and the evaluation of what comes of it."""
    overrides = [*terms(WIDE), "max_iterations=300"] if start == "A randomized" else ["max_iterations=200"]
    run = folder / f"{start} {seed}"
    one_core.train(run, [*SMALL, *overrides, f"seed={seed}"])
    one_core.evaluate(run, NAME, ["checkpoint=last", *evaluation])


def go_on(folder: Path, evaluation: list[str], seed: int, arm: str) -> None:
    """A training on B, and the evaluation of its checkpoints."""
    start, overrides = ARMS[arm]
    share = 0.5 if arm == "A and B mixed" else 1.0
    of_b = terms({name: term | {"share": share} for name, term in B.items()})
    begins = f"init_from='{folder / f'{start} {seed}'}'"
    run = folder / f"{arm} {seed}"
    one_core.train(run, [*SMALL, *of_b, *overrides, begins, "max_iterations=150", f"seed={seed}"])
    one_core.evaluate(run, NAME, ["checkpoint=all", *evaluation])


def terms(randomization: dict[str, dict[str, Any]]) -> list[str]:
    """As overrides."""
    return [
        f"+env.randomization.{name}={json.dumps(term).replace(chr(34), '')}" for name, term in randomization.items()
    ]


def results(folder: Path) -> Iterator[dict[str, Any]]:
    """Of each arm, seed, condition and iteration of B; iteration 0 is the policy that it begins with."""
    for arm, (start, _) in ARMS.items():
        for seed in SEEDS:
            before = [(0, result) for result in one_core.results_of(folder / f"{start} {seed}", NAME)]
            after = [
                (result["iteration"] + 1, result) for result in one_core.results_of(folder / f"{arm} {seed}", NAME)
            ]
            for iteration, result in before + after:
                yield {
                    "arm": arm,
                    "seed": seed,
                    "condition": result["condition"],
                    "iteration": iteration,
                    "return": round(result["return"]["mean"], 4),
                    "fell": round(1 - result["endings"]["time_out"]["rate"], 4),
                    **{key: round(result["measured"][key]["mean"], 4) for key in MEASURED},
                }


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    figure = Figure(figsize=(11, 3.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    colors = (palette.INDIGO, palette.GREEN, palette.SAND, palette.ROSE, palette.CYAN)
    for axes, condition in zip(figure.subplots(1, 2, sharey=True), CONDITIONS, strict=True):
        for color, arm in zip(colors, ARMS, strict=True):
            of_arm = [row for row in rows if (row["arm"], row["condition"]) == (arm, condition)]
            for seed in SEEDS:
                of_seed = sorted((row["iteration"], row["return"]) for row in of_arm if row["seed"] == seed)
                axes.plot(*zip(*of_seed, strict=True), color=color, alpha=0.25, linewidth=1)
            mean = sorted(
                (at, fmean(row["return"] for row in of_arm if row["iteration"] == at))
                for at in {row["iteration"] for row in of_arm}
            )
            axes.plot(*zip(*mean, strict=True), color=color, label=arm, linewidth=2)
        axes.set_title(f"return in {condition}", fontsize="medium")
        axes.set_xlabel("iterations of B")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(out)


def write(folder: Path, document: Path, picture: Path) -> None:
    rows = list(results(folder))
    about = one_core.about(folder / f"A {SEEDS[0]}", NAME)
    write_json(document, about | {"date": datetime.date.today().isoformat(), "conditions": CONDITIONS, "results": rows})
    draw(rows, picture)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["train", folder, *seeds]:
            train(Path(folder).absolute(), [int(seed) for seed in seeds] or list(SEEDS))
        case ["write", folder, document, picture]:
            write(Path(folder), Path(document), Path(picture))
        case _:
            sys.exit(__doc__)
