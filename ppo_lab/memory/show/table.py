"""An estimate as a person or a script reads it; `ppo_lab.memory.show.pictures` draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ppo_lab.config import ExperimentConfig
from ppo_lab.memory.measure.measured import Comparison
from ppo_lab.memory.predict.calibration import Calibration, MeasuredRun
from ppo_lab.memory.predict.closed_form import formulas
from ppo_lab.memory.predict.estimate import Estimate, Known, need, verdict
from ppo_lab.memory.predict.hardware import Hardware
from ppo_lab.memory.predict.largest import LargestRun
from ppo_lab.memory.rows import MIB

UNKNOWN = "unknown"

LEGEND: dict[Known, str] = {
    "exact": "a closed form, equal to the bytes of the real tensors",
    "traced": "the learner itself, run on tensors without memory",
    "simulated": "that trace, put through a model of torch's allocator",
    "measured": "counted in the simulator, built on a CPU",
    "derived": "from the simulator's own formulas for a GPU, not yet confirmed on one",
    "calibrated": "from runs that were measured on such a device",
    "unknown": "never measured on such a device, or not asked for",
}


VERSION = 2
"""Of the JSON. 1 had neither `version` nor the keys of several ranks and scenes; every key of it means what it did."""


def table(estimate: Estimate) -> RenderableType:
    """The components, what they come to on the device, and whether that fits. For 100 columns, of ranks for 80."""
    components = _components(estimate) if estimate.rank is None else _components_of_ranks(estimate, estimate.rank)
    return Group(components, _on_device(estimate), _conclusion(estimate), _legend(estimate))


def conclusion(estimate: Estimate) -> str:
    """Whether it fits, in one sentence."""
    needs, hardware = estimate.device_bytes, estimate.hardware
    fits = verdict(needs, hardware.memory_bytes)
    who = f"Each of {estimate.processes} ranks" if estimate.processes > 1 and hardware.is_gpu else "The run"
    where = f"{hardware.name}, a card of its own" if who != "The run" else hardware.name
    return f"{who} {need(needs, hardware.memory_bytes)} on {where}; fits: {fits}."


def wall_time(estimate: Estimate) -> str | None:
    """How long the run takes, in one sentence; None where that is not known, and nothing is calibrated."""
    if estimate.wall_s is None:
        if estimate.calibration and (estimate.processes > 1 or estimate.scenes > 1):
            return "How long it takes is unknown: one process with one scene was calibrated."
        return None
    low, likely, high = map(as_time, estimate.wall_s)
    return f"It takes about {likely} ({low} to {high}) on {estimate.hardware.name}."


def as_time(seconds: float) -> str:
    """To two or three digits: "45 s", "12 min", "3.5 h"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


def unknowns(estimate: Estimate) -> list[str]:
    """What is not known of the whole device, and for each how to make it known."""
    hardware = estimate.hardware
    found = []
    if estimate.trace is None:
        found.append("beyond the closed forms, what the learner takes: without trace=false, estimate.py traces it.")
    if estimate.simulator_bytes is None:
        found.append(
            "the simulator, never counted for these settings: without trace=false, estimate.py counts it once."
        )
    if estimate.device_bytes.high is None:
        what = "the CUDA context and kernels" if hardware.is_gpu else "Python, torch and the simulator's code"
        likely = f"; about as on another processor ({estimate.calibration})" if estimate.calibration else ""
        found.append(f"{what}{likely}: on that machine, estimate.py calibrate=true measures it in minutes.")
    return found + list(estimate.notes)


def explanation(cfg: ExperimentConfig) -> RenderableType:
    """Every closed form of the learner's memory: what the term means, the formula, and the numbers put in."""
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 1, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column()
    for term in formulas(cfg):
        result = "" if term.bytes is None else f" bytes ({_mib(term.bytes)} MiB)"
        lines = (f"{term.meaning}.", f"= {term.formula}", f"= {term.numbers}{result}")
        grid.add_row(term.term, Group(*map(Text, lines)))
    return grid


