"""Which run a command starts, continues or repeats, and in which folder. Loads neither torch nor the simulator."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml
from omegaconf import DictConfig, OmegaConf

from ppo_lab import command_line, preflight
from ppo_lab.command_line import RUN_DIR, SWEEP_DIR, quoted
from ppo_lab.config import ConfigError, ExperimentConfig, as_text, flat
from ppo_lab.files import flaw, is_locked, lock, numbered, read_json, with_state, write_text

MAY_CHANGE = ("max_iterations", "save_interval", "checkpoint", "memory", "quiet")
"""Settings that a run may go on with changed: none of them touches what is learned."""

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
    warnings: list[str] = field(default_factory=list)


def prepare(words: list[str]) -> tuple[Run | None, list[str]]:
    """Checks the words (without the program's name) and this machine, and takes the run's folder.

    Returns the run, and the words for Hydra; None where Hydra answers by itself. Nothing is left on disk when it
    raises.

    Raises:
        ConfigError: the words do not make a run.
        MachineError: the machine cannot run it.
    """
    if command_line.is_for_hydra(words):
        command_line.check_question(words)
        return None, words
    for word in words:
        if word.lstrip("+~").startswith(("sweep.", SWEEP_DIR)):
            raise ConfigError(f"{word} is for sweeps. Add -m: python train.py -m ...")
    preflight.check_single_process()
    cfg = command_line.compose(words)
    if cfg.resume is not None and cfg.reproduce is not None:
        raise ConfigError("resume= and reproduce= exclude each other: one goes on in a folder, the other begins anew.")
    preflight.check_system_libraries()
    folder = command_line.folder_of(cfg)
    by_hand = any(word.startswith(RUN_DIR) for word in words)
    ours = [word for word in words if not word.startswith("hydra.")]
    for_hydra = [word for word in words if not word.startswith(RUN_DIR)]

    target = _named(cfg, "resume")
    if cfg.resume == "auto":
        target = _newest_unfinished(command_line.to_experiment(cfg), folder, by_hand)
    if target is not None:
        if by_hand and cfg.resume != "auto":
            raise ConfigError(f"resume={cfg.resume} goes on in the run's own folder. Leave out hydra.run.dir=.")
        run = _continue(target, cfg, ours)
        for_hydra.append("hydra.output_subdir=null")  # the run has its .hydra already
    else:
        run = _begin(cfg, folder, ours, may_be_renamed=not by_hand)
    return run, [*for_hydra, f"{RUN_DIR}{quoted(run.folder)}"]


def _named(cfg: DictConfig, key: str) -> Path | None:
    """The path that `key` gives; it may be missing, but can be looked for."""
    if cfg[key] is None:
        return None
    path = Path(str(cfg[key]))
    try:
        path.exists()
    except OSError as error:
        raise ConfigError(f"{key}={as_text(path)}: {error.strerror}. Allowed: a run folder.") from None
    return path


def _begin(cfg: DictConfig, folder: Path, overrides: list[str], may_be_renamed: bool) -> Run:
    original = _named(cfg, "reproduce")
    if original is None:
        experiment = command_line.to_experiment(cfg)
    else:
        saved = _saved_experiment(original, f"reproduce={original}")
        if not (original / "metrics.jsonl").is_file():
            raise ConfigError(f"reproduce={original}: it has no metrics.jsonl, and so nothing to compare with.")
        experiment = _with_changes(saved, cfg, overrides, ("quiet", "run_name"), f"reproduce={original}")
    _check_device(experiment)
    if original is not None and may_be_renamed:
        folder = folder.parent.with_name(experiment.env.name) / folder.name
    made = make_new_folder(folder, may_be_renamed)
    held = take(made)
    try:
        write_text(made / "config.yaml", as_yaml(experiment))  # from here on the run can be gone on with
    except OSError as error:
        shutil.rmtree(made)
        raise _cannot_write(made, error) from None
    return Run(experiment, made, overrides, held, reproduces=original)


def _continue(target: Path, cfg: DictConfig, overrides: list[str]) -> Run:
    asked = f"resume={cfg.resume}"
    at = None
    if target.is_file() and target.parent.name == "checkpoints":
        folder = target.parent.parent
        at = next(
            (n for kind in ("model", "state") for n, p in numbered(target.parent, kind).items() if p == target), None
        )
        if at is None:
            raise ConfigError(f"{asked}: {target.name} is no checkpoint to go on from. {_resumable(folder)}")
    elif target.is_dir():
        folder = target
    else:
        raise ConfigError(
            f"{asked}: there is no such folder or file. Allowed: a run folder, a checkpoint in one, auto."
        )
    saved = _saved_experiment(folder, asked)
    experiment = _with_changes(saved, cfg, overrides, MAY_CHANGE, asked)
    _check_device(experiment)
    warnings: list[str] = []
    held = take(folder)
    try:
        checkpoint = _newest_whole(folder, at, asked, warnings)
        done = 0 if checkpoint is None else checkpoint + 1
        left = experiment.max_iterations - done
        if left < 0 or (left == 0 and is_complete(folder)):  # killed at the very end, it is completed
            raise ConfigError(
                f"{asked}: {done} iterations are done, and max_iterations={experiment.max_iterations} is the total. "
                f"Try max_iterations={2 * done} to train on."
            )
        write_text(folder / "config.yaml", as_yaml(experiment))
    except ConfigError:
        held.close()
        raise
    except OSError as error:
        held.close()
        raise _cannot_write(folder, error) from None
    return Run(experiment, folder, overrides, held, continues=True, checkpoint=checkpoint, warnings=warnings)


def _newest_unfinished(asked: ExperimentConfig, folder: Path, by_hand: bool) -> Path | None:
    """The newest run of the very same experiment that can go on; by hand, only the folder that was named."""
    if by_hand:
        return folder if (folder / "config.yaml").exists() else None
    siblings = folder.parent.iterdir() if folder.parent.is_dir() else ()
    for run in sorted(siblings, key=lambda path: path.name, reverse=True):
        try:
            saved = command_line.read_experiment(run / "config.yaml")
        except ConfigError:
            continue
        if _settings_that_matter(saved) == _settings_that_matter(asked) and not is_complete(run) and not is_locked(run):
            return run
    return None


def _settings_that_matter(cfg: ExperimentConfig) -> dict[str, Any]:
    settings = flat(asdict(cfg))
    return {key: value for key, value in settings.items() if key == "max_iterations" or not _is_among(key, MAY_CHANGE)}


def is_complete(run: Path) -> bool:
    """Whether the run says that it came to its end."""
    return read_json(run / "summary.json").get("status") == "completed"


def _saved_experiment(folder: Path, asked: str) -> ExperimentConfig:
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{asked}: {folder} is not a run folder: it has no config.yaml.")
    return command_line.read_experiment(folder / "config.yaml")


def _with_changes(
    saved: ExperimentConfig, cfg: DictConfig, overrides: list[str], may_change: tuple[str, ...], asked: str
) -> ExperimentConfig:
    """`saved`, with what the words set and may set. A word that says what was saved changes nothing."""
    said, unsaid = _settings(cfg), _settings(command_line.compose([]))
    named = tuple(word.lstrip("+~").partition("=")[0] for word in overrides)
    settings, changes = flat(asdict(saved)), {}
    for key, value in said.items():
        is_said = value != unsaid.get(key) or _is_among(key, named)
        if not is_said or (key in settings and value == settings[key]):
            continue
        if not _is_among(key, may_change):
            raise ConfigError(
                f"{asked}: {key}={as_text(value)} would change the run, which has {as_text(settings.get(key))}. "
                f"Allowed to change: {', '.join(may_change)}."
            )
        changes[key] = value
    merged = OmegaConf.create(asdict(saved))
    for key, value in changes.items():
        OmegaConf.update(merged, key, value)
    return command_line.to_experiment(merged)


def _newest_whole(folder: Path, at: int | None, asked: str, warnings: list[str]) -> int | None:
    """The newest iteration of which model and state are whole, or `at`. None where nothing was saved yet."""
    resumable = with_state(folder / "checkpoints")
    if at is None and not numbered(folder / "checkpoints", "model"):
        return None
    for number in reversed(resumable) if at is None else [at]:
        if number not in resumable:
            raise ConfigError(
                f"{asked}: iteration {number} has weights alone, no state to go on from. {_resumable(folder)}"
            )
        flaws = [f"{path} {why}" for path in resumable[number] if (why := flaw(path.read_bytes()))]
        if not flaws:
            return number
        warnings += flaws
    raise ConfigError(f"{asked}: {'; '.join(warnings) or 'no state to go on from'}. {_resumable(folder, warnings)}")


def _resumable(folder: Path, broken: list[str] | None = None) -> str:
    """Which checkpoints there are to go on from, in words."""
    resumable = with_state(folder / "checkpoints")
    there = [str(n) for n in resumable if not any(f"_{n}.pt " in why for why in broken or ())]
    return f"Allowed: those of iteration {' or '.join(there)}." if there else "The weights alone cannot go on exactly."


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
        raise _cannot_write(folder, error) from None
    if held is None:
        pid = (folder / ".lock").read_text().strip()
        raise ConfigError(f"{folder} is in use: process {pid} trains in it. Wait for it, or stop it with: kill {pid}")
    return held


def _cannot_write(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot write to {folder}: {error.strerror}; choose another folder, or make it writable.")


def as_yaml(cfg: ExperimentConfig) -> str:
    """What config.yaml holds; `command_line.read_experiment` reads it."""
    return yaml.safe_dump(asdict(cfg), sort_keys=False)


def _check_device(cfg: ExperimentConfig) -> None:
    if cfg.device.startswith("cuda"):
        preflight.resolve_device(cfg.device)


def _settings(cfg: DictConfig) -> dict[str, Any]:
    content = OmegaConf.to_container(command_line.without_start(cfg), resolve=True)
    assert isinstance(content, dict)
    return flat(content)


def _is_among(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
