"""One dict of scalars an iteration, to TensorBoard and to metrics.jsonl alike."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from ppo_lab.runs.files import read_rows, to_json, write_text

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


class MetricsWriter:
    """Writes a run's scalars to event files and to metrics.jsonl, each iteration once, in order.

    Neither may end a run. What metrics.jsonl cannot take is kept and written with the next row. An event file that
    fails is given up, with a warning; the next `sync` tries a new one, with all since the last.
    """

    def __init__(self, folder: Path, first_iteration: int = 0) -> None:
        """Rows from `first_iteration` on, which an earlier attempt may have written, are about to be written anew."""
        self.earlier = [row for row in read_rows(folder) if row["iteration"] < first_iteration]
        if len(self.earlier) != first_iteration:
            log.warning("metrics.jsonl has %d rows of the %d before", len(self.earlier), first_iteration)
        if first_iteration or (folder / "metrics.jsonl").exists():
            write_text(folder / "metrics.jsonl", "".join(to_json(row) + "\n" for row in self.earlier))
        self._lines = (folder / "metrics.jsonl").open("ab", buffering=0)
        self._unwritten = b""
        self._folder = folder
        self._board: SummaryWriter | None = None
        self._since_sync: list[tuple[int, Callable[[SummaryWriter], None]]] = []
        self._has_warned = False
        self._not_finite: set[str] = set()  # the tags that a warning was given for
        self._open_board(first_iteration)

    def describe(
        self, config_yaml: str, environment: dict[str, Any], page: Mapping[str, Mapping[str, list[Any]]]
    ) -> None:
        """Puts the configuration, a table of the environment and the custom-scalars page into the event file.

        `page`: as `layout` gives it.
        """
        rows = "\n".join(f"| {key} | {value} |" for key, value in environment.items())

        def describe(board: SummaryWriter) -> None:
            board.add_text("config", f"```yaml\n{config_yaml}\n```")
            board.add_text("environment", f"| | |\n|---|---|\n{rows}")
            board.add_custom_scalars(page)

        self._on_the_board(len(self.earlier), describe)

    def write(self, iteration: int, scalars: dict[str, float]) -> None:
        """Writes {tag: value}. One event for all of them: an event each costs ten times as much.

        A value that is not finite is null in metrics.jsonl, itself on TensorBoard, and one warning for its tag.
        """
        for tag, value in scalars.items():
            if not math.isfinite(value) and tag not in self._not_finite:
                self._not_finite.add(tag)
                log.warning(
                    "%s is %s in iteration %d: it is not part of training, which goes on; "
                    "metrics.jsonl has null for such values",
                    *(tag, value, iteration),
                )
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._on_the_board(iteration, lambda board: board.file_writer.add_summary(Summary(value=values), iteration))
        had_trouble = bool(self._unwritten)
        self._unwritten += to_json({"iteration": iteration, **scalars}).encode() + b"\n"
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._lines.write(self._unwritten) :]
        except OSError as error:
            if not had_trouble:
                log.warning("metrics.jsonl cannot be written: %s; its rows are kept and tried again", error.strerror)

    def sync(self) -> None:
        """Returns when all that was written is on the disk."""
        if self._board is None and self._since_sync:
            self._open_board(self._since_sync[0][0])
        self._try_the_board(lambda board: board.flush())
        if self._board is not None:
            self._since_sync.clear()
        with contextlib.suppress(OSError):
            os.fsync(self._lines.fileno())

    def close(self) -> None:
        self._try_the_board(lambda board: board.close())
        self._lines.close()

    def _open_board(self, first_iteration: int) -> None:
        """Opens a new event file, which takes the place of all that earlier ones hold from that iteration on."""
        before = set(self._folder.glob("events.*"))
        try:
            self._board = SummaryWriter(str(self._folder), flush_secs=10, purge_step=first_iteration)
            for _, do in self._since_sync:
                do(self._board)
            self._board.flush()
        except Exception as error:
            self._give_up_the_board(error)
            for path in set(self._folder.glob("events.*")) - before:
                path.unlink()

    def _on_the_board(self, iteration: int, do: Callable[[SummaryWriter], None]) -> None:
        self._since_sync.append((iteration, do))
        self._try_the_board(do)

    def _try_the_board(self, do: Callable[[SummaryWriter], None]) -> None:
        if self._board is not None:
            try:
                do(self._board)
            except Exception as error:
                self._give_up_the_board(error)

    def _give_up_the_board(self, error: Exception) -> None:
        """A dashboard is no reason to lose a run."""
        self._board = None
        if not self._has_warned:
            self._has_warned = True
            why = getattr(error, "strerror", None) or error
            log.warning("TensorBoard's event file cannot be written: %s; metrics.jsonl goes on", why)
