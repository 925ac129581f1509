"""Curves of groups of runs that differ in their seeds alone: each group's mean and range, side by side.

python benchmarks/compare_seeds.py OUT.png OUT.json NAME=FOLDER NAME=FOLDER ...     # FOLDER holds the runs of a group

One column for each env. The JSON has, of each group and env, the mean over seeds and the range at the last iteration.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ppo_lab.runs.files import write_json
from ppo_lab.runs.folder import find_runs
from ppo_lab.runs.record import number, read

TAGS = {"Train/mean_reward": "mean reward", "Train/mean_episode_length": "mean episode length (steps)"}
COLORS = ("#4477AA", "#EE6677", "#228833", "#CCBB44")
"""Paul Tol's bright colours, which people with colour-blindness can tell apart."""

Curves = dict[str, dict[str, NDArray[np.float64]]]
"""Env -> tag -> (seeds, iterations); nan before an episode has ended."""


def curves_of(folder: Path) -> Curves:
    rows: defaultdict[str, defaultdict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for run in find_runs(folder):
        record = read(run)
        for tag in TAGS:
            values = [number(row.get(tag)) for row in record.metrics]
            rows[record.config["env"]["name"]][tag].append([np.nan if value is None else value for value in values])
    return {env: {tag: np.array(curves) for tag, curves in tags.items()} for env, tags in rows.items()}


def draw(groups: dict[str, Curves], out: Path) -> None:
    envs = sorted({env for curves in groups.values() for env in curves})
    figure = Figure(figsize=(5 * len(envs), 6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(TAGS), len(envs), squeeze=False)
    for column, env in enumerate(envs):
        for row, (tag, title) in enumerate(TAGS.items()):
            axes = panels[row][column]
            for color, (name, curves) in zip(COLORS, groups.items(), strict=False):
                seeds = curves[env][tag]
                there = ~np.isnan(seeds).all(axis=0)
                iterations = np.flatnonzero(there)
                label = f"{name}: mean and range of {len(seeds)} seeds"
                axes.plot(iterations, np.nanmean(seeds[:, there], axis=0), color=color, label=label)
                low, high = np.nanmin(seeds[:, there], axis=0), np.nanmax(seeds[:, there], axis=0)
                axes.fill_between(iterations, low, high, color=color, alpha=0.2, linewidth=0)
            axes.set_title(f"{env}: {title}", fontsize="medium")
            axes.set_xlabel("iteration")
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(envs), frameon=False)
    figure.savefig(out)


def ends(groups: dict[str, Curves]) -> dict[str, Any]:
    """Of each env, tag and group, what the last iteration came to: every seed, their mean and range."""
    return {
        env: {
            tag: {
                name: {
                    "seeds": seeds[:, -1].round(4).tolist(),
                    "mean": round(float(np.nanmean(seeds[:, -1])), 4),
                    "range": [round(float(np.nanmin(seeds[:, -1])), 4), round(float(np.nanmax(seeds[:, -1])), 4)],
                }
                for name, curves in groups.items()
                if (seeds := curves[env][tag]).size
            }
            for tag in TAGS
        }
        for env in sorted({env for curves in groups.values() for env in curves})
    }


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    found = {
        name: curves_of(Path(folder)) for name, _, folder in (argument.partition("=") for argument in sys.argv[3:])
    }
    draw(found, Path(sys.argv[1]))
    write_json(Path(sys.argv[2]), ends(found))
