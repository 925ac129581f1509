"""A run in a few figures, read in the same short time however long the run is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ppo_lab.runs import ancestry
from ppo_lab.runs.folder import RunFolder, is_locked, started_s
from ppo_lab.runs.record import RunRecord, iteration_s, number, read


@dataclass(frozen=True)
class Overview:
    """How far a run is, and what it has reached. None where the folder does not say."""

    folder: Path
    started_s: float
    """Seconds since 1970."""
    env: str | None
    status: str
    """running: a process holds the folder's lock. killed: none does, and the run says no end.

    Otherwise as in summary.json; unknown where that cannot be read.
    """
    iterations: int
    """Completed."""
    max_iterations: int | None
    mean_reward: float | None
    """Of the newest iteration that has one."""
    episode_length: float | None
    """Mean, in steps; the same."""
    training_s: float | None
    """Collecting and learning, of all processes of the run."""
    training_s_is_estimated: bool
    """The run has not summed it up: it is the completed iterations at the rate of the newest ones."""
    ancestry: str | None
    """The run and iteration that it began with, and those before, as "RUN:99 < EARLIER:49"; None: from scratch."""
    damages: tuple[str, ...]
    """What could not be read."""


def overview(folder: Path) -> Overview:
    """Never raises for what the folder's files hold."""
    record = read(folder, only_tail=True)
    rows, summary = record.metrics, record.summary
    iterations = rows[-1]["iteration"] + 1 if rows else round(number(summary.get("iterations")) or 0)
    training_s = number(summary.get("training_s"))
    is_estimated = training_s is None and bool(rows)
    if is_estimated:
        training_s = iterations * fmean(map(iteration_s, rows))
    env, max_iterations = _setting(record, "env"), number(_setting(record, "max_iterations"))
    name = env.get("name") if isinstance(env, Mapping) else None
    return Overview(
        folder=folder,
        started_s=started_s(folder),
        env=None if name is None else str(name),
        status=_status(folder, record),
        iterations=iterations,
        max_iterations=None if max_iterations is None else round(max_iterations),
        mean_reward=_newest(record, "Train/mean_reward", "final_reward"),
        episode_length=_newest(record, "Train/mean_episode_length", "final_episode_length"),
        training_s=training_s,
        training_s_is_estimated=is_estimated,
        ancestry=ancestry.in_short(record.manifest) or None,
        damages=record.damages,
    )


def _status(folder: Path, record: RunRecord) -> str:
    if is_locked(folder):
        return "running"
    status = record.summary.get("status")
    name = RunFolder(folder).summary.name
    is_readable = status is not None or not any(damage.startswith(name) for damage in record.damages)
    if not is_readable:
        return "unknown"
    return "killed" if status in (None, "running") else str(status)


def _setting(record: RunRecord, key: str) -> Any:
    """As it is now, or else as the run began."""
    began = record.manifest.get("config")
    return record.config.get(key, began.get(key) if isinstance(began, Mapping) else None)


def _newest(record: RunRecord, tag: str, key: str) -> float | None:
    """The newest value of a row, or else what the summary says."""
    values = (number(row.get(tag)) for row in reversed(record.metrics))
    return next((value for value in values if value is not None), number(record.summary.get(key)))