def fits_table(card: Hardware, fits: Sequence[LargestRun], calibration: Calibration | None) -> RenderableType:
    """The largest runs that a card holds, and why the next larger ones do not fit."""
    title = f"The largest that {escape(card.name)} holds"
    rows = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    of_card = f"of\n{_mib(card.memory_bytes)}"
    for name in ("num_envs", "mini-\nbatches", "needs\nMiB", of_card, "the next", "needs\nMiB"):
        rows.add_column(name, justify="right", no_wrap=True)
    rows.add_column("and is stopped by")
    for fit in fits:
        following = "none" if fit.next_num_envs is None else f"{fit.next_num_envs:,} x {fit.next_num_mini_batches:,}"
        rows.add_row(
            f"{fit.num_envs:,}",
            f"{fit.num_mini_batches:,}",
            _mib(fit.need_bytes),
            f"{fit.need_bytes / fit.memory_bytes:.1%}",
            following,
            "" if fit.next_need_bytes is None else _mib(fit.next_need_bytes),
            fit.binding,
        )
    notes = ["Another num_mini_batches changes what is learned, not only what it needs."]
    if calibration:
        notes.append(f"What the process takes beyond them is in it: {calibration}.")
    else:
        notes.append(
            f"These are upper bounds: what the CUDA context takes on {card.name} is unknown."
            if card.is_gpu
            else "These are upper bounds: what the process itself takes is unknown."
        )
    return Group(rows, *map(Text, notes))


def comparison_table(
    comparisons: Sequence[Comparison], overhead_bytes: int | None, remembered_in: Path | None
) -> RenderableType:
    """Predicted beside measured."""
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    rows.add_column("at the peak")
    for name in ("predicted, bytes", "measured, bytes", "error"):
        rows.add_column(name, justify="right")
    for one in comparisons:
        figures = f"{one.predicted_bytes:,}", f"{one.measured_bytes:,}", f"{one.error_percent:+.2f} %"
        rows.add_row(one.name, *figures)
    if not comparisons:
        rows.add_row("nothing that was measured had been predicted", "", "", "")
    if overhead_bytes is None:
        note = "What the run held beyond the prediction is unknown"
    else:
        note = f"Beyond the learner's tensors and the simulator, the run held {_mib(overhead_bytes)} MiB"
    return Group(rows, Text(f"{note}{f'; remembered in {remembered_in}' if remembered_in else ''}."))


def calibration_table(runs: Sequence[MeasuredRun], file: Path) -> RenderableType:
    """What was measured, and where it is remembered. For 80 columns."""
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    rows.add_column("env", no_wrap=True)
    for name in ("num_envs", "peak\nMiB", "beyond\nformulas", "start-up\ns", "iteration\ns", "steps/s"):
        rows.add_column(name, justify="right", no_wrap=True)
    rows.add_column("kernels", no_wrap=True)
    for run in runs:
        iteration_s = run.collection_s + run.learning_s
        figures = (
            f"{run.num_envs:,}",
            f"{run.peak_bytes / MIB:,.0f}",
            f"{(run.peak_bytes - run.known_bytes) / MIB:,.0f}",
            f"{run.startup_s:.0f}",
            f"{iteration_s:.2f}",
            f"{run.num_envs * run.num_steps_per_env / iteration_s:,.0f}",
        )
        rows.add_row(run.env, *figures, "anew" if run.is_cold else "cached")
    return Group(rows, Text(f"Remembered in {file}", overflow="fold"))


def as_json(estimate: Estimate) -> dict[str, Any]:
    """The estimate in JSON's terms, the trace's events left out. The keys are stable."""
    left_out = ("rows", "hardware", "trace", "rank")
    fields = {name: value for name, value in vars(estimate).items() if name not in left_out}
    hardware, trace = estimate.hardware, estimate.trace
    return fields | {
        "version": VERSION,
        "rank": estimate.rank and as_json(estimate.rank),
        "device_bytes": asdict(estimate.device_bytes),
        "host_bytes": estimate.host_bytes and asdict(estimate.host_bytes),
        "wall_s": estimate.wall_s and estimate.wall_s._asdict(),
        "notes": list(estimate.notes),
        "hardware": {
            "name": hardware.name,
            "memory_bytes": hardware.memory_bytes,
            "compute_capability": hardware.compute_capability,
            "multiprocessors": hardware.multiprocessors,
        },
        "rows": [asdict(row) for row in estimate.rows],
        "alive_at_rollout_peak": trace and trace.alive_at_rollout_peak,
        "alive_at_update_peak": trace and trace.alive_at_update_peak,
    }


