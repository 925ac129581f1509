"""What a person sees while a run goes: a progress bar, or plain lines where there is no terminal."""

from __future__ import annotations

import logging
import time
from datetime import timedelta

import rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

SHOWN = {
    "Train/mean_reward": "reward {:.2f}",
    "Train/mean_episode_length": "length {:.0f}",
    "Perf/total_fps": "{:.0f} steps/s",
    "Memory/allocated_peak_mib": "peak {:.0f} MiB",
    "Memory/device_used_mib": "device {:.0f} MiB",
    "Memory/host_rss_mib": "host {:.0f} MiB",
}
PLAIN_LINES_EVERY_S = 2.0


class ConsoleHandler(logging.Handler):
    """Prints messages bare, above the progress bar where there is one. Tracebacks go to the log file alone."""

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


class ProgressDisplay:
    """Shows each iteration's main figures. A context manager."""

    def __init__(self, max_iterations: int, quiet: bool, first_iteration: int = 0) -> None:
        self._bar = Progress(
            TextColumn("iteration"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            disable=quiet or not rich.get_console().is_terminal,
            console=rich.get_console(),
        )
        self._task = self._bar.add_task("", total=max_iterations, start=False)
        self._plain = self._bar.disable and not quiet
        self._max_iterations = max_iterations
        self._first = first_iteration
        self._started_s = self._printed_s = time.perf_counter()

    def __enter__(self) -> ProgressDisplay:
        self._bar.start()
        self._bar.start_task(self._task)
        self._started_s = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def show(self, iteration: int, scalars: dict[str, float]) -> None:
        """Called at the end of every iteration, counted from 0."""
        text = " | ".join(form.format(scalars[tag]) for tag, form in SHOWN.items() if tag in scalars)
        self._bar.update(self._task, completed=iteration + 1, description=text)
        done, now_s = iteration + 1, time.perf_counter()
        if self._plain and (
            now_s - self._printed_s > PLAIN_LINES_EVERY_S or done in (self._first + 1, self._max_iterations)
        ):
            self._printed_s = now_s
            left_s = (now_s - self._started_s) / (done - self._first) * (self._max_iterations - done)
            log.info(
                "iteration %d/%d | %s | left %s", done, self._max_iterations, text, timedelta(seconds=round(left_s))
            )
