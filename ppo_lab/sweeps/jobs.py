"""A sweep's jobs and how far they are: jobs.json, the one record that a sweep is run, resumed and reported from."""

from __future__ import annotations

import dataclasses
import types
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ppo_lab.config import as_text
from ppo_lab.errors import ConfigError
from ppo_lab.runs.files import from_json, write_json

JOBS = "jobs.json"

Status = Literal["planned", "running", "completed", "failed", "killed", "interrupted", "over_budget"]
"""failed: it printed a reason. killed: by a signal, or without a reason. interrupted: stopped after a checkpoint.

over_budget: predicted not to fit; never started where `exit_code` is None, or else stopped by its own check.
"""


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    number: int
    name: str
    """What it differs by: "num_envs=512 seed=1"."""
    folder: str
    """Its run folder, beneath the sweep's."""
    overrides: tuple[str, ...]
    """For train.py, without what the sweep adds."""
    max_iterations: int
    transitions: int
    """In one iteration."""
    predicted_bytes: int | None = None
    """What must be free on the device; None where that is unknown."""
    predicted_is_least: bool = True
    """It needs more, by an amount that was never measured."""
    status: Status = "planned"
    exit_code: int | None = None
    """Negative: the signal that ended it."""
    message: str | None = None
    device: str | None = None
    started: str | None = None
    wall_s: float | None = None
    """Of all its processes, where it was resumed."""

    @property
    def was_skipped(self) -> bool:
        return self.status == "over_budget" and self.exit_code is None

    @property
    def is_waiting(self) -> bool:
        """Whether it cannot start yet, for the reason that `message` gives."""
        return self.status == "planned" and self.message is not None

    @property
    def is_missing(self) -> bool:
        """Whether the sweep is incomplete without it."""
        return self.status != "completed" and not self.was_skipped


class Sweep:
    """A sweep's folder with jobs.json in it, which is complete at every moment."""

    def __init__(
        self,
        folder: Path,
        started: str,
        command: str,
        swept: list[str],
        device: str,
        settings: dict[str, Any],
        jobs: list[Job],
        name: str | None = None,
    ) -> None:
        self.folder = folder
        self.name = name or folder.name
        self.started = started
        self.command = command
        self.swept = swept
        """The keys with more than one value."""
        self.device = device
        """auto, cpu or cuda."""
        self.settings = settings
        self.jobs = jobs

    def update(self, job: Job, **changes: Any) -> Job:
        """Records a change of a job, and returns the job as it is now."""
        changed = dataclasses.replace(job, **changes)
        self.jobs[job.number] = changed
        self.save()
        return changed

    def save(self) -> None:
        content = {**vars(self), "jobs": [asdict(job) for job in self.jobs]}
        del content["folder"]
        write_json(self.folder / JOBS, content)

    def run_folder(self, job: Job) -> Path:
        return self.folder / job.folder

    def log(self, job: Job) -> Path:
        """What the job printed, of each of its processes."""
        return self.folder / "logs" / f"{job.folder}.log"


def is_sweep(folder: Path) -> bool:
    return (folder / JOBS).exists()


def read(folder: Path) -> Sweep:
    """The sweep in `folder`. Raises a ConfigError where there is none."""
    try:
        content = from_json((folder / JOBS).read_bytes())
        jobs = [_job(fields) for fields in content["jobs"]]
        if [job.number for job in jobs] != list(range(len(jobs))):
            raise ValueError("its jobs are not numbered from 0")
        return Sweep(
            folder,
            str(content["started"]),
            str(content["command"]),
            [str(key) for key in content["swept"]],
            str(content["device"]),
            dict(content["settings"]),
            jobs,
            content.get("name"),
        )
    except FileNotFoundError:
        raise ConfigError(f"{folder} is not a sweep's folder: there is no {JOBS}. {_ALLOWED}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {folder / JOBS}: {error.strerror}. {_ALLOWED}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder / JOBS} is damaged: {error}. {_ALLOWED}") from None


_ALLOWED = "Allowed: a folder that train.py -m made."


def _job(fields: dict[str, Any]) -> Job:
    job = Job(**{**fields, "overrides": tuple(fields["overrides"])})
    for name, kind in get_type_hints(Job).items():
        if not _is_of(kind, getattr(job, name)):
            raise ValueError(f"the {name} of job {job.number} is {as_text(getattr(job, name))}")
    if Path(job.folder).name != job.folder or job.folder in ("", ".."):  # anyone may have written the file
        raise ValueError(f"the folder of job {job.number} lies outside the sweep")
    return job


def _is_of(kind: Any, value: object) -> bool:
    """Whether `value` is of the type of a field of Job."""
    origin = get_origin(kind)
    if origin is Literal:
        return value in get_args(kind)
    if origin is types.UnionType:
        return any(_is_of(each, value) for each in get_args(kind))
    if origin is tuple:
        return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    return type(value) is kind or (kind is float and type(value) is int)
