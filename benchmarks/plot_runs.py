"""Draws runs side by side, from their metrics.jsonl and summary.json alone, one line a run:

python benchmarks/plot_runs.py OUT.png RUN [RUN ...]
"""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
    summary = json.loads((run / "summary.json").read_text())
    rows: list[dict[str, Any]] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    label = f"{run.resolve().name}: {summary['iterations']} iterations in {summary['wall_s']:.0f} s"
    panels = figure.axes or list(figure.subplots(1, len(PANELS)))
    for axes, (title, tag) in zip(panels, PANELS.items(), strict=True):
        axes.plot(
            [row["iteration"] for row in rows],
            [row.get(tag, float("nan")) for row in rows],
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
    main(Path(sys.argv[1]), [Path(word) for word in sys.argv[2:]])