def _components(estimate: Estimate) -> Table:
    title = f"{estimate.transitions:,} transitions, in mini-batches of {estimate.mini_batch_size:,}"
    rows = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    rows.add_column("component")
    rows.add_column("shape or formula")
    rows.add_column("bytes", justify="right", no_wrap=True)
    rows.add_column("MiB", justify="right", no_wrap=True)
    rows.add_column("how known", no_wrap=True)
    for row in estimate.rows:
        size = UNKNOWN if row.bytes is None else f"{row.bytes:,}"
        rows.add_row(Text(row.name), Text(row.formula), size, _mib(row.bytes), row.known)
    return rows


def _components_of_ranks(estimate: Estimate, rank: Estimate) -> Table:
    """What each rank holds, and all of them."""
    title = (
        f"{estimate.processes} ranks, each with {rank.transitions:,} transitions in mini-batches of "
        f"{rank.mini_batch_size:,}"
    )
    rows = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    rows.add_column("component")
    rows.add_column("shape or formula, a rank")
    rows.add_column("a rank\nMiB", justify="right", no_wrap=True)
    rows.add_column(f"{estimate.processes} ranks\nMiB", justify="right", no_wrap=True)
    rows.add_column("how known", no_wrap=True)
    for one, every in zip(rank.rows, estimate.rows, strict=True):
        rows.add_row(Text(one.name), Text(one.formula), _mib(one.bytes), _mib(every.bytes), one.known)
    return rows


def _on_device(estimate: Estimate) -> Table:
    hardware = estimate.hardware
    title = f"On {escape(hardware.name)}, MiB"
    figures = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    figures.add_column("at the peak")
    for name in ("low", "likely", "high", f"of its {_mib(hardware.memory_bytes)} MiB"):
        figures.add_column(name, justify="right", no_wrap=True)

    def row(name: str, size: int | None, is_least: bool = False) -> None:
        share = UNKNOWN if size is None else f"{'at least ' if is_least else ''}{size / hardware.memory_bytes:.1%}"
        figures.add_row(name, *((_mib(size), "") if is_least else ("", _mib(size))), "", share)

    is_least = estimate.trace is None
    row("allocated", estimate.least_learner_bytes if is_least else estimate.allocated_peak_bytes, is_least)
    if hardware.is_gpu:
        row("reserved", estimate.least_learner_bytes if is_least else estimate.reserved_peak_bytes, is_least)
    row("simulator", estimate.simulator_bytes)
    whole = estimate.device_bytes
    prefix = "at least " if whole.high is None else "up to "
    of_card = f"{prefix}{whole.needed / hardware.memory_bytes:.1%}"
    figures.add_row("whole device", _mib(whole.low), _mib(whole.likely), _mib(whole.high), of_card, style="bold")
    return figures


def _conclusion(estimate: Estimate) -> RenderableType:
    style = {True: "bold green", False: "bold red", None: "bold"}[estimate.fits]
    lines: list[RenderableType] = [Text(conclusion(estimate), style=style)]
    if takes := wall_time(estimate):
        lines.append(Text(takes))
    if estimate.calibration and estimate.fits is not None:
        lines.append(Text(f"Calibrated by {estimate.calibration}."))
    if estimate.fits is None:
        lines += [Text("Not known:"), *(Padding(Text(one), (0, 0, 0, 2)) for one in unknowns(estimate))]
    return Group(*lines)


def _legend(estimate: Estimate) -> RenderableType:
    words = Table(box=None, show_header=False, pad_edge=False)
    used = {row.known for row in estimate.rows}
    if estimate.device_bytes.high is None:
        used.add("unknown")
    for known, meaning in LEGEND.items():
        if known in used:
            words.add_row(known, meaning)
    return Padding(words, (1, 0, 0, 0))


def _mib(size: int | None) -> str:
    """In MiB. A size above 0 that rounds to 0.0 is shown as "< 0.1"."""
    if size is None:
        return UNKNOWN
    return "< 0.1" if 0 < size < 0.05 * MIB else f"{size / MIB:,.1f}"
