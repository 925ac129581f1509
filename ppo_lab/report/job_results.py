"""The results of jobs of a sweep, or of any runs, from their folders, finished or not."""

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

from ppo_lab.config import flat
from ppo_lab.config.overrides import shown
from ppo_lab.errors import ConfigError
from ppo_lab.memory.measure import measured
from ppo_lab.memory.rows import MIB, name_of
from ppo_lab.runs import ancestry
from ppo_lab.runs.config import FROM_SCRATCH, LABELS, START_KEYS
from ppo_lab.runs.folder import RunFolder, find_runs
from ppo_lab.runs.record import iteration_s, newest_evaluation, number, read
from ppo_lab.sweeps import jobs as sweeps
from ppo_lab.sweeps.jobs import Job

Value = int | float | str
"""Of a setting."""


@dataclass(frozen=True)
class RunFigures:
    """What a report takes from a run folder, as far as the run got."""

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
    ancestry: str
    """The run and iteration that it began with, and those before: see `ancestry.in_short`."""
    damages: tuple[str, ...]
    """What could not be read."""
    evaluated: Mapping[str, Any]
    """The evaluation of the latest iteration under the training's conditions, see docs/evaluate.md; or empty."""

    @property
    def transitions_per_iteration(self) -> int | None:
        sizes = self.config.get("num_envs"), self.config.get("num_steps_per_env")
        return sizes[0] * sizes[1] if isinstance(sizes[0], int) and isinstance(sizes[1], int) else None


@dataclass(frozen=True)
class JobResult:
    """One run of a report, and how it ended."""

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
    """Of the process, start-up included."""
    planned_bytes: int | None
    """What was predicted for the whole device before the sweep began."""
    run: RunFigures

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

    @property
    def evaluated_return(self) -> float | None:
        """The mean return of the run's evaluated policy."""
        return number(self.run.evaluated.get("return", {}).get("mean"))

    @property
    def evaluated_iteration(self) -> int | None:
        return self.run.evaluated.get("iteration")

    def time_to_s(self, reward: float) -> float | None:
        """When the mean reward first was at least so high; None where it never was."""
        reached = np.flatnonzero(self.run.reward >= reward)
        return float(self.run.time_s[reached[0]]) if reached.size else None


@dataclass(frozen=True)
class RunSet:
    """Runs to compare."""

    name: str
    started: str
    command: str
    swept: tuple[str, ...]
    """Keys that have more than one value."""
    reward_threshold: float | None
    """As it was set."""
    jobs: tuple[JobResult, ...]
    was_launched: bool = True
    """Whether a launcher named the jobs by what they differ in."""


def read_sweep(folder: Path) -> RunSet:
    """Reads a sweep's folder. Raises a ConfigError where it is none."""
    sweep = sweeps.read(folder)
    if not sweep.jobs:
        raise ConfigError(f"{folder / sweeps.JOBS} names no jobs. Name the folder that a sweep made.")
    jobs = tuple(_job_result(sweep, job) for job in sweep.jobs)
    threshold = number(sweep.settings.get("reward_threshold"))
    return RunSet(sweep.name, sweep.started, sweep.command, tuple(sweep.swept), threshold, jobs)


