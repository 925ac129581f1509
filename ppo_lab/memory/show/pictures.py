"""An estimate to look at. Loads matplotlib, so it is imported only to draw."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ppo_lab.config import ExperimentConfig
from ppo_lab.memory.predict.allocator import AllocatorSettings, Replay, cublas_workspace_bytes, replay
from ppo_lab.memory.predict.estimate import Estimate
from ppo_lab.memory.predict.trace import Allocation, Trace
from ppo_lab.memory.rows import MIB
from ppo_lab.memory.show import palette

LAYERS = {
    "parameters": ("parameters", palette.GREEN),
    "optimizer": ("optimizer state", palette.TEAL),
    "gradients": ("gradients", palette.PALE_GREY),
    "env": ("env's tensors", palette.OLIVE),
    "episodes": ("episode statistics", palette.WINE),
    "storage": ("rollout storage", palette.SAND),
    "mini_batch": ("mini-batch", palette.ROSE),
    "activations": ("saved activations", palette.CYAN),
    "temporary": ("temporary", palette.INDIGO),
}
"""Category of a trace -> label and colour, from the bottom of the stack: what stays, then what comes and goes."""

NAME_LENGTH = 24
"""Of a line in a card's name, in characters."""

STRETCHES = 1200
"""As many moments of an iteration as the picture is wide enough to show."""


@dataclass(frozen=True)
class Course:
    """What is alive over the reported iteration: in each stretch of it, at the moment that holds most."""

    starts: NDArray[np.int64]
    """Numbers of events before each stretch."""
    alive: dict[str, NDArray[np.int64]]
    """Category -> bytes at each stretch's fullest moment, in the order of the stack."""


def course(trace: Trace, stretches: int = STRETCHES) -> Course:
    """Cuts rollout and update into about so many stretches; none lies in both."""
    alive = _alive(trace)
    (start, middle), (_, stop) = trace.rollout, trace.update
    cuts = np.linspace(start, stop + 1, stretches + 1).astype(np.int64)
    starts = np.unique(np.append(cuts, middle))
    totals = alive.sum(axis=1)
    fullest = [first + int(totals[first:end].argmax()) for first, end in pairwise(starts)]
    return Course(starts[:-1], dict(zip(LAYERS, alive[fullest].T, strict=True)))


def draw_iteration(
    cfg: ExperimentConfig, estimate: Estimate, path: Path, settings: AllocatorSettings | None = None
) -> Figure:
    """Draws what is alive over the course of one iteration, by category, and on a GPU what is reserved.

    Returns what it saved.

    Args:
        cfg: the experiment.
        estimate: of that experiment, with a trace.
        path: the picture; its ending decides the format.
        settings: the allocator's; None for torch's defaults.
    """
    trace, algorithm = estimate.trace, cfg.algorithm
    assert trace, "there is no picture of what was not traced"
    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlim(0, trace.update[1] - trace.rollout[0])
    _draw_stack(figure, axes, trace)
    _mark_phases(
        axes,
        trace,
        f"rollout: {cfg.num_steps_per_env} steps",
        f"update: {algorithm.num_learning_epochs} epochs x {algorithm.num_mini_batches} mini-batches",
    )
    if estimate.hardware.is_gpu:
        workspace_bytes = cublas_workspace_bytes(estimate.hardware.compute_capability_major, cfg.deterministic)
        _draw_reserved(axes, trace, replay(trace.events, settings, workspace_bytes, trace.matmul_starts))
    axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
    axes.set_xlabel("allocations and frees since the iteration began (order, not time)")
    axes.set_ylabel("MiB")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"Memory of one iteration: {cfg.env.name}, {cfg.num_envs:,} envs x {cfg.num_steps_per_env} steps, "
        f"{algorithm.num_mini_batches} mini-batches of {cfg.mini_batch_size:,}"
    )
    figure.savefig(path, dpi=150)
    return figure


