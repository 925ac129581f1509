"""A sweep to look at. Loads matplotlib, so it is imported only to draw."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray
from PIL import Image

from ppo_lab.memory import rows
from ppo_lab.memory.show import palette
from ppo_lab.report.job_results import JobResult, Value
from ppo_lab.report.results import Configuration, Results, as_set, in_order, known, mean, rounded

COLOURS = (
    *(palette.INDIGO, palette.ROSE, palette.GREEN, palette.SAND, palette.CYAN),
    *(palette.WINE, palette.TEAL, palette.OLIVE, palette.PURPLE),
)

GREY = "#999999"

ROWS = {name: rows.ROWS[name].label for name in rows.STANDS_FOR_A_RUN}
"""Memory row -> what it is, in words."""

SIZE_KEYS = ("num_envs", "algorithm.num_mini_batches")
"""The keys of the heat maps, where both are swept."""

Course = Callable[[JobResult], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Of a run: what to draw its reward over, and the reward, where there is one."""


LINE_LENGTH = 110
"""Characters that fit beside each other in a picture."""

NAME_LENGTH = 32
"""Characters in a line beside an axis."""

VALUE_LENGTH = 120
"""Of a setting: longer ones are cut."""

FILE_WORD_LENGTH = 40

PALETTE_SIZE = 128
"""Of a picture: enough for flat lines and bands, and a third of the bytes, as reports are passed on."""


@dataclass(frozen=True)
class Picture:
    """A drawing and what to say beside it."""

    png: bytes
    title: str
    caption: str
    env: str = ""
    """Whose runs it is about; "" where there is one env."""

    def save(self, file: IO[bytes]) -> None:
        file.write(self.png)


def draw(results: Results) -> dict[str, Picture]:
    """File name -> picture, of each env its own; those for which there is nothing to draw are left out."""
    return {
        f"{name}{f'_{_file_word(env)}' if env else ''}.png": replace(picture, env=env)
        for env, part in results.by_env.items()
        for name, picture in _draw(part).items()
    }


def _file_word(env: str) -> str:
    """An env's name in letters that any system takes."""
    return re.sub(r"[^A-Za-z0-9-]+", "_", env)[:FILE_WORD_LENGTH]


def _draw(results: Results) -> dict[str, Picture]:
    pictures = {}
    if results.has_reward:
        how = "Lines are means over completed runs, bands reach from the lowest to the highest seed; "
        how += "a run that was not completed is dashed, and one that has a single reward is a point."
        pictures["reward_over_steps"] = Picture(
            _png(draw_rewards(results, over_steps, "transitions")), "Reward over steps", how
        )
        pictures["reward_over_time"] = Picture(
            _png(draw_rewards(results, over_time, "training time (s)")),
            "Reward over time",
            f"{how} Time is the run's own clock, collecting and learning, without start-up.",
        )
    pictures["memory"] = Picture(_png(draw_memory(results)), "Memory, predicted and measured", _memory_caption(results))
    if any(one.completed for one in results.configurations) and results.configurations[0].settings:
        keys = size_keys(results)
        pictures["sizes"] = Picture(
            _png(draw_sizes(results, keys)),
            f"Speed and memory over {' and '.join(results.short_names[key] for key in keys) or 'runs'}",
            "Means over the completed runs of each size; blank where there is none."
            if keys
            else "Each point is a completed run.",
        )
    if any(results.reward_memory_time(one) for one in results.configurations):
        pictures["pareto"] = Picture(
            _png(draw_pareto(results)),
            "Reward, memory and time",
            "Settings with a letter are beaten by no other in reward, memory and time at once; grey ones are. "
            "Bars reach from the lowest to the highest seed.",
        )
    return pictures


def over_steps(job: JobResult) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    per_iteration = job.run.transitions_per_iteration or math.nan
    return np.arange(1.0, job.iterations + 1) * per_iteration, job.run.reward


def over_time(job: JobResult) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return job.run.time_s, job.run.reward


