"""A sweep's jobs and how far they are: jobs.json, the one record that a sweep is run, resumed and reported from."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ppo_lab.errors import ConfigError
from ppo_lab.runs.files import write_json

Status = Literal["planned", "running", "completed", "failed", "killed", "interrupted", "over_budget"]
"""failed: it said why. killed: by a signal, or it ended without saying why. interrupted: stopped after a checkpoint.

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
    """The words for train.py, without what the sweep adds."""
    max_iterations: int
    transitions: int
    """In one iteration."""
    predicted_bytes: int | None = None
    """What must be free on the device; None where nobody knows."""
    predicted_is_least: bool = True
    """There is more to it that nobody has measured."""
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
        """Whether it would have to run for the sweep to be whole."""
        return self.status != "completed" and not self.was_skipped


class Sweep:
    """A sweep's folder with jobs.json in it, whole at every moment."""

    def __init__(
        self,
        folder: Path,
        started: str,
        command: str,
        swept: list[str],
        device: str,
        settings: dict[str, Any],
        jobs: list[Job],
    ) -> None:
        self.folder = folder
        self.started = started
        self.command = command
        self.swept = swept
        """The keys with more than one value."""
        self.device = device
        """auto, cpu or cuda."""
        self.settings = settings
        self.jobs = jobs

    def update(self, job: Job, **changes: Any) -> Job:
        """Writes down what became of a job."""
        changed = dataclasses.replace(job, **changes)
        self.jobs[job.number] = changed
        self.save()
        return changed

    def save(self) -> None:
        content = {"name": self.folder.name, **vars(self), "jobs": [asdict(job) for job in self.jobs]}
        del content["folder"]
        write_json(self.folder / "jobs.json", content)

    def run_folder(self, job: Job) -> Path:
        return self.folder / job.folder

    def log(self, job: Job) -> Path:
        """What the job printed, of each of its processes."""
        return self.folder / "logs" / f"{job.folder}.log"


def read(folder: Path) -> Sweep:
    """The sweep in `folder`. Raises a ConfigError where there is none."""
    try:
        content = json.loads((folder / "jobs.json").read_text(encoding="utf-8"))
        jobs = [_job(fields) for fields in content["jobs"]]
        if [job.number for job in jobs] != list(range(len(jobs))):
            raise ValueError("its jobs are not numbered from 0")
        return Sweep(
            folder,
            content["started"],
            content["command"],
            content["swept"],
            content["device"],
            content["settings"],
            jobs,
        )
    except FileNotFoundError:
        raise ConfigError(f"{folder} is not a sweep's folder: there is no jobs.json. {_ALLOWED}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {folder}/jobs.json: {error.strerror}. {_ALLOWED}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder}/jobs.json is damaged: {error}. {_ALLOWED}") from None


_ALLOWED = "Allowed: a folder that train.py -m made."


def _job(fields: dict[str, Any]) -> Job:
    job = Job(**{**fields, "overrides": tuple(fields["overrides"])})
    if Path(job.folder).name != job.folder or job.folder in ("", ".."):  # a sweep's folder may be a stranger's
        raise ValueError(f"job {job.number} is outside")
    if job.status not in get_args(Status):
        raise ValueError(f"job {job.number} is {job.status}")
    return job
