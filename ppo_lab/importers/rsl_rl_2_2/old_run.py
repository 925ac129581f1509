"""A run folder of rsl-rl-lib 2.2.4 becomes one of today's."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppo_lab.errors import ConfigError
from ppo_lab.importers.rsl_rl_2_2 import plain_pickle
from ppo_lab.importers.rsl_rl_2_2.old_settings import Defaults, Translation, translate
from ppo_lab.runs.config import as_yaml
from ppo_lab.runs.files import write_json, write_text
from ppo_lab.runs.folder import RunFolder, checkpoint_name


@dataclass(frozen=True)
class OldRun:
    """What was read, and found good."""

    folder: Path
    settings: Translation
    checkpoints: dict[int, Path]
    """Iteration -> file."""
    sha256: dict[str, str]
    """Of every file that was read, by name."""


def read(folder: Path, num_envs: int | None, defaults: Defaults) -> OldRun:
    """Reads every file of the run, to know that all can be imported. Raises a ConfigError."""
    checkpoints = _checkpoints(folder)
    pickled = folder / "cfgs.pkl"
    with _refusals(pickled):
        data = pickled.read_bytes()
        settings = translate(plain_pickle.load(data), num_envs, defaults)
        sha256 = {pickled.name: hashlib.sha256(data).hexdigest()}
    from ppo_lab.importers.rsl_rl_2_2 import old_checkpoint

    for iteration, path in checkpoints.items():
        with _refusals(path):
            data = path.read_bytes()
            old_checkpoint.read(data, settings.experiment, iteration)
            sha256[path.name] = hashlib.sha256(data).hexdigest()
    return OldRun(folder, settings, checkpoints, sha256)


def _checkpoints(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder. Name one that holds cfgs.pkl and model_<iteration>.pt.")
    if RunFolder(folder).config.exists():
        raise ConfigError(f"{folder} is a run folder of today already. Allowed: runs of rsl-rl-lib 2.2.4.")
    names = {path: re.fullmatch(r"model_(0|[1-9]\d*)\.pt", path.name) for path in folder.iterdir() if path.is_file()}
    found = {int(match[1]): path for path, match in names.items() if match}
    missing = [] if (folder / "cfgs.pkl").is_file() else ["cfgs.pkl"]
    missing += [] if found else ["model_<iteration>.pt"]
    if missing:
        raise ConfigError(f"{folder} has no {' and no '.join(missing)}; a run of rsl-rl-lib 2.2.4 has both.")
    return dict(sorted(found.items()))


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Names the file in what is raised."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path} is refused: {error}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}.") from None


def write(into: Path, run: OldRun, command: str) -> None:
    """Makes the run folder `into`, whole or not at all. `command`: the one that imports it. Raises a ConfigError."""
    if into.exists() or into.is_symlink():
        raise ConfigError(f"{into} exists; a run never writes over another. Name a new folder: --into FOLDER.")
    temporary = into.with_name(f".{into.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        _write_files(temporary, run, command)
        temporary.rename(into)
    except OSError as error:
        raise ConfigError(f"cannot write {into}: {error.strerror}. Name another folder: --into FOLDER.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_files(folder: Path, run: OldRun, command: str) -> None:
    import torch

    from ppo_lab.importers.rsl_rl_2_2 import old_checkpoint
    from ppo_lab.learning.checkpoint import save
    from ppo_lab.runs.manifest import describe_run, read_checkout

    cfg = run.settings.experiment
    manifest = describe_run([], cfg, torch.device("cpu"), folder, read_checkout())
    del manifest["reproduce"]  # of what it would be compared with, the old run has recorded nothing
    manifest |= {"command": command, "repeat": command, "exact": "not claimed: an old run", "imported": _origin(run)}
    write_text(RunFolder(folder).config, as_yaml(cfg))
    write_json(RunFolder(folder).manifest, manifest)
    RunFolder(folder).checkpoints.mkdir()
    for iteration, path in run.checkpoints.items():
        with _refusals(path):
            state = old_checkpoint.read(path.read_bytes(), cfg, iteration)
        save(RunFolder(folder).checkpoints / checkpoint_name("model", iteration), state)
    write_json(RunFolder(folder).summary, _summary(run))


def _origin(run: OldRun) -> dict[str, Any]:
    return {
        "from": "rsl-rl-lib 2.2.4",
        "folder": run.folder.resolve().name,
        "sha256": run.sha256,
        "dropped": run.settings.dropped,
        "not_recorded": run.settings.not_recorded,
    }


def _summary(run: OldRun) -> dict[str, Any]:
    """The keys of every summary; an old run's checkpoints tell how far it came, and nothing of how it went."""
    unknown = "wall_s startup_s training_s steps_per_s final_reward best_reward final_episode_length".split()
    return {
        "status": "imported",
        "message": "an old run, which holds no state of simulator and random numbers to continue from",
        "iterations": max(run.checkpoints) + 1,
        **dict.fromkeys(unknown),
        "peak_mib": {},
        "memory": [],
    }
