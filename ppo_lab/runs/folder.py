"""A run folder: the names of its files, how it is made, found and locked."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from ppo_lab.config import ExperimentConfig, as_text
from ppo_lab.config.overrides import RUN_DIR
from ppo_lab.errors import ConfigError, ExitCode, StoppedError
from ppo_lab.machine.commands import relative_to_cwd
from ppo_lab.runs.config import as_yaml
from ppo_lab.runs.files import damage, numbered, read_json, write_text

if TYPE_CHECKING:
    from ppo_lab.runs.ancestry import Ancestor


@dataclass(frozen=True)
class RunFolder:
    """Where each file of a run lies. Nothing else spells the names of these files."""

    path: Path

    @property
    def config(self) -> Path:
        """The experiment. A folder with this file is a run folder."""
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def metrics(self) -> Path:
        """A line of JSON an iteration."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def estimate(self) -> Path:
        return self.path / "estimate.json"

    @property
    def reproduction(self) -> Path:
        return self.path / "reproduction.json"

    @property
    def log(self) -> Path:
        return self.path / "train.log"

    @property
    def hydra(self) -> Path:
        """A folder: what Hydra composed."""
        return self.path / ".hydra"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    @property
    def checkpoints(self) -> Path:
        """A folder; `checkpoint_name`, BEST and `resumable` know its files."""
        return self.path / "checkpoints"

    @property
    def evaluation(self) -> Path:
        """A folder: a JSON file for each evaluation of the run's policies."""
        return self.path / "evaluation"

    @property
    def films(self) -> Path:
        """A folder: films of the run's policies."""
        return self.path / "films"

    @property
    def export(self) -> Path:
        """A folder: a policy of the run as a robot takes it. `ppo_lab.deploy.runner` knows its files."""
        return self.path / "export"

    def diff(self, goes_on_with: int | None = None) -> Path:
        """What the checkout had beyond its commit when the run began, or went on with that iteration."""
        return self.path / ("git.diff" if goes_on_with is None else f"git_{goes_on_with}.diff")

    def dump(self, iteration: int) -> Path:
        """What led to a NaN or Inf."""
        return self.path / f"nan_{iteration}.pt"

    def event_files(self) -> set[Path]:
        """TensorBoard's."""
        return set(self.path.glob("events.*"))


BEST = "best.pt"
"""In `checkpoints`: the weights with the highest mean reward."""


def checkpoint_name(kind: Literal["model", "state"], iteration: int) -> str:
    return f"{kind}_{iteration}.pt"


def resumable(checkpoints: Path) -> dict[int, tuple[Path, Path]]:
    """The checkpoints that have a state, the oldest first: iteration -> model and state."""
    models, states = (numbered(checkpoints, kind) for kind in ("model", "state"))
    return {iteration: (path, states[iteration]) for iteration, path in models.items() if iteration in states}


AS_TRAINED = "as trained"
"""In an evaluation: the condition that changes nothing of the env."""
SIX = 6


def find_checkpoints(folder: Path, wanted: str) -> list[Path]:
    """The files of the checkpoints that `wanted` names: all | six, or what `find_checkpoint` takes, by commas: 0,50.

    six: up to six of the numbered ones, evenly spread, the first and the last among them.

    Raises a ConfigError where one is not there, or is damaged.
    """
    models = list(numbered(RunFolder(folder).checkpoints, "model").values())
    if wanted in ("all", "six") and models:
        found = models if wanted == "all" or len(models) <= SIX else _spread(models, SIX)
    else:
        names = wanted.split(",") if wanted not in ("all", "six") else ["last"]
        found = [find_checkpoint(folder, name) for name in names]
    for path in found:
        if wrong := damage(path.read_bytes()):
            raise ConfigError(f"{path} {wrong}. Choose another checkpoint of the run.")
    return found


def named_checkpoints(folder: Path) -> dict[str, Path]:
    """The single files that `find_checkpoints` finds, by name: best where there is one, then the newest first.

    They may be damaged.
    """
    checkpoints = RunFolder(folder).checkpoints
    models, best = numbered(checkpoints, "model"), checkpoints / BEST
    return {
        **({"best": best} if best.is_file() else {}),
        **{str(iteration): models[iteration] for iteration in reversed(models)},
    }


def _spread(items: list[Path], count: int) -> list[Path]:
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def find_checkpoint(folder: Path, name: str) -> Path:
    """The checkpoint that `name` means in the run `folder`: "last", "best", or an iteration in digits.

    Raises a ConfigError that lists what there is.
    """
    named, shown = named_checkpoints(folder), as_text(relative_to_cwd(folder))
    iterations = sorted(map(int, named.keys() - {"best"}))
    if not named:
        raise ConfigError(f"{shown} has no checkpoint: nothing was saved yet. Allowed: a run that has one.")
    if name == "last" and iterations:
        return named[str(iterations[-1])]
    wanted = str(int(name)) if name.isdecimal() and len(name) < 20 else name
    if wanted in named:
        return named[wanted]
    there = [*(["last"] if iterations else []), *(["best"] if "best" in named else []), *iterations]
    raise ConfigError(f"{shown} has no checkpoint {as_text(name)}. Allowed: {', '.join(map(str, there))}.")


def folder_of_checkpoint(checkpoint: Path) -> Path | None:
    """The run folder of a checkpoint's file; None where it lies elsewhere."""
    folder = RunFolder(checkpoint.parent.parent)
    return folder.path if checkpoint.parent.name == folder.checkpoints.name else None


