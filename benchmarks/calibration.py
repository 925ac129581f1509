"""How well a calibrated machine is predicted: writes docs/results/calibration.json and .png.

python benchmarks/calibration.py          # after `python estimate.py calibrate=true`; about twelve minutes on two cores

Each run's prediction is made before it starts, by the calibration of this machine. None of these runs is in it, and
none was looked at when the models in ppo_lab/memory/calibration.py were chosen. `drawn` draws the picture again.
"""

import datetime
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ppo_lab.cli.compose import compose
from ppo_lab.memory.measure import measured
from ppo_lab.memory.predict import calibration
from ppo_lab.memory.predict.estimate import estimate
from ppo_lab.memory.predict.hardware import this_machine
from ppo_lab.memory.rows import MIB
from ppo_lab.runs.config import to_experiment
from ppo_lab.runs.files import write_json

REPOSITORY = Path(__file__).resolve().parent.parent
RESULT = REPOSITORY / "docs/results/calibration.json"
NETWORKS = {"small": "[64,64]", "middle": "[256,128]", "large": "[512,256,128]"}
CASES = [
    ("go2", 96, 1, "middle"),
    ("go2", 192, 8, "small"),
    ("go2", 768, 4, "large"),
    ("go2", 1536, 2, "middle"),
    ("go2", 3072, 16, "large"),
    ("go2", 4096, 8, "middle"),
    ("hover", 64, 2, "middle"),
    ("hover", 384, 16, "large"),
    ("hover", 768, 1, "small"),
    ("hover", 1280, 4, "large"),
    ("hover", 3072, 8, "middle"),
    ("hover", 4096, 2, "small"),
]
"""env, num_envs, num_mini_batches, network"""
TRAINING_S = 30.0
"""About how long the iterations of a run take, by what is predicted."""


def main() -> None:
    machine = this_machine("cpu")
    found, notes = calibration.find(machine.name)
    if found is None:
        sys.exit(f"no calibration of {machine.name}: python estimate.py calibrate=true {' '.join(notes)}")
    runs = []
    for case in CASES:
        runs.append(measure(*case, found))
        print(json.dumps(runs[-1]), flush=True)
    about = {"date": datetime.date.today().isoformat(), "calibration": str(found), "versions": found.versions.__dict__}
    write_json(RESULT, about | {"runs": runs})
    draw(runs, RESULT.with_suffix(".png"))
    print(table(runs))


def measure(
    env: str, num_envs: int, num_mini_batches: int, network: str, found: calibration.Calibration
) -> dict[str, Any]:
    overrides = [f"env={env}", f"num_envs={num_envs}", f"algorithm.num_mini_batches={num_mini_batches}", "device=cpu"]
    overrides.append(f"network.hidden_dims={NETWORKS[network]}")
    iteration_s = found.iteration_s(calibration.workload(to_experiment(compose(overrides))))
    assert iteration_s
    overrides.append(f"max_iterations={max(4, min(100, round(TRAINING_S / iteration_s.likely)))}")
    predicted = estimate(to_experiment(compose(overrides)), this_machine("cpu"))
    assert predicted.wall_s
    with tempfile.TemporaryDirectory() as parent:
        run = Path(parent) / "run"
        also = ["quiet=true", "save_interval=1000", f"hydra.run.dir={run}"]
        subprocess.run([sys.executable, "train.py", *overrides, *also], cwd=REPOSITORY, check=True)
        peak_mib = measured.read_run(run).peak_mib["Memory/host_peak_rss_mib"]
        wall_s = json.loads((run / "summary.json").read_text())["wall_s"]
        commit = json.loads((run / "manifest.json").read_text())["git"]["commit"]
    return {
        **{"env": env, "num_envs": num_envs, "num_mini_batches": num_mini_batches, "network": network},
        "memory_mib": {name: (size or 0) / MIB for name, size in vars(predicted.device_bytes).items()},
        "measured_mib": peak_mib,
        "wall_s": predicted.wall_s._asdict(),
        "measured_s": wall_s,
        "commit": commit,
    }


def table(runs: list[dict[str, Any]]) -> str:
    """The table in docs/results/README.md, which a test compares with the committed result."""
    lines = [
        "| env | num_envs | mini-batches | network | MiB predicted (high) | measured | error "
        "| s predicted | measured | error |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    memory_errors, time_errors = [], []
    for run in runs:
        memory, peak_mib, wall_s, took_s = run["memory_mib"], run["measured_mib"], run["wall_s"], run["measured_s"]
        memory_errors.append(100 * (memory["likely"] / peak_mib - 1))
        time_errors.append(100 * (wall_s["likely"] / took_s - 1))
        lines.append(
            f"| {run['env']} | {run['num_envs']:,} | {run['num_mini_batches']} | {run['network']} "
            f"| {memory['likely']:,.0f} ({memory['high']:,.0f}) | {peak_mib:,.0f} | {memory_errors[-1]:+.1f} % "
            f"| {wall_s['likely']:.0f} | {took_s:.0f} | {time_errors[-1]:+.0f} % |"
        )
    under = sum(run["memory_mib"]["high"] < run["measured_mib"] for run in runs)
    lines += [
        "",
        f"Memory: error {_spread(memory_errors)}; `high` was too low in {under} of {len(runs)}. "
        f"Wall time: error {_spread(time_errors)}.",
    ]
    return "\n".join(lines)


def _spread(errors_percent: list[float]) -> str:
    sizes = [abs(error) for error in errors_percent]
    return f"{statistics.median(sizes):.1f} % in the median, {max(sizes):.1f} % at worst"


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Predicted against measured, memory and time."""
    figure = Figure(figsize=(10, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, predicted, measured_name, unit in zip(
        figure.subplots(1, 2), ("memory_mib", "wall_s"), ("measured_mib", "measured_s"), ("MiB", "s"), strict=True
    ):
        for env in sorted({run["env"] for run in runs}):
            of_env = [run for run in runs if run["env"] == env]
            x = [run[measured_name] for run in of_env]
            likely = [run[predicted]["likely"] for run in of_env]
            below = [run[predicted]["likely"] - run[predicted]["low"] for run in of_env]
            above = [run[predicted]["high"] - run[predicted]["likely"] for run in of_env]
            axes.errorbar(x, likely, yerr=[below, above], fmt="o", markersize=4, capsize=3, label=env)
        ends = axes.get_xlim()
        axes.plot(ends, ends, color="0.6", linewidth=1, zorder=0)
        axes.set_xlabel(f"measured ({unit})")
        axes.set_ylabel(f"predicted, low to high ({unit})")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.axes[0].set_title("whole process at its peak", fontsize="medium")
    figure.axes[1].set_title("wall time, start-up included", fontsize="medium")
    figure.savefig(path)


if __name__ == "__main__":
    if sys.argv[1:] == ["drawn"]:
        draw(json.loads(RESULT.read_text())["runs"], RESULT.with_suffix(".png"))
    else:
        main()
