"""Draws runs side by side, from their folders alone, one line a run:

python benchmarks/plot_runs.py OUT.png RUN [RUN ...]
"""

import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ppo_lab.runs.record import number, read

PANELS = {
    "mean reward": "Train/mean_reward",
    "mean episode length (steps)": "Train/mean_episode_length",
    "steps per second": "Perf/total_fps",
    "host memory, resident (MiB)": "Memory/host_rss_mib",
}
"""Title -> tag."""
FROM_ZERO = {"Train/mean_episode_length", "Perf/total_fps", "Memory/host_rss_mib"}
"""Axes whose zero means something, and must be seen."""


def main(out: Path, runs: list[Path]) -> None:
    figure = Figure(figsize=(13, 3.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for run in runs:
        draw(figure, run)
    figure.legend(loc="outside lower center", ncols=len(runs), frameon=False)
    figure.savefig(out)


def draw(figure: Figure, run: Path) -> None:
    """Adds one run to the panels, which the first run makes. A value that an iteration lacks is a gap."""
    record = read(run)
    wall_s = number(record.summary.get("wall_s"))
    time = "" if wall_s is None else f" in {wall_s:.0f} s"
    label = f"{run.resolve().name}: {len(record.metrics)} iterations{time}"
    panels = figure.axes or list(figure.subplots(1, len(PANELS)))
    for axes, (title, tag) in zip(panels, PANELS.items(), strict=True):
        axes.plot(
            [row["iteration"] for row in record.metrics],
            [float("nan") if (value := number(row.get(tag))) is None else value for row in record.metrics],
            label=label if axes is panels[0] else None,
        )
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("iteration")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if tag in FROM_ZERO:
            axes.set_ylim(0, 1.1 * axes.dataLim.y1)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