def band(curves: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> tuple[NDArray[np.float64], ...]:
    """x, mean, lowest and highest of curves (x, y), over the x that all of them have. Gaps are bridged.

    Where the curves do not share their x, y is interpolated linearly on those of the first.
    """
    finite = [(x[np.isfinite(y)], y[np.isfinite(y)]) for x, y in curves]
    first, last = max(x[0] for x, _ in finite), min(x[-1] for x, _ in finite)
    common = finite[0][0]
    common = common[(common >= first) & (common <= last)]
    rewards = np.array([np.interp(common, x, y) for x, y in finite])
    return common, rewards.mean(axis=0), rewards.min(axis=0), rewards.max(axis=0)


def draw_rewards(results: Results, course: Course, label: str) -> Figure:
    """A line a configuration; with several keys swept, a panel for each value of the one that has fewest."""
    panel_key, panels = _panels(results)
    rest = [key for key in results.configurations[0].settings if key != panel_key]

    def name_of(one: Configuration) -> str:
        return one.label if results.are_named else _label(one, rest, results.short_names)

    names = list(dict.fromkeys(map(name_of, results.configurations)))
    labels = list(names) if rest else []
    if results.threshold is not None:
        labels.append(f"threshold {rounded(results.threshold)}")
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    figure = _figure(12, (3.6 if lines == 1 else 3.2 * lines) + _legend_height(labels))
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    colours = dict(zip(names, _colours(len(names)), strict=True))
    for axes, (value, configurations) in zip(grid.flat, panels.items(), strict=False):
        for one in configurations:
            _draw_course(axes, one, course, colours[name_of(one)])
        if panel_key:
            title = f"{results.short_names[panel_key]} = {_value(value)}"
            axes.set_title(_plain(_wrapped(title, LINE_LENGTH // columns)), fontsize="medium")
        if results.threshold is not None:
            axes.axhline(results.threshold, color="black", linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_formatter(_thousands)
        axes.tick_params(labelbottom=True)
    grid[0, 0].set_xlim(left=0)  # shared, so only once all is drawn
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("mean reward")
    for axes in grid[-1]:
        axes.set_xlabel(label)
    handles = [Line2D([], [], color=colour, linewidth=2) for colour in colours.values()] if rest else []
    if results.threshold is not None:
        handles.append(Line2D([], [], color="black", linewidth=0.8, linestyle=":"))
    _draw_legend(figure, handles, labels)
    return figure


def draw_memory(results: Results) -> Figure:
    """Predicted against measured, or, where nothing was both, what there is."""
    both = [job for job in results.sweep.jobs if results.memory_error_percent(job) is not None]
    if not both:
        figure = _figure(12, 2.2)
        text = _memory_caption(results).replace(". ", ".\n")
        figure.text(0.5, 0.5, _plain(text), ha="center", va="center", fontsize="large", linespacing=1.6)
        return figure
    figure = _figure(12, 4.4)
    left, right = figure.subplots(1, 2)
    predicted = np.array([results.predicted_mib(job) for job in both], dtype=np.float64)
    measured = np.array([results.measured_mib(job) for job in both], dtype=np.float64)
    errors = np.array([results.memory_error_percent(job) for job in both], dtype=np.float64)
    spread = max(predicted.max(), measured.max()) / min(predicted.min(), measured.min())
    for axes, y in ((left, predicted), (right, errors)):
        axes.plot(measured, y, "o", color=COLOURS[0], alpha=0.6, markersize=7, markeredgewidth=0)
        axes.set_xlabel("measured (MiB)")
        axes.grid(alpha=0.3)
        if spread > 10:
            axes.set_xscale("log")
    if spread > 10:
        left.set_yscale("log")
    ends = np.array([min(predicted.min(), measured.min()), max(predicted.max(), measured.max())])
    ends = ends * [0.9, 1.1]
    left.plot(ends, ends, color="black", linewidth=0.8, label="predicted = measured")
    left.legend(frameon=False, loc="upper left")
    left.set_ylabel("predicted (MiB)")
    right.axhline(0, color="black", linewidth=0.8)
    right.set_ylim(*(np.array([-1, 1]) * max(1.0, 1.2 * float(abs(errors).max()))))
    right.set_ylabel("error (%): above 0, more was predicted")
    for axes in (left, right):
        for axis in (axes.xaxis, axes.yaxis) if axes is left else (axes.xaxis,):
            axis.set_major_formatter("{x:,.10g}")
            axis.set_minor_formatter(NullFormatter())
    return figure


def size_keys(results: Results) -> tuple[str, ...]:
    """The one or two keys that speed and memory are drawn over; none where they are drawn run by run."""
    if results.are_named:
        return ()
    keys = tuple(results.configurations[0].settings)
    return SIZE_KEYS if set(SIZE_KEYS) <= set(keys) else keys[:2]


def draw_sizes(results: Results, keys: tuple[str, ...]) -> Figure:
    """Steps a second and memory: annotated heat maps over two keys, points and their means over one or no key."""
    quantities: dict[str, Callable[[JobResult], float | None]] = {"steps per second": lambda job: job.steps_per_s}
    if results.memory_row:
        quantities[f"{ROWS[results.memory_row]} (MiB)"] = results.measured_mib
    completed = [job for job in results.sweep.jobs if job.completed]
    if not keys:
        shown = [one for one in results.configurations if one.completed]
        figure = _figure(12, 1.2 + sum(0.18 * _lines(one.label, NAME_LENGTH) + 0.12 for one in shown))
        for axes, (title, of) in zip(
            np.atleast_1d(figure.subplots(1, len(quantities), sharey=True)), quantities.items(), strict=True
        ):
            _draw_by_name(axes, shown, of)
            axes.set_xlabel(title)
        return figure
    if len(keys) == 1:
        values_of_key = sorted({job.settings[keys[0]] for job in completed}, key=in_order)
        figure = _figure(12, 4 + 0.17 * _more_lines(values_of_key, _tick_length(values_of_key)))
        for axes, (title, of) in zip(
            np.atleast_1d(figure.subplots(1, len(quantities))), quantities.items(), strict=True
        ):
            _draw_over(axes, keys[0], completed, of)
            axes.set_xlabel(_plain(results.short_names[keys[0]]))
            axes.set_title(title, fontsize="medium")
        return figure
    values = [sorted({job.settings[key] for job in results.sweep.jobs}, key=in_order) for key in keys]
    row_inches = max(0.6, 0.18 * (1 + _more_lines(values[1], NAME_LENGTH)))
    below_inches = 0.17 * _more_lines(values[0], _tick_length(*values))
    figure = _figure(12, 2.2 + row_inches * len(values[1]) + below_inches)
    for axes, (title, of) in zip(np.atleast_1d(figure.subplots(1, len(quantities))), quantities.items(), strict=True):
        grid = np.full((len(values[1]), len(values[0])), np.nan)
        for row, column in np.ndindex(grid.shape):
            here = [
                job
                for job in completed
                if (job.settings[keys[0]], job.settings[keys[1]]) == (values[0][column], values[1][row])
            ]
            size = mean(here, of)
            grid[row, column] = math.nan if size is None else size
        _draw_map(axes, grid, values)
        axes.set_xlabel(_plain(results.short_names[keys[0]]))
        axes.set_ylabel(_plain(results.short_names[keys[1]]))
        axes.set_title(title, fontsize="medium")
    return figure


def draw_pareto(results: Results) -> Figure:
    """Reward over time and over memory; what no other beats in all three has a letter."""
    front = results.pareto_front
    labels = [f"{_letter(rank)}   {one.label}" for rank, one in enumerate(front)]
    figure = _figure(12, 4.2 + _legend_height(labels))
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, of in ((left, lambda job: job.training_s), (right, results.measured_mib)):
        for one in results.configurations:
            if results.reward_memory_time(one) is None:
                continue
            rank = front.index(one) if one in front else None
            _draw_point(axes, known(one.completed, of), known(one.completed, lambda job: job.final_reward), rank)
        axes.grid(alpha=0.3)
        axes.margins(0.08)
    left.set_ylabel("final reward")
    left.set_xlabel("training time (s)")
    right.set_xlabel(f"{ROWS[results.memory_row or '']} (MiB)")
    for axes in (left, right):
        axes.xaxis.set_major_formatter("{x:,.10g}")
    _draw_legend(figure, [Line2D([], [], linestyle="") for _ in labels], labels, handlelength=0)
    return figure


def _draw_course(axes: Axes, one: Configuration, course: Course, colour: str) -> None:
    with_reward = [job for job in one.jobs if job.final_reward is not None]
    completed = [course(job) for job in with_reward if job.completed]
    if completed:
        x, middle, low, high = band(completed)
        if x.size:
            _draw_line(axes, x, middle, color=colour, linewidth=1.6)
            _draw_band(axes, x, low, high, colour)
        else:  # no x that all of them have
            for curve in completed:
                _draw_line(axes, *curve, color=colour, linewidth=1.6)
    for job in with_reward:
        if not job.completed:
            _draw_line(axes, *course(job), color=colour, linewidth=1, linestyle="--")


def _draw_line(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], **style: Any) -> None:
    """Bridges gaps. A single point has a marker, as a line of one point cannot be seen."""
    there = np.isfinite(y)
    axes.plot(x[there], y[there], marker="o" if there.sum() == 1 else None, markersize=5, **style)


def _draw_band(
    axes: Axes, x: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64], colour: str
) -> None:
    if x.size == 1:
        axes.vlines(x, low, high, color=colour, alpha=0.4, linewidth=4)
    else:
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def _draw_over(axes: Axes, key: str, completed: Sequence[JobResult], of: Callable[[JobResult], float | None]) -> None:
    values = sorted({job.settings[key] for job in completed}, key=in_order)
    found = [
        [size for job in completed if job.settings[key] == value and (size := of(job)) is not None] for value in values
    ]
    for position, sizes in enumerate(found):
        axes.plot([position] * len(sizes), sizes, "o", color=COLOURS[0], alpha=0.5, markeredgewidth=0)
    means = [float(np.mean(sizes)) if sizes else math.nan for sizes in found]
    axes.plot(range(len(values)), means, color=COLOURS[0], linewidth=1.6)
    axes.set_xticks(range(len(values)), _ticks(values, _tick_length(values)))
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_ylim(0, 1.1 * max((size for sizes in found for size in sizes), default=1.0))
    axes.yaxis.set_major_formatter("{x:,.10g}")
    axes.grid(alpha=0.3)


def _draw_by_name(axes: Axes, configurations: Sequence[Configuration], of: Callable[[JobResult], float | None]) -> None:
    """A line for each configuration, with the values of its completed runs; the first is at the top."""
    for position, one in enumerate(configurations):
        sizes = [size for job in one.completed if (size := of(job)) is not None]
        axes.plot(sizes, [position] * len(sizes), "o", color=COLOURS[0], alpha=0.5, markeredgewidth=0)
    names = [_plain(_wrapped(one.label, NAME_LENGTH)) for one in configurations]
    axes.set_yticks(range(len(configurations)), names)
    axes.set_ylim(len(configurations) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter("{x:,.10g}")
    axes.grid(alpha=0.3)


def _draw_map(axes: Axes, grid: NDArray[np.float64], values: Sequence[Sequence[Value | None]]) -> None:
    """`grid` of values[1] x values[0], a cell each, with its number in it."""
    shown = grid[np.isfinite(grid)]
    norm = Normalize(shown.min(), shown.max()) if shown.size else Normalize()
    axes.pcolormesh(grid, cmap="cividis", norm=norm, edgecolors="white", linewidth=0.5)
    for (row, column), size in np.ndenumerate(grid):
        if np.isfinite(size):
            colour = "white" if norm(size) < 0.5 else "black"
            axes.text(column + 0.5, row + 0.5, rounded(size), ha="center", va="center", color=colour)
    axes.set_xticks(np.arange(len(values[0])) + 0.5, _ticks(values[0], _tick_length(*values)))
    axes.set_yticks(np.arange(len(values[1])) + 0.5, _ticks(values[1], NAME_LENGTH))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_point(axes: Axes, x: Sequence[float], y: Sequence[float], rank: int | None) -> None:
    """`rank`: among those that no other beats; None elsewhere."""
    colour = GREY if rank is None else COLOURS[0]
    centre = float(np.mean(x)), float(np.mean(y))
    reach_x, reach_y = ([[m - min(v)], [max(v) - m]] for m, v in zip(centre, (x, y), strict=True))
    axes.errorbar(*centre, xerr=reach_x, yerr=reach_y, color=colour, linewidth=1, alpha=0.6, zorder=1)
    if rank is None:
        axes.plot(*centre, "o", color=colour, markersize=6, zorder=2)
    else:
        axes.plot(*centre, "o", color=colour, markersize=15, zorder=4 + rank, markeredgecolor="white")
        axes.annotate(
            _letter(rank), centre, ha="center", va="center", color="white", fontsize="small", zorder=4.5 + rank
        )


def _panels(results: Results) -> tuple[str | None, Mapping[Value | None, list[Configuration]]]:
    """The key that has a panel for each of its values, and what goes into each."""
    keys = list(results.configurations[0].settings)
    if len(keys) < 2 or results.are_named:
        return None, {None: list(results.configurations)}
    counts = {key: len({one.settings[key] for one in results.configurations}) for key in keys}
    panel_key = min(keys, key=lambda key: counts[key])
    panels: dict[Value | None, list[Configuration]] = {}
    for one in sorted(results.configurations, key=lambda one: in_order(one.settings[panel_key])):
        panels.setdefault(one.settings[panel_key], []).append(one)
    return panel_key, panels


def _memory_caption(results: Results) -> str:
    row = results.memory_row
    errors = [error for job in results.sweep.jobs if (error := results.memory_error_percent(job)) is not None]
    if errors:
        return (
            f"Each point is a run: Memory/{row}_mib at its highest, against what was predicted for that row. "
            f"The largest error is {max(errors, key=abs):+.2f} %."
        )
    if row is None:
        return "Nothing was measured. No run finished an iteration."
    predicted = sorted({name for job in results.sweep.jobs for name in job.run.predicted_bytes})
    peaks = [size for job in results.sweep.jobs if (size := results.measured_mib(job)) is not None]
    return (
        f"Nothing was both predicted and measured. Measured: {row}, {min(peaks):,.0f} to {max(peaks):,.0f} MiB. "
        f"Predicted: {', '.join(predicted) or 'nothing'}. "
        "On a CPU, tensors are measured only with memory.count_tensors=true."
    )


def _draw_legend(figure: Figure, handles: Sequence[Line2D], labels: Sequence[str], **style: Any) -> None:
    """Below all panels."""
    if labels:
        texts = [_plain(_wrapped(label, LINE_LENGTH)) for label in labels]
        columns = _legend_columns(labels)
        figure.legend(handles, texts, loc="outside lower center", ncols=columns, frameon=False, **style)


def _legend_columns(labels: Sequence[str]) -> int:
    """As many as fit below the panels."""
    return max(1, min(len(labels), 120 // (8 + max(map(len, labels)))))


def _legend_height(labels: Sequence[str]) -> float:
    """In inches."""
    if not labels:
        return 0.0
    rows = -(-len(labels) // _legend_columns(labels))
    return 0.1 + (0.08 + 0.17 * max(_lines(label, LINE_LENGTH) for label in labels)) * rows


def _letter(number: int) -> str:
    """A to Z, then AA, AB, ...: jobs have numbers, so settings have letters."""
    before, here = divmod(number, 26)
    return (_letter(before - 1) if before else "") + chr(ord("A") + here)


def _wrapped(text: str, length: int) -> str:
    """In lines of so many characters at most."""
    return "\n".join(textwrap.wrap(text, length, break_on_hyphens=False))


def _lines(text: str, length: int) -> int:
    return len(textwrap.wrap(text, length, break_on_hyphens=False))


def _label(one: Configuration, keys: Iterable[str], names: Mapping[str, str]) -> str:
    return ", ".join(f"{names[key]}={_value(one.settings[key])}" for key in keys)


def _value(value: Value | None) -> str:
    text = as_set(value)
    return text if len(text) <= VALUE_LENGTH else f"{text[: VALUE_LENGTH - 1]}\N{HORIZONTAL ELLIPSIS}"


def _tick(value: Value | None) -> str:
    return f"{value:,}" if isinstance(value, int) else _value(value)


def _ticks(values: Sequence[Value | None], length: int) -> list[str]:
    """Labels in lines of so many characters at most."""
    return [_plain(_wrapped(_tick(value), length)) for value in values]


def _tick_length(values: Sequence[Value | None], beside: Sequence[Value | None] = ()) -> int:
    """Of labels below one of two panels, in characters: as many as fit, with those `beside` the axis."""
    taken = max((min(len(_tick(value)), NAME_LENGTH) for value in beside), default=0)
    return max(8, (LINE_LENGTH // 2 - taken) // max(1, len(values)))


def _more_lines(values: Sequence[Value | None], length: int) -> int:
    """How many lines the tallest label has beyond its first."""
    return max((_lines(_tick(value), length) for value in values), default=1) - 1


def _plain(text: str) -> str:
    """Text that came from a folder, as it stands: matplotlib takes what is between two dollars for mathematics."""
    return text.replace("$", r"\$")


def _colours(count: int) -> Sequence[str]:
    if count <= len(COLOURS):
        return COLOURS[:count]
    return [to_hex(colour) for colour in matplotlib.colormaps["viridis"](np.linspace(0, 0.95, count))]


def _thousands(value: float, _: object) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Figure) -> bytes:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    small = io.BytesIO()
    Image.open(file).convert("RGB").quantize(PALETTE_SIZE).save(small, format="PNG", optimize=True)
    return small.getvalue()
