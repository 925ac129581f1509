"""How policies trained with none, light and full randomization walk where it is otherwise: docs/robustness.md.

python benchmarks/robustness.py train FOLDER     trains and evaluates, two runs at a time; goes on where it stopped
python benchmarks/robustness.py write FOLDER OUT.json OUT.png
"""

from __future__ import annotations

import datetime
import itertools
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout, whatever is installed

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import one_core
from ppo_lab.runs.files import write_json

CHOICES, SEEDS, NAME = ("none", "light", "full"), (1,), "robustness"
NOISE = {"base_ang_vel": 0.2, "projected_gravity": 0.05, "dof_pos": 0.01, "dof_vel": 1.5}  # as in light
FRICTION, PUSH_M_S, MASS_KG, NOISE_TIMES = (1.0, 0.5, 0.2), (0.0, 0.5, 1.0), (0.0, 3.0), (0.0, 1.0)
Values = tuple[float, float, float, float]


def condition(friction: float, push_m_s: float, mass_kg: float, noise: float) -> dict[str, Any]:
    """The settings of the env: these four alone are randomized, or set."""
    terms = {
        "friction": {"when": "build", "operation": "set", "range": [friction, friction]},
        "base_mass": {"when": "build", "operation": "add", "range": [mass_kg, mass_kg]},
        "push": {"when": "interval", "operation": "add", "range": [-push_m_s, push_m_s], "interval_s": [1.0, 2.0]},
        "observation_noise": {"when": "step", "operation": "add", "range": [-noise, noise], "amplitudes": NOISE},
    }
    return {"env.randomization": terms}


def all_values() -> list[Values]:
    return list(itertools.product(FRICTION, PUSH_M_S, MASS_KG, NOISE_TIMES))


def train(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    conditions = folder / "conditions.yaml"
    conditions.write_text(json.dumps({json.dumps(values): condition(*values) for values in all_values()}))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda run: work(folder, conditions, *run), itertools.product(SEEDS, CHOICES)))


def work(folder: Path, conditions: Path, seed: int, choice: str) -> None:
    run = folder / f"{choice} {seed}"
    settings = ["experiment=go2_small", f"randomization={choice}", f"seed={seed}", "max_iterations=300"]
    one_core.train(run, settings)
    evaluation = [f"conditions={conditions}", "checkpoint=last", "episodes=64", "env.episode_length_s=8"]
    one_core.evaluate(run, NAME, evaluation)


def results(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for choice, seed in itertools.product(CHOICES, SEEDS):
        for result in one_core.results_of(folder / f"{choice} {seed}", NAME):
            friction, push_m_s, mass_kg, noise = json.loads(result["condition"])
            rows.append(
                {"trained_with": choice, "seed": seed, "friction": friction, "push_m_s": push_m_s, "mass_kg": mass_kg}
                | {"noise": noise, "success": round(result["endings"]["time_out"]["rate"], 4)}
                | {"speed_m_s": round(result["measured"]["speed_m_s"]["mean"], 4)}
                | {"velocity_error_m_s": round(result["measured"]["velocity_error_m_s"]["mean"], 4)}
            )
    return rows


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """A map for each training: friction and push against mass and noise; colour and number are the success."""
    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    down, across = list(itertools.product(FRICTION, PUSH_M_S)), list(itertools.product(MASS_KG, NOISE_TIMES))
    for axes, choice in zip(figure.subplots(1, len(CHOICES), sharey=True), CHOICES, strict=True):
        table = [[mean(rows, choice, (*row, *column), "success") for column in across] for row in down]
        axes.imshow(table, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        for (y, row), (x, column) in itertools.product(enumerate(down), enumerate(across)):
            speed = mean(rows, choice, (*row, *column), "speed_m_s")
            label = f"{100 * table[y][x]:.0f} %  {speed:.2f}"
            axes.text(
                x, y, label, ha="center", va="center", fontsize=8, color="white" if table[y][x] < 0.5 else "black"
            )
        axes.set_xticks(
            range(len(across)), [f"+{mass:.0f} kg\n{'noise' if noise else 'exact'}" for mass, noise in across]
        )
        axes.set_yticks(range(len(down)), [f"friction {friction}, pushes {push} m/s" for friction, push in down])
        axes.set_title(f"trained with randomization={choice}", fontsize="medium")
    figure.savefig(out)


def mean(rows: list[dict[str, Any]], choice: str, values: Values, key: str) -> float:
    names = ("friction", "push_m_s", "mass_kg", "noise")
    return fmean(
        row[key] for row in rows if row["trained_with"] == choice and tuple(row[name] for name in names) == values
    )


def write(folder: Path, document: Path, picture: Path) -> None:
    rows = results(folder)
    about = one_core.about(folder / f"{CHOICES[0]} {SEEDS[0]}", NAME)
    write_json(document, about | {"date": datetime.date.today().isoformat(), "results": rows})
    draw(rows, picture)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["train", folder]:
            train(Path(folder).absolute())
        case ["write", folder, document, picture]:
            write(Path(folder), Path(document), Path(picture))
        case _:
            sys.exit(__doc__)
