"""One dict of scalars an iteration, to every writer: metrics.jsonl and TensorBoard.

Another kind of output is one more class with the methods of `Writer`, and one more line in `MetricsWriter`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ppo_lab.runs.files import to_json, write_text
from ppo_lab.runs.folder import RunFolder
from ppo_lab.runs.record import read_metrics

log = logging.getLogger(__name__)

REWARD = {"mean reward": "Train/mean_reward", "episode length": "Train/mean_episode_length"}
LOSSES = {
    "value loss": "Loss/value",
    "surrogate loss": "Loss/surrogate",
    "entropy": "Loss/entropy",
    "learning rate": "Loss/learning_rate",
    "action deviation": "Policy/mean_std",
}
SPEED = {
    "steps per second": "Perf/total_fps",
    "collection time (s)": "Perf/collection_time",
    "learning time (s)": "Perf/learning_time",
}
"""Charts of the custom-scalars page -> their tags."""


def layout(memory_tags: Collection[str], reward_terms: Collection[str]) -> dict[str, dict[str, list[Any]]]:
    """The custom-scalars page: category -> chart -> the tags in it, as a regular expression.

    TensorBoard gives all lines of a run one colour, and scales a chart by what its lines have in common. So each tag
    has a chart of its own; only a prediction stands beside what was measured.

    Args:
        memory_tags: the Memory/ rows that this device has.
        reward_terms: names of the env's reward terms; where there are none, all terms share a chart.
    """
    rows = [tag.removeprefix("Memory/") for tag in memory_tags]
    if "allocated_peak_mib" in rows:  # the phases' peaks are known only when a phase has ended
        rows = list(dict.fromkeys(["rollout_peak_mib", "update_peak_mib", *rows]))
    memory = {f"{row.removesuffix('_mib')} (MiB)": f"Memory/(predicted_)?{row}" for row in rows}
    terms = {term: f"Episode/rew_{term}" for term in reward_terms} or {"all terms": "Episode/rew_.*"}
    page = {"Reward": REWARD, "Reward terms": terms, "Losses": LOSSES, "Memory": memory, "Speed": SPEED}
    return {
        category: {title: ["Multiline", [f"{tag}$"]] for title, tag in charts.items()}
        for category, charts in page.items()
    }


Layout = Mapping[str, Mapping[str, list[Any]]]
"""As `layout` gives it."""


class Writer(Protocol):
    """Takes a run's scalars."""

    def describe(self, config_yaml: str, environment: Mapping[str, Any], page: Layout) -> None:
        """Takes the configuration, a table of the environment and the custom-scalars page."""

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Takes {tag: value} of one iteration. Values may be NaN or infinite."""

    def sync(self) -> None:
        """Returns when all that was written is on the disk."""

    def close(self) -> None: ...


class MetricsWriter:
    """Writes a run's scalars with every writer, each iteration once, in order. No writer may end a run."""

    def __init__(self, folder: Path, first_iteration: int = 0) -> None:
        """Rows from `first_iteration` on, which an earlier attempt may have written, are about to be written anew."""
        rows = JsonlWriter(folder, first_iteration)
        self.earlier = rows.earlier
        """The rows before `first_iteration`."""
        self._writers: Sequence[Writer] = (Reopening(partial(TensorBoardWriter, folder), first_iteration), rows)
        self._not_finite: set[str] = set()  # the tags that a warning was given for

    def describe(self, config_yaml: str, environment: Mapping[str, Any], page: Layout) -> None:
        for writer in self._writers:
            writer.describe(config_yaml, environment, page)

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Writes {tag: value}. A value that is not finite is one warning for its tag, and null in metrics.jsonl."""
        for tag, value in scalars.items():
            if not math.isfinite(value) and tag not in self._not_finite:
                self._not_finite.add(tag)
                log.warning(
                    "%s is %s in iteration %d: it is not part of training, which goes on; "
                    "metrics.jsonl has null for such values",
                    *(tag, value, iteration),
                )
        for writer in self._writers:
            writer.write(iteration, scalars)

    def sync(self) -> None:
        for writer in self._writers:
            writer.sync()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


class JsonlWriter:
    """Writes metrics.jsonl. A row that the disk does not take is kept, and written with the next."""

    def __init__(self, folder: Path, first_iteration: int) -> None:
        path = RunFolder(folder).metrics
        self.earlier = [row for row in read_metrics(folder) if row["iteration"] < first_iteration]
        if len(self.earlier) != first_iteration:
            log.warning("metrics.jsonl has %d rows of the %d before", len(self.earlier), first_iteration)
        if first_iteration or path.exists():
            write_text(path, "".join(to_json(row) + "\n" for row in self.earlier))
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""

    def describe(self, config_yaml: str, environment: Mapping[str, Any], page: Layout) -> None:
        """Nothing: config.yaml and manifest.json hold these."""

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        had_trouble = bool(self._unwritten)
        self._unwritten += to_json({"iteration": iteration, **scalars}).encode() + b"\n"
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            if not had_trouble:
                log.warning("metrics.jsonl cannot be written: %s; its rows are kept and tried again", error.strerror)

    def sync(self) -> None:
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class TensorBoardWriter:
    """Writes one event file of TensorBoard. Any method may raise where the disk does not take it. Loads torch."""

    def __init__(self, folder: Path, first_iteration: int) -> None:
        """The new file replaces what earlier ones hold from `first_iteration` on."""
        from torch.utils.tensorboard import SummaryWriter

        self._folder = RunFolder(folder)
        self._before = self._folder.event_files()
        try:
            self._writer = SummaryWriter(str(folder), flush_secs=10, purge_step=first_iteration)
            self._writer.flush()
        except Exception:
            self.discard()
            raise

    def describe(self, config_yaml: str, environment: Mapping[str, Any], page: Layout) -> None:
        rows = "\n".join(f"| {key} | {value} |" for key, value in environment.items())
        self._writer.add_text("config", f"```yaml\n{config_yaml}\n```")
        self._writer.add_text("environment", f"| | |\n|---|---|\n{rows}")
        self._writer.add_custom_scalars(page)

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """One event for all scalars: an event each costs ten times as much."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._writer.file_writer.add_summary(Summary(value=values), iteration)

    def sync(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def discard(self) -> None:
        """Removes the file that this writer has made."""
        for path in self._folder.event_files() - self._before:
            path.unlink()


class Reopening:
    """Gives up a TensorBoardWriter that fails, with one warning; the next `sync` opens a new one.

    What was written since the last `sync` that worked goes into the new one first.
    """

    def __init__(self, open_writer: Callable[[int], TensorBoardWriter], first_iteration: int) -> None:
        """`open_writer`: takes the first iteration that the writer is about to get."""
        self._open_writer = open_writer
        self._first = first_iteration
        self._writer: TensorBoardWriter | None = None
        self._description: tuple[str, Mapping[str, Any], Layout] | None = None
        self._rows: list[tuple[int, Mapping[str, float]]] = []
        self._has_warned = False
        self._open()

    def describe(self, config_yaml: str, environment: Mapping[str, Any], page: Layout) -> None:
        description = self._description = (config_yaml, environment, page)
        self._try(lambda writer: writer.describe(*description))

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        self._rows.append((iteration, scalars))
        self._try(lambda writer: writer.write(iteration, scalars))

    def sync(self) -> None:
        if self._writer is None and (self._description or self._rows):
            self._open()
        self._try(lambda writer: writer.sync())
        if self._writer is not None:
            self._first = self._rows[-1][0] + 1 if self._rows else self._first
            self._description, self._rows = None, []

    def close(self) -> None:
        self._try(lambda writer: writer.close())

    def _open(self) -> None:
        """Opens a writer, and writes what no file has for sure."""
        writer = None
        try:
            writer = self._open_writer(self._first)
            if self._description:
                writer.describe(*self._description)
            for iteration, scalars in self._rows:
                writer.write(iteration, scalars)
            writer.sync()
            self._writer = writer
        except Exception as error:
            self._give_up(error)
            if writer:
                writer.discard()

    def _try(self, do: Callable[[TensorBoardWriter], None]) -> None:
        if self._writer is not None:
            try:
                do(self._writer)
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """A failure of TensorBoard must not stop training."""
        self._writer = None
        if not self._has_warned:
            self._has_warned = True
            why = getattr(error, "strerror", None) or error
            log.warning("TensorBoard's event file cannot be written: %s; metrics.jsonl goes on", why)
