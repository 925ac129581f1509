"""What a person sees while a run trains: one live line, or plain lines where there is no terminal."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import rich
from rich.progress import Progress, ProgressColumn, Task, TimeElapsedColumn
from rich.text import Text

from ppo_lab.memory.rows import tag

log = logging.getLogger(__name__)

SHOWN = {
    "Train/mean_reward": "reward {:.2f}",
    "Train/mean_episode_length": "length {:.0f}",
    "Perf/total_fps": "{:.0f} steps/s",
    tag("allocated_peak"): "peak {:.0f} MiB",
    tag("device_used"): "device {:.0f} MiB",
    tag("host_rss"): "host {:.0f} MiB",
}
PLAIN_LINES_EVERY_S = 2.0
COMPILED = "ppo_lab.envs.genesis.kernels"
"""The log of the kernels that the simulator compiles: a debug line for each."""


class ConsoleHandler(logging.Handler):
    """Prints messages bare, above the live line where there is one. Tracebacks go to the log file alone."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        say(f"{level}{record.getMessage()}")


def say(text: str) -> None:
    """Prints the text as it is, above what is live on the console."""
    rich.get_console().print(text, markup=False, highlight=False, soft_wrap=True)


def show_warnings_only() -> None:
    """Quiets the console; the log file still gets everything."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, ConsoleHandler):
            handler.setLevel(logging.WARNING)


def fitted(parts: Sequence[str], width: int, separator: str = " | ") -> str:
    """The parts on one line, the first ones alone where all would be wider than `width` columns."""
    lines = itertools.accumulate(parts, lambda line, part: f"{line}{separator}{part}")
    return next((line for line in reversed(list(lines)) if len(line) <= width), "")


class ProgressLine(ProgressColumn):
    """The line of a terminal: what matters most comes first, and what does not fit is left out."""

    def render(self, task: Task) -> Text:
        ends_s: float | None = task.fields["ends_s"]
        parts = [
            f"iteration {task.completed:.0f}/{task.total:.0f}",
            f"left {'?' if ends_s is None else clock(max(0.0, ends_s - time.perf_counter()))}",
            *task.fields["figures"],
            f"elapsed {clock(task.elapsed or 0.0)}",
        ]
        return Text(fitted(parts, rich.get_console().width), no_wrap=True)


class ProgressDisplay:
    """Shows each iteration's main figures: one live line on a terminal, a line now and then elsewhere.

    A context manager.
    """

    def __init__(self, max_iterations: int, quiet: bool, first_iteration: int = 0) -> None:
        is_live = rich.get_console().is_terminal and not quiet
        self._line = Progress(ProgressLine(), console=rich.get_console(), disable=not is_live)
        self._task = self._line.add_task(
            "", total=max_iterations, completed=first_iteration, start=False, figures=(), ends_s=None
        )
        self._is_plain = not is_live and not quiet
        self._max_iterations = max_iterations
        self._first = first_iteration
        self._started_s = self._printed_s = time.perf_counter()

    def __enter__(self) -> ProgressDisplay:
        self._line.start()
        self._line.start_task(self._task)
        self._started_s = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        self._line.stop()

    def show(self, iteration: int, scalars: dict[str, float]) -> None:
        """Called at the end of every iteration, counted from 0."""
        figures = [form.format(scalars[key]) for key, form in SHOWN.items() if key in scalars]
        done, now_s = iteration + 1, time.perf_counter()
        left_s = (now_s - self._started_s) / (done - self._first) * (self._max_iterations - done)
        self._line.update(self._task, completed=done, figures=figures, ends_s=now_s + left_s)
        if self._is_plain and (
            now_s - self._printed_s > PLAIN_LINES_EVERY_S or done in (self._first + 1, self._max_iterations)
        ):
            self._printed_s = now_s
            log.info(" | ".join([f"iteration {done}/{self._max_iterations}", f"left {clock(left_s)}", *figures]))


class _CompilingLine(logging.Handler):
    """Shows how many kernels are compiled, from the first one on."""

    def __init__(self, line: Progress) -> None:
        super().__init__()
        self._line = line
        self._task = line.add_task("", start=False)

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.DEBUG:
            self._line.start()
            self._line.start_task(self._task)
            self._line.update(self._task, description=record.getMessage())


@contextmanager
def compiling_shown(quiet: bool) -> Iterator[None]:
    """While entered, a live line on a terminal counts the kernels that the simulator compiles, where it does."""
    console = rich.get_console()
    if quiet or not console.is_terminal:
        yield
        return
    columns = "[progress.description]{task.description}", TimeElapsedColumn()
    line = Progress(*columns, console=console, transient=True)
    logger, handler = logging.getLogger(COMPILED), _CompilingLine(line)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        line.stop()


def clock(seconds: float) -> str:
    """As 1:02:03."""
    return str(timedelta(seconds=round(seconds)))