def draw_map(needs: Mapping[tuple[int, int], int], cards: Mapping[str, int], title: str, path: Path) -> Figure:
    """Draws what every size of a run needs, and where it grows out of each card. Returns what it saved.

    Args:
        needs: (num_envs, num_mini_batches) -> bytes, for two or more of each. Those that cannot be are missing.
        cards: name -> bytes.
        title: what was kept fixed.
        path: the picture; its ending decides the format.
    """
    all_envs, all_mini_batches = (sorted(set(values)) for values in zip(*needs, strict=True))
    grid = np.full((len(all_mini_batches), len(all_envs)), np.nan)
    for (num_envs, num_mini_batches), size in needs.items():
        grid[all_mini_batches.index(num_mini_batches), all_envs.index(num_envs)] = size / MIB
    names = [line for name in cards for line in textwrap.wrap(name, NAME_LENGTH)]
    names_inches = 0.06 * max(map(len, names), default=0)
    width_inches, height_inches = max(7, 1.5 + len(all_envs)), 1.5 + 0.6 * len(all_mini_batches)
    figure = Figure(figsize=(width_inches + names_inches, height_inches + names_inches), layout="constrained")
    axes = figure.add_subplot()
    norm = LogNorm(np.nanmin(grid), np.nanmax(grid))
    cells = axes.pcolormesh(grid, cmap="cividis", norm=norm, edgecolors="white", linewidth=0.5)
    for (row, column), size in np.ndenumerate(grid):
        if not np.isnan(size):
            cell = {"facecolor": cells.to_rgba(size), "edgecolor": "none", "pad": 1.5}
            text = axes.text(column + 0.5, row + 0.5, f"{size:,.0f}", ha="center", va="center", bbox=cell)
            text.set_color("white" if norm(size) < 0.5 else "black")
    _draw_limits(axes, grid, {name: size / MIB for name, size in cards.items()})
    axes.set_xticks(np.arange(len(all_envs)) + 0.5, [f"{n:,}" for n in all_envs])
    axes.set_yticks(np.arange(len(all_mini_batches)) + 0.5, [f"{n:,}" for n in all_mini_batches])
    axes.set_xlabel("num_envs")
    axes.set_ylabel("num_mini_batches")
    axes.tick_params(length=0)
    what = "MiB needed at least on the device, and where each card is full"
    lines = [*textwrap.wrap(title, round(10 * width_inches)), what]
    figure.suptitle("\n".join(lines), parse_math=False)
    figure.savefig(path, dpi=150)
    return figure


def _draw_stack(figure: Figure, axes: Axes, trace: Trace) -> None:
    """The course of the iteration, with a legend in the stack's order."""
    found = course(trace)
    edges = np.append(found.starts, trace.update[1]) - trace.rollout[0]
    layers = [np.append(sizes, sizes[-1]) / MIB for sizes in found.alive.values()]
    colours = [colour for _, colour in LAYERS.values()]
    areas = axes.stackplot(edges, layers, colors=colours, step="post", linewidth=0)
    at_peak = max((trace.alive_at_rollout_peak, trace.alive_at_update_peak), key=lambda alive: sum(alive.values()))
    shown = [
        (area, f"{_aligned(at_peak.get(category, 0))}  {label}")
        for area, (category, (label, _)) in zip(areas, LAYERS.items(), strict=True)
        if found.alive[category].any()
    ]
    handles, labels = zip(*reversed(shown), strict=True)
    figure.legend(handles, labels, loc="outside right upper", title="MiB at the peak", frameon=False)


