"""What run folders say: of a sweep's jobs, or of any runs. Copes with runs that are half there."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from ppo_lab.config import flat
from ppo_lab.errors import ConfigError
from ppo_lab.memory.measure import measured
from ppo_lab.memory.rows import MIB, name_of
from ppo_lab.runs.config import read_plain
from ppo_lab.runs.files import read_rows

JOBS = "jobs.json"
"""The launcher's record of a sweep."""

NOT_A_SETTING = ("run_name", "resume", "reproduce", "quiet")
"""Keys that name or continue a run, and do not change what it does."""

Value = int | float | str
"""Of a setting."""


@dataclass(frozen=True)
class Run:
    """What a run folder says, as far as it got."""

    config: Mapping[str, Any]
    """Empty where the run never started."""
    summary: Mapping[str, Any]
    reward: NDArray[np.float64]
    """`Train/mean_reward` of each iteration; nan where no episode ended."""
    time_s: NDArray[np.float64]
    """At the end of each iteration, by the run's own clock: collecting and learning, summed."""
    predicted_bytes: Mapping[str, int]
    """Memory row -> figure."""
    measured_bytes: Mapping[str, int]
    """Memory row -> highest value."""
    damages: tuple[str, ...]
    """What could not be read."""

    @property
    def transitions_per_iteration(self) -> int | None:
        sizes = self.config.get("num_envs"), self.config.get("num_steps_per_env")
        return sizes[0] * sizes[1] if isinstance(sizes[0], int) and isinstance(sizes[1], int) else None


@dataclass(frozen=True)
class Job:
    """One run of a sweep, and how it ended."""

    number: int
    name: str
    folder: Path
    env: str | None
    """None where neither the folder nor the overrides say."""
    settings: Mapping[str, Value | None]
    """Swept key -> value; None where the folder does not say."""
    status: str
    """planned, running, completed, failed, killed, interrupted or over_budget."""
    message: str
    wall_s: float | None
    """Of the whole process, start-up included."""
    planned_bytes: int | None
    """What was predicted for the whole device before the sweep began."""
    run: Run

    @property
    def completed(self) -> bool:
        return self.status == "completed"

    @property
    def iterations(self) -> int:
        return len(self.run.time_s)

    @property
    def transitions(self) -> int | None:
        per_iteration = self.run.transitions_per_iteration
        return None if per_iteration is None else self.iterations * per_iteration

    @property
    def training_s(self) -> float | None:
        return float(self.run.time_s[-1]) if self.iterations else None

    @property
    def steps_per_s(self) -> float | None:
        return self.transitions / self.training_s if self.transitions and self.training_s else None

    @cached_property
    def _rewards(self) -> NDArray[np.float64]:
        return self.run.reward[np.isfinite(self.run.reward)]

    @property
    def final_reward(self) -> float | None:
        return float(self._rewards[-1]) if self._rewards.size else None

    @property
    def best_reward(self) -> float | None:
        return float(self._rewards.max()) if self._rewards.size else None

    def time_to_s(self, reward: float) -> float | None:
        """When the mean reward first was at least so high; None where it never was."""
        reached = np.flatnonzero(self.run.reward >= reward)
        return float(self.run.time_s[reached[0]]) if reached.size else None


@dataclass(frozen=True)
class Sweep:
    """Jobs to lay side by side."""

    name: str
    started: str
    command: str
    swept: tuple[str, ...]
    """Keys that have more than one value."""
    reward_threshold: float | None
    """As it was set."""
    jobs: tuple[Job, ...]
    was_launched: bool = True
    """Whether a launcher named the jobs by what they differ in."""


def read_sweep(folder: Path) -> Sweep:
    """Reads a sweep's folder. Raises a ConfigError where it is none."""
    try:
        record = json.loads((folder / JOBS).read_text())
        swept = tuple(map(str, record["swept"]))
        jobs = tuple(_job(folder, swept, entry) for entry in record["jobs"])
        if not jobs:
            raise ValueError("it names no jobs")
        threshold = _number(record.get("settings", {}).get("reward_threshold"))
        return Sweep(str(record["name"]), str(record["started"]), str(record["command"]), swept, threshold, jobs)
    except FileNotFoundError:
        raise ConfigError(f"{folder} is not a sweep: it has no {JOBS}. Name the folder that a sweep made.") from None
    except KeyError as error:
        raise ConfigError(f"{folder / JOBS} lacks {error}. Name the folder that a sweep made.") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{folder / JOBS} cannot be read: {error}. Name the folder that a sweep made.") from None


