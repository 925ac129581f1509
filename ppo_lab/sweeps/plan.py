"""From the experiments of a sweep to a folder with jobs.json in it: which runs, and whether each will fit."""

from __future__ import annotations

import dataclasses
import re
import shutil
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from ppo_lab import config
from ppo_lab.config import ExperimentConfig, SweepConfig
from ppo_lab.config.overrides import SWEEP_DIR, short_names, shown
from ppo_lab.errors import ConfigError, OverBudgetError
from ppo_lab.machine import preflight
from ppo_lab.memory.predict import hardware
from ppo_lab.memory.predict.estimate import Span, estimate, need, verdict
from ppo_lab.memory.predict.simulator import too_many_envs
from ppo_lab.memory.rows import MIB
from ppo_lab.runs.config import from_json
from ppo_lab.runs.folder import is_complete, lock, make_new_folder
from ppo_lab.sweeps import jobs as records
from ppo_lab.sweeps.executors import local_slots
from ppo_lab.sweeps.jobs import Job, Sweep
from ppo_lab.training.console import say

FOLDER_NAME_LENGTH = 120
MOST_NUMBERS = 6
"""Of jobs, in one line of the plan."""


@dataclass(frozen=True)
class SweepRequest:
    """What a sweep was asked to be: composed and checked, not yet planned."""

    combinations: list[tuple[str, ...]]
    """Each job's overrides."""
    experiments: list[ExperimentConfig]
    """Each job's experiment."""
    settings: SweepConfig
    folder: Path
    """The folder that it goes to, unless it resumes another sweep."""
    may_be_renamed: bool
    """Whether that folder may get a number where it exists."""
    command: str


def prepare(request: SweepRequest) -> Path:
    """Plans the sweep and makes its folder, whose jobs.json holds the plan, or finds it again. Returns the folder.

    Nothing is left on disk when it raises.

    Raises:
        ConfigError: two jobs are the same run, the devices do not fit, or `sweep.resume` is not of this very sweep.
        MachineError: the machine cannot run it.
        OverBudgetError: a job is predicted not to fit, and sweep.over_budget=stop.
    """
    combinations, experiments, settings = request.combinations, request.experiments, request.settings
    _refuse_equal(experiments, job_names(combinations))
    device = _device(experiments)
    local_slots(device, settings.jobs_per_device)
    preflight.check_system_libraries()
    jobs = _jobs(combinations, experiments)
    earlier = None
    if settings.resume is not None:
        earlier = _earlier(Path(settings.resume), combinations)
        jobs = [_continued(earlier, job) for job in jobs]
    jobs = _predicted(jobs, experiments, settings, device)
    if earlier:
        folder, started, command = earlier.folder, earlier.started, earlier.command
    else:
        folder = make_new_folder(request.folder, request.may_be_renamed, key=SWEEP_DIR)
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        command = request.command
    try:
        Sweep(folder, started, command, swept_keys(combinations), device, asdict(settings), jobs).save()
    except OSError as error:
        if earlier is None:
            shutil.rmtree(folder)
        raise ConfigError(
            f"cannot write to {folder}: {error.strerror}; choose another folder, or make it writable."
        ) from None
    return folder


def swept_keys(combinations: list[tuple[str, ...]]) -> list[str]:
    """The keys that have more than one value, as the configuration has them."""
    keys = (_split_override(combinations[0][position])[0].lstrip("+~") for position in _swept_positions(combinations))
    return list(dict.fromkeys(keys))


def job_names(combinations: list[tuple[str, ...]]) -> list[str]:
    """What each job differs by, keys cut to their last part where that tells them apart."""
    positions = _swept_positions(combinations)
    short = short_names(_split_override(combinations[0][position])[0] for position in positions)

    def shortened(override: str) -> str:
        key, value = _split_override(override)
        return f"{short[key]}={shown(key, value)}"

    return [" ".join(shortened(combination[position]) for position in positions) for combination in combinations]