def _mark_phases(axes: Axes, trace: Trace, *names: str) -> None:
    """Rollout and update, each with its peak."""
    start = trace.rollout[0]
    totals = _alive(trace).sum(axis=1)
    for phase, (first, last) in {"rollout": trace.rollout, "update": trace.update}.items():
        fullest = first + int(totals[first : last + 1].argmax())
        peak_mib = totals[fullest] / MIB
        axes.plot(fullest - start, peak_mib, "o", color="black", markersize=4, clip_on=False)
        _label(axes, f"{phase}'s peak: {peak_mib:,.1f} MiB", fullest - start, peak_mib)
    axes.axvline(trace.update[0] - start, color="black", linewidth=0.8, linestyle=":")
    above = axes.secondary_xaxis("top")
    above.set_xticks([sum(phase) / 2 - start for phase in (trace.rollout, trace.update)], names)
    above.tick_params(length=0)
    above.spines["top"].set_visible(False)


def _draw_reserved(axes: Axes, trace: Trace, replayed: Replay) -> None:
    start, stop = trace.rollout[0], trace.update[1]
    reserved = np.array(replayed.reserved[start : stop + 1]) / MIB
    axes.step(range(len(reserved)), reserved, where="post", color="black", linewidth=1.2)
    text = f"reserved by torch's allocator, workspaces included (simulated): {reserved[-1]:,.1f} MiB"
    _label(axes, text, stop - start, reserved[-1])


def _draw_limits(axes: Axes, grid: NDArray[np.float64], cards: Mapping[str, float]) -> None:
    """A line for each card through the sizes that just fill it, with its name at the upper end.

    `grid` and `cards` in MiB. The logarithms of the needs are interpolated between the cells' centres, and go on as
    they were from there to the edges. A card that holds all sizes or none has no line.
    """
    needs = np.ma.masked_invalid(_to_the_edges(_to_the_edges(np.log(grid)).T).T)
    y, x = (np.array([0, *(np.arange(n) + 0.5), n]) for n in grid.shape)
    for name, size in cards.items():
        if not needs.min() < np.log(size) < needs.max():
            continue
        axes.contour(x, y, needs, levels=[np.log(size)], colors="white", linewidths=4)
        line = axes.contour(x, y, needs, levels=[np.log(size)], colors="black", linewidths=1.5)
        vertices = np.array(line.get_paths()[0].vertices, dtype=float)
        end_x, end_y = vertices[np.lexsort(vertices.T)[-1]]
        leaves_at_right = end_x == x[-1]
        axes.annotate(
            "\n".join(textwrap.wrap(name, NAME_LENGTH)),
            (end_x, end_y),
            xytext=(5, 0) if leaves_at_right else (0, 5),
            textcoords="offset points",
            va="center" if leaves_at_right else "baseline",
            rotation=0 if leaves_at_right else 45,
            rotation_mode="anchor",
            parse_math=False,
        )


def _to_the_edges(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Adds a first and a last row, each half a step further."""
    first, last = 1.5 * rows[0] - 0.5 * rows[1], 1.5 * rows[-1] - 0.5 * rows[-2]
    return np.concatenate([first[None], rows, last[None]])


def _alive(trace: Trace) -> NDArray[np.int64]:
    """Bytes alive after each number of events, (events + 1, layers)."""
    column = {category: number for number, category in enumerate(LAYERS)}
    changes = np.zeros((len(trace.events) + 1, len(LAYERS)), np.int64)
    held: dict[int, tuple[int, int]] = {}
    for number, event in enumerate(trace.events, start=1):
        match event:
            case Allocation(block, size_bytes, category):
                held[block] = column[category], size_bytes
                changes[number, column[category]] = size_bytes
            case _:
                layer, size_bytes = held.pop(event.block)
                changes[number, layer] = -size_bytes
    return changes.cumsum(axis=0)


def _label(axes: Axes, text: str, x: float, y: float) -> None:
    """Writes above a point, to the side where there is room."""
    side = "left" if x < 0.7 * axes.get_xlim()[1] else "right"
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    axes.annotate(text, (x, y), xytext=(4 if side == "left" else -4, 7), textcoords="offset points", ha=side, bbox=box)


def _aligned(size_bytes: int) -> str:
    """MiB, padded with spaces as wide as a digit."""
    return f"{size_bytes / MIB:,.1f}".rjust(6, "\N{FIGURE SPACE}")