def read_runs(folders: Iterable[Path]) -> Sweep:
    """Lays side by side all runs in `folders`; swept are the keys in which those of one env differ, and the env.

    Raises a ConfigError.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder. Name a sweep, runs, or folders with runs in them.")
        runs = sorted(path.parent for path in folder.rglob("config.yaml") if path.parent.name != ".hydra")
        if not runs:
            raise ConfigError(f"{folder} has no run in it. Name a sweep, runs, or folders with runs in them.")
        found |= {run.resolve(): run for run in runs}
    runs_read = [_read_run(folder) for folder in found.values()]
    flat = [_settings(run) for run in runs_read]
    envs = dict.fromkeys(str(settings["env.name"]) for settings in flat if "env.name" in settings)
    groups = [[settings for settings in flat if settings.get("env.name") == env] for env in envs]
    differing = [key for group in groups for key in _differing(group)] if len(groups) > 1 else _differing(flat)
    swept = tuple(dict.fromkeys(["env.name"] * (len(groups) > 1) + differing))
    jobs = []
    for number, (path, run, settings) in enumerate(zip(found, runs_read, flat, strict=True)):
        status, message = str(run.summary.get("status", "running")), run.summary.get("message")
        if status == "running":
            message = "no end is recorded: it still goes, or was killed"
        jobs.append(
            Job(
                number,
                path.name,
                path,
                _env(settings),
                {key: settings.get(key) for key in swept},
                status,
                _sentence(message, run.damages),
                _number(run.summary.get("wall_s")),
                None,
                run,
            )
        )
    return Sweep(jobs[0].name if len(jobs) == 1 else f"{len(jobs)} runs", "", "", swept, None, tuple(jobs), False)


def _job(sweep: Path, swept: tuple[str, ...], entry: Mapping[str, Any]) -> Job:
    folder = sweep / str(entry["folder"])
    if not folder.resolve().is_relative_to(sweep.resolve()):
        raise ValueError(f"a job's folder, {entry['folder']}, lies outside the sweep")
    run = _read_run(folder)
    given = dict(word.lstrip("+").partition("=")[::2] for word in map(str, entry["overrides"]))
    settings = _settings(run) | {key: _value(text) for key, text in given.items()}
    planned = _number(entry.get("predicted_bytes"))
    wall_s = _number(entry.get("wall_s"))
    return Job(
        int(entry["number"]),
        str(entry["name"]),
        folder,
        _env(settings),
        {key: settings.get(key) for key in swept},
        str(entry["status"]),
        _sentence(entry.get("message") or run.summary.get("message"), run.damages),
        _number(run.summary.get("wall_s")) if wall_s is None else wall_s,
        None if planned is None else round(planned),
        run,
    )


def _read_run(folder: Path) -> Run:
    damages: list[str] = []
    config = _read_config(folder / "config.yaml", damages)
    summary = _load(folder / "summary.json", damages)
    estimate = _load(folder / "estimate.json", damages)
    try:
        predicted = {name: int(size) for name, size in measured.predicted_bytes(estimate).items()} if estimate else {}
    except (LookupError, TypeError, ValueError):
        predicted = {}
        damages.append("estimate.json is not an estimate")
    rows = _read_metrics(folder / "metrics.jsonl", damages)
    reward = [_number(row.get("Train/mean_reward")) for row in rows]
    measured_bytes: dict[str, int] = {}
    for tag, value in ((tag, _number(value)) for row in rows for tag, value in row.items()):
        if (name := name_of(tag)) is not None and value is not None:
            measured_bytes[name] = max(round(value * MIB), measured_bytes.get(name, 0))
    return Run(
        config,
        summary,
        np.array([math.nan if value is None else value for value in reward], dtype=np.float64),
        np.cumsum([_iteration_s(row) for row in rows], dtype=np.float64),
        predicted,
        measured_bytes,
        tuple(damages),
    )


def _read_metrics(path: Path, damages: list[str]) -> list[dict[str, Any]]:
    """What `read_rows` reads; says where it stopped early."""
    rows = read_rows(path.parent)
    line_count = len(path.read_bytes().splitlines()) if path.is_file() else 0
    if len(rows) < line_count:
        damages.append(f"metrics.jsonl is damaged in line {len(rows) + 1} of {line_count}, and read up to there")
    return rows


def _iteration_s(row: Mapping[str, Any]) -> float:
    return sum(_number(row.get(f"Perf/{part}_time")) or 0.0 for part in ("collection", "learning"))


def _read_config(path: Path, damages: list[str]) -> dict[Any, Any]:
    try:
        content = OmegaConf.to_container(read_plain(path))
        assert isinstance(content, dict)
        return content
    except ConfigError:
        if path.exists():
            damages.append(f"{path.name} is damaged")
        return {}


def _load(path: Path, damages: list[str]) -> dict[str, Any]:
    """What the file holds: nothing where it is missing, or damaged."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        damages.append(f"{path.name} is damaged")
        return {}
    return content


def _env(settings: Mapping[str, Value]) -> str | None:
    """From the configuration, or else from the override that chose it."""
    env = settings.get("env.name", settings.get("env"))
    return None if env is None else str(env)


def _differing(flat: list[dict[str, Value]]) -> list[str]:
    """The keys whose values differ, but for those that only repeat what another one says."""
    keys = dict.fromkeys(key for settings in flat for key in settings)
    columns = {key: [settings.get(key) for settings in flat] for key in keys if key not in NOT_A_SETTING}
    differing = {key: values for key, values in columns.items() if len(set(values)) > 1}

    def repeats(key: str) -> bool:
        """As network.actor.activation repeats network.activation."""
        above, _, name = key.rpartition(".")
        return differing.get(f"{above.rpartition('.')[0]}.{name}") == differing[key]

    return [key for key in differing if not repeats(key)]


def _settings(run: Run) -> dict[str, Value]:
    """Dotted key -> value; what is not a number or text is written as JSON."""
    return {
        key: value if _is_plain(value) else json.dumps(value, default=str) for key, value in flat(run.config).items()
    }


def _is_plain(value: object) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def _value(text: str) -> Value:
    """As the command line gave it."""
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if math.isfinite(number) else text
    return text


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]


def _sentence(message: object, damages: Iterable[str]) -> str:
    return "; ".join([*([str(message)] if message else []), *damages])
