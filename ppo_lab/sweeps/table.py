"""Shows how far a sweep is: one live table, or plain lines where there is no terminal."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import rich
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ppo_lab.memory.rows import MIB, WHOLE_RUN, tag
from ppo_lab.runs.record import iteration_s, number, tail
from ppo_lab.sweeps.jobs import Job, Sweep
from ppo_lab.training.console import clock, say

MEASURED = tuple(map(tag, WHOLE_RUN))
"""What is set beside the prediction: the first of them that a run has."""
FIGURES = ("iteration", "left", "reward", "measured MiB", "predicted MiB")
"""Columns beside job and state, the most important first."""
MAY_BE_LEFT_OUT = 3
"""So many of the last figures are left out, one after the other, where the terminal is too narrow."""
JOB_WIDTH = 20
"""Characters in which a job's name can be read, on several lines; they are kept free before a figure is shown."""
FILE_WIDTH = 160
"""Of the last table, where it goes into a file."""
TABLE_EVERY_S, LINES_EVERY_S = 1.0, 30.0
STYLES = {"running": "bold", "completed": "green", "failed": "red", "killed": "red", "planned": "dim"}


@dataclass(frozen=True)
class Progress:
    """What a run's metrics.jsonl says at its end."""

    iterations: int
    """Completed."""
    s_per_iteration: float
    reward: float | None
    measured_mib: float | None


def read_progress(run: Path) -> Progress | None:
    """From the newest rows of a run folder's metrics.jsonl; None before the first iteration has ended."""
    rows = tail(run)
    if not rows:
        return None
    rewards = [reward for row in rows if (reward := number(row.get("Train/mean_reward"))) is not None]
    return Progress(
        iterations=rows[-1]["iteration"] + 1,
        s_per_iteration=statistics.fmean(map(iteration_s, rows)),
        reward=rewards[-1] if rewards else None,
        measured_mib=next((size for key in MEASURED if (size := number(rows[-1].get(key))) is not None), None),
    )


def left_s(jobs: list[Job], progress: dict[int, Progress], running_s: dict[int, float], slots: int) -> float | None:
    """Seconds until all is done; None before any job gave a rate.

    From the jobs that have iterated: the mean seconds per transition, and the mean time they took besides. What is
    left of each job is its transitions at that rate, and a start where it has none behind it; spread over `slots`.

    Args:
        jobs: of the sweep.
        progress: job number -> how far it is.
        running_s: job number -> seconds since a running job was started.
        slots: jobs at a time.
    """
    rated = [job for job in jobs if job.number in progress]
    if not rated:
        return None
    seconds = sum(progress[job.number].s_per_iteration for job in rated)
    s_per_transition = seconds / sum(job.transitions for job in rated)
    start_s = statistics.fmean(
        max(0.0, running_s.get(job.number, job.wall_s or 0.0) - _iterating_s(progress[job.number])) for job in rated
    )
    need_s = []
    for job in jobs:
        if job.status not in ("planned", "running"):
            continue
        if job.number in progress:
            known = progress[job.number]
            need_s.append((job.max_iterations - known.iterations) * known.s_per_iteration)
        else:
            start_left_s = max(0.0, start_s - running_s.get(job.number, 0.0))
            need_s.append(start_left_s + job.max_iterations * job.transitions * s_per_transition)
    return max(max(need_s, default=0.0), sum(need_s) / slots)


def _iterating_s(progress: Progress) -> float:
    return progress.iterations * progress.s_per_iteration


