"""What a run folder says: the one reader of its files, whatever state they are in."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppo_lab.errors import ConfigError
from ppo_lab.runs.config import read_plain
from ppo_lab.runs.files import from_json, read_json
from ppo_lab.runs.folder import AS_TRAINED, RunFolder

TAIL_BYTES = 65536
"""Of metrics.jsonl: dozens of rows."""


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says, as far as it got. None stands where a number was not finite."""

    config: Mapping[str, Any]
    """Nested; empty where the run never started."""
    manifest: Mapping[str, Any]
    summary: Mapping[str, Any]
    estimate: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    """A row an iteration, up to the first line that cannot be read."""
    damages: tuple[str, ...]
    """What could not be read, and why. A file that is missing is no damage."""


def read(folder: Path, *, only_tail: bool = False) -> RunRecord:
    """All that `folder` says. Never raises for what a file holds, and runs nothing of it.

    Args:
        folder: of a run, finished or not.
        only_tail: `metrics` are the newest rows alone, as `tail` reads them, and their damages are not looked for.
    """
    files = RunFolder(folder)
    damages: list[str] = []
    config = _read_config(files.config, damages)
    manifest, summary, estimate = (
        _read_object(path, damages) for path in (files.manifest, files.summary, files.estimate)
    )
    metrics = tail(folder) if only_tail else _read_rows(files.metrics, damages)
    return RunRecord(config, manifest, summary, estimate, metrics, tuple(damages))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, an iteration each, up to the first line that is none; a killed run may leave half."""
    return _read_rows(RunFolder(folder).metrics, [])


def tail(folder: Path) -> list[dict[str, Any]]:
    """The newest rows of metrics.jsonl, as many as its last TAIL_BYTES hold. Cheap however long the file is."""
    try:
        with RunFolder(folder).metrics.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return []
    return [row for row in map(_row, lines) if row is not None]


def newest_evaluation(folder: Path) -> dict[str, Any]:
    """Of all evaluations of the run, the result of the latest iteration under the training's own conditions.

    Empty where there is none that can be read. docs/evaluate.md has its keys.
    """
    found = []
    for path in sorted(RunFolder(folder).evaluation.glob("*.json")):
        results = read_json(path).get("results")
        for result in results if isinstance(results, list) else []:
            is_usable = isinstance(result, dict) and isinstance(result.get("return"), dict)
            if is_usable and result.get("condition") == AS_TRAINED and isinstance(result.get("iteration"), int):
                found.append(result)
    return max(found, key=lambda result: result["iteration"], default={})


def number(value: object) -> float | None:
    """A finite number of a row or an object; None for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number of hundreds of digits
        return None


def iteration_s(row: Mapping[str, Any]) -> float:
    """Seconds of training in a row of metrics.jsonl: collecting and learning."""
    return sum(number(row.get(f"Perf/{part}_time")) or 0.0 for part in ("collection", "learning"))


def _read_rows(path: Path, damages: list[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return rows
    except OSError as error:
        damages.append(f"{path.name} cannot be read: {error.strerror}")
        return rows
    for line in lines:
        row = _row(line)
        if row is None or row["iteration"] != len(rows):
            damages.append(f"{path.name} is damaged in line {len(rows) + 1} of {len(lines)}, and read up to there")
            break
        rows.append(row)
    return rows


def _row(line: bytes) -> dict[str, Any] | None:
    """None where the line is no row, as the half that a tail begins with or a killed run leaves."""
    try:
        row = from_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("iteration"), int) else None


def _read_config(path: Path, damages: list[str]) -> dict[str, Any]:
    try:
        return read_plain(path)
    except ConfigError:
        if path.exists():
            damages.append(f"{path.name} is damaged")
        return {}


def _read_object(path: Path, damages: list[str]) -> dict[str, Any]:
    try:
        content = from_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        damages.append(f"{path.name} is damaged")
        return {}
    return content
