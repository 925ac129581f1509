"""A run folder: how it is made, locked and named."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO

from ppo_lab.config import ExperimentConfig, as_text
from ppo_lab.config.overrides import RUN_DIR
from ppo_lab.errors import ConfigError, ExitCode, StoppedError
from ppo_lab.runs.config import as_yaml
from ppo_lab.runs.files import lock, read_json, write_text

LEFT_BY_A_START = re.compile(r"\.lock|\.config\.yaml\.\d+\.tmp")
"""All that a run killed before it had its config.yaml leaves in its folder."""


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
    notes: list[str] = field(default_factory=list)
    """What to say of it at the start."""
    warnings: list[str] = field(default_factory=list)

    def keep_device(self) -> None:
        """Writes the device into config.yaml, once what was saved is known to fit a run on it."""
        config, text = self.folder / "config.yaml", as_yaml(self.cfg)
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
    metrics = folder / "metrics.jsonl"
    return metrics.exists() and metrics.stat().st_size > 0


def started_s(run: Path) -> float:
    """When the run began, in seconds since 1970; of what is no run, 0."""
    try:
        return datetime.fromisoformat(read_json(run / "manifest.json")["started"]).timestamp()
    except (KeyError, TypeError, ValueError):  # killed before its manifest was written
        config = run / "config.yaml"
        return config.stat().st_mtime if config.exists() else 0.0


def is_complete(run: Path) -> bool:
    """Whether the run says that it came to its end."""
    return read_json(run / "summary.json").get("status") == "completed"


def make_new_folder(wanted: Path, may_be_renamed: bool, word: str = RUN_DIR) -> Path:
    """Makes the folder `wanted`, or one beside it with a number; an existing run is never written over.

    `word`: begins the one that names it. Raises a ConfigError.
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
                    f"{word}{as_text(folder)} exists and is not an empty folder; a run never writes over another; "
                    "name a new folder."
                ) from None
            number += 1
            folder = wanted.with_name(f"{wanted.name}_{number}")
        except OSError as error:
            for path in new:
                with suppress(OSError):
                    path.rmdir()
            raise ConfigError(
                f"cannot make the run folder {as_text(folder)}: {error.strerror}; choose another with {word}FOLDER."
            ) from None


def take(folder: Path) -> IO[str]:
    """The lock of `folder`, held as long as it is open. Raises a ConfigError where another process has it."""
    try:
        held = lock(folder)
    except OSError as error:
        raise cannot_write(folder, error) from None
    if held is None:
        pid = (folder / ".lock").read_text().strip()
        raise ConfigError(f"{folder} is in use: process {pid} trains in it. Wait for it, or stop it with: kill {pid}")
    return held


def cannot_write(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot write to {folder}: {error.strerror}; choose another folder, or make it writable.")