class SweepTable:
    """Shows the sweep while it runs. A context manager; `show` is to be called several times a second."""

    def __init__(self, sweep: Sweep, slots: int, console: Console | None = None) -> None:
        self.sweep = sweep
        self.console = console or rich.get_console()
        self._slots = slots
        self._progress: dict[int, Progress] = {}
        self._printed = {job.number: (job.status, job.message) for job in sweep.jobs}
        is_terminal = self.console.is_terminal
        self._live = Live(console=self.console, auto_refresh=False, transient=True) if is_terminal else None
        self._begun_s = self._shown_s = time.monotonic()
        self._since_s = {job.number: self._begun_s for job in sweep.jobs}
        self._read(list(sweep.jobs))

    def __enter__(self) -> SweepTable:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live:
            self._live.stop()

    def show(self) -> None:
        now_s = time.monotonic()
        changed = [job for job in self.sweep.jobs if self._printed[job.number] != (job.status, job.message)]
        for job in changed:
            self._printed[job.number] = (job.status, job.message)
            self._since_s[job.number] = now_s
        if not changed and now_s - self._shown_s < (TABLE_EVERY_S if self._live else LINES_EVERY_S):
            return
        self._shown_s = now_s
        running = [job for job in self.sweep.jobs if job.status == "running"]
        self._read(changed + running)
        if self._live:
            for job in changed:
                if job.is_waiting:
                    say(self.line(job))
            self._live.update(self.view(), refresh=True)
        else:
            for job in changed or running:
                say(self.line(job))
            say(self._total())

    def view(self) -> RenderableType:
        """As many jobs as fit the terminal, and the sweep's total."""
        rows, height = self.console.height, self.console.height - 1
        while True:
            table = self._table(_window(self.sweep.jobs, rows), self.console.width)
            view = Group(table, self._total())
            lines = len(self.console.render_lines(view, pad=False))
            if lines <= height or rows == 1:
                return view
            rows = max(1, min(rows - 1, rows * height // lines))

    def print_table(self) -> None:
        """Every job, for the end."""
        is_terminal = self.console.is_terminal
        console = self.console if is_terminal else Console(file=self.console.file, width=FILE_WIDTH)
        console.print(self._table(self.sweep.jobs, console.width))

    def _read(self, jobs: list[Job]) -> None:
        for job in jobs:
            found = read_progress(self.sweep.run_folder(job))
            if found:
                self._progress[job.number] = found

    def _table(self, jobs: list[Job], width: int) -> Table:
        """With the figures that the width has room for."""
        parts = [part for job in jobs for part in _name(job).split()]
        widest = "x" * min(JOB_WIDTH, max(map(len, parts), default=1))
        options = self.console.options.update(max_width=10_000)
        for left_out in range(MAY_BE_LEFT_OUT):
            table = self._build([(job, widest) for job in jobs], left_out)
            if Measurement.get(self.console, options, table).minimum <= width:
                break
        else:
            left_out = MAY_BE_LEFT_OUT
        return self._build([(job, f"{job.number} {_name(job)}") for job in jobs], left_out)

    def _build(self, rows: list[tuple[Job, str]], left_out: int) -> Table:
        """A row for each job and its name, without the last `left_out` figures."""
        shown = FIGURES[: len(FIGURES) - left_out]
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
        table.add_column("job", overflow="fold")
        table.add_column("state", no_wrap=True)
        for name in shown:
            table.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
        for job, name in rows:
            figures = self._figures(job)
            cells = (name, _state(job), *(figures[figure] for figure in shown))
            table.add_row(*map(Text, cells), style=STYLES.get(job.status))
        return table

    def _figures(self, job: Job) -> dict[str, str]:
        """`FIGURES` by name, empty where they are not known."""
        figures = dict.fromkeys(FIGURES, "")
        if job.predicted_bytes is not None:
            at_least = ">= " if job.predicted_is_least else ""
            figures["predicted MiB"] = f"{at_least}{job.predicted_bytes / MIB:,.0f}"
        known = self._progress.get(job.number)
        if known is None:
            return figures
        figures["iteration"] = f"{known.iterations}/{max(known.iterations, job.max_iterations)}"  # resumed for more
        if job.status == "running":
            figures["left"] = clock((job.max_iterations - known.iterations) * known.s_per_iteration)
        if known.reward is not None:
            figures["reward"] = f"{known.reward:.2f}"
        if known.measured_mib is not None:
            figures["measured MiB"] = f"{known.measured_mib:,.0f}"
        return figures

    def line(self, job: Job) -> str:
        """A job in one line, the most important first."""
        figures = [f"{name} {value}" for name, value in self._figures(job).items() if value]
        urgent = [figure for figure in figures if figure.startswith(FIGURES[:2])]
        others = [figure for figure in figures if figure not in urgent]
        where = f"on {job.device}" if job.status == "running" else None
        parts = [f"job {job.number} {_state(job)}", *urgent, _name(job), job.message, *others, where]
        return " | ".join(part for part in parts if part)

    def _total(self) -> str:
        jobs = self.sweep.jobs
        over = sum(job.status not in ("planned", "running") for job in jobs)
        now_s = time.monotonic()
        running_s = {job.number: now_s - self._since_s[job.number] for job in jobs if job.status == "running"}
        left = left_s(jobs, self._progress, running_s, self._slots)
        text = f"{over} of {len(jobs)} jobs over"
        if left is None or over == len(jobs):
            return text
        return f"{text} | left {clock(left)} | in all {clock(now_s - self._begun_s + left)}, at the rates so far"


def _name(job: Job) -> str:
    return job.name or "the only one"


def _state(job: Job) -> str:
    return "waiting" if job.is_waiting else job.status.replace("_", " ")


def _window(jobs: list[Job], rows: int) -> list[Job]:
    """As many as fit, around the first that runs or waits."""
    now = next((job.number for job in jobs if job.status in ("running", "planned")), len(jobs))
    first = max(0, min(now - rows // 3, len(jobs) - rows))
    return jobs[first : first + rows]