def read_runs(folders: Iterable[Path]) -> RunSet:
    """Compares all runs in `folders`; swept are the keys in which those of one env differ, and the env.

    Raises a ConfigError.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder. Name a sweep, runs, or folders with runs in them.")
        runs = find_runs(folder)
        if not runs:
            raise ConfigError(f"{folder} has no run in it. Name a sweep, runs, or folders with runs in them.")
        found |= {run.resolve(): run for run in runs}
    runs_read = [_read_run(folder) for folder in found.values()]
    flattened = [_settings(run) for run in runs_read]
    envs = dict.fromkeys(str(settings["env.name"]) for settings in flattened if "env.name" in settings)
    groups = [[settings for settings in flattened if settings.get("env.name") == env] for env in envs]
    differing = [key for group in groups for key in _differing(group)] if len(groups) > 1 else _differing(flattened)
    swept = tuple(dict.fromkeys(["env.name"] * (len(groups) > 1) + differing))
    jobs = []
    for index, (path, run, settings) in enumerate(zip(found, runs_read, flattened, strict=True)):
        status, message = str(run.summary.get("status", "running")), run.summary.get("message")
        if status == "running":
            message = "no end is recorded: it still goes, or was killed"
        jobs.append(
            JobResult(
                index,
                path.name,
                path,
                _env(settings),
                {key: settings.get(key) for key in swept},
                status,
                _sentence(message, run.damages),
                number(run.summary.get("wall_s")),
                None,
                run,
            )
        )
    return RunSet(jobs[0].name if len(jobs) == 1 else f"{len(jobs)} runs", "", "", swept, None, tuple(jobs), False)


def _job_result(sweep: sweeps.Sweep, job: Job) -> JobResult:
    folder = sweep.run_folder(job)
    if not folder.resolve().is_relative_to(sweep.folder.resolve()):
        raise ConfigError(f"the folder of job {job.number}, {folder}, lies outside the sweep. Remove the link.")
    run = _read_run(folder)
    overrides = dict(override.lstrip("+").partition("=")[::2] for override in job.overrides)
    settings = _settings(run) | {key: _value(shown(key, text)) for key, text in overrides.items()}
    return JobResult(
        job.number,
        job.name,
        folder,
        _env(settings),
        {key: settings.get(key) for key in sweep.swept},
        job.status,
        _sentence(job.message or run.summary.get("message"), run.damages),
        number(run.summary.get("wall_s")) if job.wall_s is None else job.wall_s,
        job.predicted_bytes,
        run,
    )


def _read_run(folder: Path) -> RunFigures:
    record = read(folder)
    damages = [*record.damages]
    predicted = {}
    try:
        if record.estimate:
            predicted = {name: int(size) for name, size in measured.predicted_bytes(record.estimate).items()}
    except (LookupError, TypeError, ValueError):
        damages.append(f"{RunFolder(folder).estimate.name} is not an estimate")
    rewards = [number(row.get("Train/mean_reward")) for row in record.metrics]
    highest = measured.highest_mib(record.metrics)
    return RunFigures(
        record.config,
        record.summary,
        np.array([math.nan if reward is None else reward for reward in rewards], dtype=np.float64),
        np.cumsum([iteration_s(row) for row in record.metrics], dtype=np.float64),
        predicted,
        {name: round(mib * MIB) for tag, mib in highest.items() if (name := name_of(tag))},
        ancestry.in_short(record.manifest),
        tuple(damages),
        newest_evaluation(folder),
    )


def _env(settings: Mapping[str, Value]) -> str | None:
    """From the configuration, or else from the override that chose it."""
    env = settings.get("env.name", settings.get("env"))
    return None if env is None else str(env)


def _differing(runs: list[dict[str, Value]]) -> list[str]:
    """The keys whose values differ, but for those that only repeat what another one says."""
    keys = dict.fromkeys(key for settings in runs for key in settings)
    columns = {key: [settings.get(key) for settings in runs] for key in keys if key not in (*LABELS, *START_KEYS)}
    differing = {key: values for key, values in columns.items() if len(set(values)) > 1}

    def repeats(key: str) -> bool:
        """As network.actor.activation repeats network.activation."""
        above, _, name = key.rpartition(".")
        return differing.get(f"{above.rpartition('.')[0]}.{name}") == differing[key]

    return [key for key in differing if not repeats(key)]


def _settings(run: RunFigures) -> dict[str, Value]:
    """Dotted key -> value; what is not a number or text is written as JSON."""
    found = flat(FROM_SCRATCH) | flat({**run.config}) if run.config else {}
    if run.ancestry:
        found["init_from"] = run.ancestry.partition(" < ")[0]
    return {key: value if _is_plain(value) else json.dumps(value, default=str) for key, value in found.items()}


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


def _sentence(message: object, damages: Iterable[str]) -> str:
    return "; ".join([*([str(message)] if message else []), *damages])