def _swept_positions(combinations: list[tuple[str, ...]]) -> list[int]:
    """Positions of the overrides in which the combinations differ."""
    return [position for position, column in enumerate(zip(*combinations, strict=True)) if len(set(column)) > 1]


def folder_name(number: int, count: int, name: str) -> str:
    """A job's folder: its number first, so that no two share one, then its name in letters that any system takes."""
    plain = re.sub(r"[^A-Za-z0-9._=+-]+", ",", name).strip(",")
    return f"{number:0{len(str(count - 1))}d}_{plain}"[:FOLDER_NAME_LENGTH].rstrip("_.,")


def _refuse_equal(experiments: list[ExperimentConfig], names: list[str]) -> None:
    """Raises a ConfigError where two jobs are the same run: a value has no effect, or is given in two ways."""
    first: dict[str, int] = {}
    for number, experiment in enumerate(experiments):
        equal = first.setdefault(config.to_json(experiment), number)
        if equal != number:
            raise ConfigError(
                f"jobs {equal} ({names[equal]}) and {number} ({names[number]}) are the same run. Of a key given twice "
                "the last one counts. Give each key once, and each value once."
            )


def _jobs(combinations: list[tuple[str, ...]], experiments: list[ExperimentConfig]) -> list[Job]:
    names = job_names(combinations)
    return [
        Job(
            number=number,
            name=names[number],
            folder=folder_name(number, len(combinations), names[number]),
            overrides=combination,
            max_iterations=experiment.max_iterations,
            transitions=experiment.transitions,
        )
        for number, (combination, experiment) in enumerate(zip(combinations, experiments, strict=True))
    ]


def _device(experiments: list[ExperimentConfig]) -> str:
    asked = sorted({experiment.device for experiment in experiments})
    if len(asked) > 1:
        raise ConfigError(f"device={','.join(asked)}: a sweep has one kind of device. Allowed: auto, cpu, cuda.")
    if ":" in asked[0]:
        number = asked[0].partition(":")[2]
        raise ConfigError(
            f"device={asked[0]}: a sweep spreads its jobs itself. Allowed: auto, cpu, cuda; "
            f"CUDA_VISIBLE_DEVICES={number} leaves it this one."
        )
    return asked[0]


def _earlier(folder: Path, combinations: list[tuple[str, ...]]) -> Sweep:
    """The sweep in `folder`, if it is of these combinations. Raises a ConfigError."""
    try:
        sweep = records.read(folder)
        lock(folder).close()
    except ConfigError as error:
        raise ConfigError(f"sweep.resume: {error}") from None
    theirs = [job.overrides for job in sweep.jobs]
    if theirs == combinations:
        return sweep
    here, there = _values(combinations), _values(theirs)
    differ = [
        f"{key} is {_shown(here, key)} here and {_shown(there, key)} there"
        for key in here | there
        if here.get(key) != there.get(key)
    ] or ["the same overrides in another order"]
    raise ConfigError(
        f"sweep.resume={folder} is another sweep: {', '.join(differ)}. "
        f"Give it the overrides that it began with: {sweep.command}"
    )


def _continued(earlier: Sweep, job: Job) -> Job:
    """The job as it stands: completed, or planned anew with the time it took so far."""
    before = earlier.jobs[job.number]
    if job.folder != before.folder:
        raise ConfigError(f"sweep.resume: job {job.number} is in {before.folder}; expected: {job.folder}.")
    if before.status == "completed":
        return before
    if is_complete(earlier.run_folder(job)):  # and nobody was left to write it down
        return dataclasses.replace(before, status="completed", exit_code=0, message=None)
    return dataclasses.replace(job, started=before.started, wall_s=before.wall_s)


class _Prediction(NamedTuple):
    """Whether one experiment fits."""

    needs: Span | None
    """Bytes on the device; None where they are unknown."""
    is_impossible: bool
    """The simulator does not build so many envs, however much memory there is."""
    fits: str
    """yes, no or not known."""
    reason: str

    def applied_to(self, job: Job, may_be_skipped: bool) -> Job:
        """The job with what is predicted for it; not to be started where it is impossible, or does not fit."""
        if self.needs:
            least = self.needs.high is None
            job = dataclasses.replace(job, predicted_bytes=self.needs.needed, predicted_is_least=least)
        if self.is_impossible or (self.fits == "no" and may_be_skipped):
            job = dataclasses.replace(job, status="over_budget", message=self.reason)
        return job