def find_runs(folder: Path) -> list[Path]:
    """Every run folder in `folder`, itself among them, sorted by path.

    Symbolic links are not followed, and folders whose names begin with a dot are left out.
    """
    name, checkpoints = RunFolder(folder).config.name, RunFolder(folder).checkpoints.name
    found = []
    for path, subfolders, files in os.walk(folder):
        subfolders[:] = [subfolder for subfolder in subfolders if subfolder != checkpoints and subfolder[0] != "."]
        if name in files:
            found.append(Path(path))
    return sorted(found)


LEFT_BY_A_START = re.compile(r"\.lock|\.config\.yaml\.\d+\.tmp")
"""Files that may remain where a run was killed during start-up."""


@dataclass(frozen=True)
class Run:
    """A run about to begin, or to go on."""

    cfg: ExperimentConfig
    folder: Path
    overrides: list[str]
    """The settings of the command, without `hydra.*`."""
    lock: IO[str]
    """Held as long as it is open; no other process may train in the folder."""
    continues: bool = False
    checkpoint: int | None = None
    """The iteration after which it goes on; None: from the start."""
    reproduces: Path | None = None
    """The run folder to be compared with at the end."""
    ancestor: Ancestor | None = None
    """The checkpoint whose weights it begins with; None also where it goes on from one of its own."""
    new_run_from: Callable[[int], str] = lambda iteration: ""
    """The command that begins a new run with the weights after an iteration of this one; "" where there is none."""
    notes: list[str] = field(default_factory=list)
    """What to say of it at the start."""
    warnings: list[str] = field(default_factory=list)

    @property
    def first_iteration(self) -> int:
        """The one that comes next, counted from 0."""
        return 0 if self.checkpoint is None else self.checkpoint + 1

    def keep_device(self) -> None:
        """Writes the device into config.yaml, once what was saved is known to fit a run on it."""
        config, text = RunFolder(self.folder).config, as_yaml(self.cfg)
        if config.read_text() != text:
            write_text(config, text)

    @contextmanager
    def discarded_unless_begun(self) -> Iterator[None]:
        """Removes the folder where the run within is stopped, or refused, before an iteration is complete."""
        try:
            yield
        except (SystemExit, KeyboardInterrupt, StoppedError) as ended:
            has_failed = isinstance(ended, SystemExit) and ended.code in (ExitCode.DONE, ExitCode.FAILED)
            if not has_failed and not self.continues and not has_rows(self.folder):
                shutil.rmtree(self.folder, ignore_errors=True)
            raise


def has_rows(folder: Path) -> bool:
    """Whether the run in `folder` has completed an iteration."""
    metrics = RunFolder(folder).metrics
    return metrics.exists() and metrics.stat().st_size > 0


def started_s(run: Path) -> float:
    """When the run began, in seconds since 1970; of what is no run, 0."""
    try:
        return datetime.fromisoformat(read_json(RunFolder(run).manifest)["started"]).timestamp()
    except (KeyError, TypeError, ValueError):  # killed before its manifest was written
        config = RunFolder(run).config
        return config.stat().st_mtime if config.exists() else 0.0


def is_complete(run: Path) -> bool:
    """Whether the run says that it came to its end."""
    return read_json(RunFolder(run).summary).get("status") == "completed"


def make_new_folder(wanted: Path, may_be_renamed: bool, key: str = RUN_DIR) -> Path:
    """Makes the folder `wanted`, or one beside it with a number; an existing run is never written over.

    `key`: of the setting that names it, with its equals sign. Raises a ConfigError.
    """
    folder, number = wanted, 1
    new: list[Path] = []
    while True:
        try:
            new = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not may_be_renamed:
                is_ours = folder.is_dir() and os.access(folder, os.R_OK | os.X_OK)
                if is_ours and all(LEFT_BY_A_START.fullmatch(path.name) for path in folder.iterdir()):
                    return folder
                raise ConfigError(
                    f"{key}{as_text(folder)} exists and is not an empty folder; a run never writes over another; "
                    "name a new folder."
                ) from None
            number += 1
            folder = wanted.with_name(f"{wanted.name}_{number}")
        except OSError as error:
            for path in new:
                with suppress(OSError):
                    path.rmdir()
            raise ConfigError(
                f"cannot make the run folder {as_text(folder)}: {error.strerror}; choose another with {key}FOLDER."
            ) from None


def lock(folder: Path) -> IO[str]:
    """The lock of `folder`, held as long as it is open. Raises a ConfigError where another process has it."""
    try:
        held = try_lock(folder)
    except OSError as error:
        raise cannot_write(folder, error) from None
    if held is None:
        pid = locked_by(folder)
        raise ConfigError(f"{folder} is in use: process {pid} trains in it. Wait for it, or stop it with: kill {pid}")
    return held


def try_lock(folder: Path) -> IO[str] | None:
    """Locks `folder` for this process until the file returned is closed, or the process ends. None where it is locked.

    Raises an OSError where the folder cannot be written to.
    """
    file = RunFolder(folder).lock.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    file.truncate(0)
    with suppress(OSError):  # on a full disk the lock holds all the same
        os.write(file.fileno(), f"{os.getpid()}\n".encode())
    return file


def is_locked(folder: Path) -> bool:
    """Whether a running process has locked `folder`."""
    with suppress(OSError), RunFolder(folder).lock.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def locked_by(folder: Path) -> str:
    """The id of the process that locked `folder` last, as it wrote it."""
    return as_text(RunFolder(folder).lock.read_text(errors="replace").strip())


def make_part(part: Path) -> Path:
    """The folder `part` of a run's folder, which is made where it is not there. Raises a ConfigError."""
    try:
        part.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(part.parent, error) from None
    return part


def cannot_write(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot write to {folder}: {error.strerror}; choose another folder, or make it writable.")