def _predict(experiment: ExperimentConfig, machine: hardware.Hardware, free_bytes: int) -> _Prediction:
    if problem := too_many_envs(experiment):
        return _Prediction(None, True, "no", problem)
    needs = _estimate(experiment, machine)
    if needs is None:
        return _Prediction(None, False, "not known", "no prediction")
    return _Prediction(needs, False, verdict(needs, free_bytes), f"{need(needs, free_bytes)} free")


def _predicted(jobs: list[Job], experiments: list[ExperimentConfig], settings: SweepConfig, device: str) -> list[Job]:
    """The jobs with what each is predicted to need. Prints it on the way, since each distinct experiment takes seconds.

    Raises:
        OverBudgetError: one does not fit, and sweep.over_budget=stop.
    """
    machine, free_bytes = hardware.fullest(device)
    free_bytes //= settings.jobs_per_device
    planned = [job for job in jobs if job.status == "planned"]
    each = f" for each of {settings.jobs_per_device} at a time" if settings.jobs_per_device > 1 else ""
    say(f"plan: {len(planned)} jobs, {free_bytes / MIB:,.0f} MiB free on {machine.name}{each}")
    alike: dict[str, list[Job]] = {}  # in what they need
    for job in planned:
        experiment = experiments[job.number]
        experiment = dataclasses.replace(experiment, seed=0, init_from=experiment.any_ancestor)
        alike.setdefault(config.to_json(experiment), []).append(job)
    jobs, too_large = [*jobs], []
    for number, (text, group) in enumerate(alike.items(), 1):
        found = _predict(from_json(text), machine, free_bytes)
        count, outcome = f"  prediction {number} of {len(alike)}", f"{found.reason}; fits: {found.fits}"
        say(" | ".join(part for part in (count, _numbers(group), _name_of(group), outcome) if part))
        for job in group:
            jobs[job.number] = found.applied_to(job, settings.over_budget == "skip")
        too_large += group if found.fits == "no" else []
    if too_large and settings.over_budget == "stop":
        raise OverBudgetError(
            f"{len(too_large)} of {len(planned)} jobs do not fit: {', '.join(job.name for job in too_large)}. "
            "Try sweep.over_budget=skip to run the others, or sweep.over_budget=run to run all."
        )
    return jobs


def _estimate(cfg: ExperimentConfig, machine: hardware.Hardware) -> Span | None:
    """What the run needs, by the closed forms alone where it cannot be traced; None where not even they exist."""
    for with_trace in (True, False):
        try:
            return estimate(cfg, machine, with_trace, count_new_envs=False).device_bytes
        except (ConfigError, RuntimeError):  # as before a single run: what cannot be traced may run all the same
            continue
    return None


def _numbers(jobs: list[Job]) -> str:
    """The jobs by number, or how many they are."""
    if len(jobs) > MOST_NUMBERS:
        return f"{len(jobs)} jobs"
    return f"job{'' if len(jobs) == 1 else 's'} {', '.join(str(job.number) for job in jobs)}"


def _name_of(jobs: list[Job]) -> str:
    """What the jobs have in common, in which they differ from the others."""
    return " ".join(part for part in jobs[0].name.split(" ") if all(part in job.name.split(" ") for job in jobs))


def _values(combinations: list[tuple[str, ...]]) -> dict[str, list[str]]:
    """Key -> its values, each once."""
    values: dict[str, list[str]] = {}
    for combination in combinations:
        for key, value in map(_split_override, combination):
            known = values.setdefault(key, [])
            if value not in known:
                known.append(value)
    return values


def _split_override(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key, value


def _shown(values: dict[str, list[str]], key: str) -> str:
    return ",".join(values.get(key, ["not given"]))
