"""Which run a command starts, continues or repeats, and in which folder. Loads neither torch nor the simulator."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ppo_lab import envs
from ppo_lab.cli import argv as command_line
from ppo_lab.cli import automatic
from ppo_lab.cli.argv import Source, parse
from ppo_lab.cli.compose import compose, folder_of
from ppo_lab.config import ExperimentConfig, as_text, flat
from ppo_lab.config.overrides import RUN_DIR, SWEEP_DIR, first_line, quoted
from ppo_lab.errors import ConfigError, NothingToDo, StoppedError
from ppo_lab.machine import commands, devices, preflight
from ppo_lab.machine.commands import relative_to_cwd
from ppo_lab.machine.launch import position_by_launcher
from ppo_lab.runs import ancestry
from ppo_lab.runs.config import (
    LABELS,
    MAY_CHANGE,
    ON_REQUEST,
    START_KEYS,
    as_yaml,
    from_older_version,
    read_experiment,
    to_experiment,
    without_start,
)
from ppo_lab.runs.files import damage, numbered, read_json, write_text
from ppo_lab.runs.folder import (
    Run,
    RunFolder,
    cannot_write,
    folder_of_checkpoint,
    is_complete,
    is_locked,
    lock,
    make_new_folder,
    resumable,
    started_s,
)

AUTO = "auto"
"""As in resume=auto."""


class Chosen(NamedTuple):
    """A run whose folder is taken, and the configuration that was composed for it, with Hydra's own settings."""

    run: Run
    cfg: DictConfig


def prepare(argv: list[str]) -> Chosen:
    """Checks `argv` (without the program's name) and this machine, and takes the run's folder.

    Nothing is left on disk when it raises.

    Raises:
        ConfigError: the overrides do not make a run.
        MachineError: the machine cannot run it.
        NothingToDo: the run to go on with is complete.
    """
    overrides, source = command_line.read(argv)
    for override in overrides:
        if override.lstrip("+~").startswith(("sweep.", SWEEP_DIR)):
            raise ConfigError(f"{override} is for sweeps. Add -m: python train.py -m ...")
    overrides = _with_launched_ranks(overrides)
    requested = {override.key_or_group: override.value() for override in map(parse, overrides)}
    resume, reproduce = requested.get("resume"), requested.get("reproduce")
    if resume is not None and reproduce is not None:
        raise ConfigError("resume= and reproduce= exclude each other: one goes on in a folder, the other begins anew.")
    is_folder_named = RUN_DIR[:-1] in requested
    if is_folder_named and resume not in (None, AUTO):
        raise ConfigError(f"resume={resume} goes on in the run's own folder. Leave out hydra.run.dir=.")

    start, notes = None, []
    world_size = os.environ.get("WORLD_SIZE", "")
    if position_by_launcher() is None and world_size.isdecimal() and int(world_size) > 1:
        notes.append(f"WORLD_SIZE={world_size} is ignored, as no launcher has set RANK and the like")
    if resume == AUTO:
        cfg = compose(overrides, source)
        found, note = _newest(to_experiment(cfg), folder_of(cfg), is_folder_named)
        notes.append(f"resume=auto: {note}")
        start = _start("resume=auto", found, source) if found else None
    elif resume is not None or reproduce is not None:
        key, value = ("resume", resume) if reproduce is None else ("reproduce", reproduce)
        start = _start(f"{key}={as_text(value)}", Path(str(value)), source)
    kept = [*source.options, *(text for text in overrides if not text.lstrip("+").startswith("hydra."))]
    if start and not {"env", "experiment"} & requested.keys():
        overrides = [f"env={start.saved.env.name}", *overrides]  # whose keys the overrides are about
    cfg = compose(overrides, source)
    _set_environment(cfg)
    preflight.check_system_libraries()
    if start and reproduce is None:
        run = _continue(start, cfg, kept, notes)
    else:
        run = _begin(start, cfg, kept, notes, may_be_renamed=not is_folder_named)
    return Chosen(run, cfg)


def _with_launched_ranks(overrides: list[str]) -> list[str]:
    """`overrides`, with as many processes as a launcher has started. Raises a ConfigError for another number."""
    position = position_by_launcher()
    given = next((override.value() for override in map(parse, overrides) if override.key_or_group == "processes"), None)
    if position is None:
        return overrides
    if given not in (None, "auto", position.world_size):
        raise ConfigError(
            f"processes={as_text(given)}: the launcher has started {position.world_size} processes. "
            "Leave out processes=."
        )
    return [*(text for text in overrides if not text.startswith("processes=")), f"processes={position.world_size}"]


def _set_environment(cfg: DictConfig) -> None:
    """Obeys hydra.job.env_set. Raises a ConfigError, also where another of Hydra's settings has a wrong kind."""
    try:
        job: Any = OmegaConf.to_container(cfg.hydra.job, resolve=True)
        verbose = cfg.hydra.verbose
        names = [*verbose] if OmegaConf.is_list(verbose) else [verbose]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{first_line(error)}.") from None
    if not all(isinstance(name, str) for name in names) and not isinstance(verbose, bool):
        raise ConfigError("hydra.verbose: allowed are true, false, the name of a logger, and a list of such names.")
    for name, value in job["env_set"].items():
        if not name or not f"{name}{value}".isprintable() or "=" in name:
            raise ConfigError(f"hydra.job.env_set.{as_text(name)}={as_text(value)}: allowed are printable characters.")
    os.environ.update(job["env_set"])


@dataclass(frozen=True)
class _Start:
    """The run that another goes on from, or repeats."""

    asked: str
    """The override that names it."""
    folder: Path
    saved: ExperimentConfig
    at: int | None
    """The iteration of the checkpoint that was named; None: that of the newest."""
    source: Source


def _start(asked: str, path: Path, source: Source) -> _Start:
    try:
        folder, at = path, None
        of_checkpoint = folder_of_checkpoint(path) if path.is_file() else None
        if of_checkpoint:
            folder = of_checkpoint
            at = next(
                (n for kind in ("model", "state") for n, p in numbered(path.parent, kind).items() if p == path), None
            )
        elif not path.is_dir():
            raise ConfigError(
                f"{asked}: there is no such folder or file. Allowed: a run folder, a checkpoint in one, auto."
            )
    except OSError as error:
        raise ConfigError(f"{asked}: {error.strerror}. Allowed: a run folder.") from None
    if not RunFolder(folder).config.is_file():
        raise ConfigError(f"{asked}: {folder} is not a run folder: it has no config.yaml.")
    start = _Start(asked, folder, read_unchanged(folder, asked), at, source)
    if of_checkpoint and at is None:
        new = _or_begin(_new_run(start, [], path.stem))
        raise ConfigError(f"{asked}: {path.name} is no checkpoint to go on from. {_resumable(folder)}{new}")
    return start


def read_unchanged(folder: Path, asked: str) -> ExperimentConfig:
    """The experiment of the run in `folder`, as it began. Raises a ConfigError, also where config.yaml was changed."""
    manifest = read_json(RunFolder(folder).manifest)
    try:
        saved = read_experiment(RunFolder(folder).config)
    except ConfigError as error:
        raise ConfigError(f"{error}{_missing_package(manifest)}") from None
    began = manifest.get("config")
    if not isinstance(began, dict):
        return saved
    was = flat(from_older_version(began))
    now = {key: value for key, value in _settings_that_matter(saved).items() if key not in ON_REQUEST}
    if saved.init_from and was.get("init_from"):
        del now["init_from"]  # the path of a file whose sha256 the manifest has
    changed = {key: value for key, value in now.items() if was.get(key, value) != value}
    if not changed:
        return saved
    differs = ", ".join(f"{key} was {as_text(was[key])} and is {as_text(value)}" for key, value in changed.items())
    new = [f"{key}={as_text(value)}" for key, value in changed.items()]
    raise ConfigError(
        f"{asked}: its config.yaml was changed since the run began: {differs}. A run goes on, and is repeated, as it "
        f"began: put that back, or train a new run: {commands.train(f'env={saved.env.name}', *new)}"
    )


def _missing_package(manifest: dict[str, Any]) -> str:
    """Which package brought the env of the run with this manifest, where that is not installed here."""
    package = manifest.get("env_package")
    if not isinstance(package, dict) or package.get("name") in {env.package for env in envs.registered().values()}:
        return ""
    return as_text(f" The run's env was that of the package {package.get('name')} {package.get('version')}.")


def _begin(start: _Start | None, cfg: DictConfig, overrides: list[str], notes: list[str], may_be_renamed: bool) -> Run:
    if start is None:
        experiment, ancestor = ancestry.with_ancestor(to_experiment(cfg))
        if ancestor:
            found = command_line.as_overrides([f"init_from={relative_to_cwd(ancestor.checkpoint)}"])
            overrides = [text for text in overrides if _key(text) != "init_from"] + found  # RUN:last may change
    else:
        if not RunFolder(start.folder).metrics.is_file():
            raise ConfigError(f"{start.asked}: it has no metrics.jsonl, and so nothing to compare with.")
        experiment = _with_changes(start, cfg, overrides, LABELS)
        ancestor = ancestry.find_again(start.asked, start.folder, experiment)
    _take_device(experiment)
    folder = make_new_folder(folder_of(cfg), may_be_renamed)
    try:
        held = lock(folder)
        write_text(RunFolder(folder).config, as_yaml(experiment))  # from here on the run can be gone on with
    except OSError as error:
        shutil.rmtree(folder)
        raise cannot_write(folder, error) from None
    except (KeyboardInterrupt, StoppedError):
        shutil.rmtree(folder)
        raise

    def new_run_from(iteration: int) -> str:
        begun = overrides if start is None else _begun_with(start)
        return commands.train(*_begin_with_weights(begun, folder, str(iteration)))

    return Run(
        *(experiment, folder, overrides, held),
        reproduces=start.folder if start else None,
        notes=notes,
        warnings=ancestor.warnings(experiment) if ancestor else [],
        ancestor=ancestor,
        new_run_from=new_run_from,
    )


def _continue(start: _Start, cfg: DictConfig, overrides: list[str], notes: list[str]) -> Run:
    folder, asked = start.folder, start.asked
    experiment = _with_changes(start, cfg, overrides, MAY_CHANGE)
    _take_device(experiment)
    warnings: list[str] = []
    held = lock(folder)
    try:
        checkpoint = _newest_whole(start, warnings)
        ancestor = ancestry.find_again(asked, folder, experiment) if checkpoint is None else None
        done = 0 if checkpoint is None else checkpoint + 1
        left = experiment.max_iterations - done
        more = f"max_iterations={2 * done}"
        if left == 0 and is_complete(folder):  # killed at the very end, it is completed
            train_on = commands.train(f"resume={relative_to_cwd(folder)}", more)
            raise NothingToDo(
                f"{relative_to_cwd(folder)} is complete: all {done} iterations are done. To train on: {train_on}"
            )
        if left < 0:
            raise ConfigError(
                f"{asked}: {done} iterations are done, and max_iterations={experiment.max_iterations} is the total. "
                f"Try {more} to train on."
            )
        write_text(RunFolder(folder).config, as_yaml(replace(experiment, device=start.saved.device)))
    except (ConfigError, NothingToDo):
        held.close()
        raise
    except OSError as error:
        held.close()
        raise cannot_write(folder, error) from None
    return Run(
        *(experiment, folder, overrides, held, True, checkpoint),
        notes=notes,
        warnings=warnings,
        ancestor=ancestor,
        new_run_from=lambda iteration: _new_run(start, [], str(iteration)),
    )


def _newest(asked: ExperimentConfig, folder: Path, is_folder_named: bool) -> tuple[Path | None, str]:
    """The run of this very experiment to go on with, and why that one or none.

    Of those that no process trains it is the unfinished one that started last, or else the complete one that did.
    Where a folder was named, only that one counts.
    """
    if is_folder_named:
        has_run = RunFolder(folder).config.exists()
        return folder if has_run else None, "goes on" if has_run else f"a new run begins, as {folder} holds none"
    outputs, wanted = relative_to_cwd(folder.parent), _settings_that_matter(asked)
    free: list[Path] = []
    in_use = ""
    why = f"there is no run in {outputs}"
    for run in sorted(folder.parent.iterdir(), key=started_s) if folder.parent.is_dir() else ():
        try:
            saved = read_experiment(RunFolder(run).config)
        except ConfigError:
            continue
        settings = _settings_that_matter(saved)
        if ancestry.same_start(asked.init_from, saved, run):
            settings["init_from"] = asked.init_from
        if settings != wanted:
            differing = ", ".join(key for key in wanted if settings.get(key) != wanted[key])
            why = f"none in {outputs} has these settings; the newest, {run.name}, differs in {differing}"
        elif is_locked(run):
            in_use = f"another process trains {outputs / run.name}"
        else:
            free.append(run)
    if not free:
        return None, f"a new run begins, as {in_use or why}"
    newest = ([run for run in free if not is_complete(run)] or free)[-1]
    return newest, f"goes on with {relative_to_cwd(newest)}, the unfinished run of these settings that started last"


def _settings_that_matter(cfg: ExperimentConfig) -> dict[str, Any]:
    settings = flat(asdict(cfg))
    return {key: value for key, value in settings.items() if key in ON_REQUEST or not _is_among(key, MAY_CHANGE)}


def _with_changes(
    start: _Start, cfg: DictConfig, overrides: list[str], may_change: tuple[str, ...]
) -> ExperimentConfig:
    """What was saved, with what `overrides` request and may. Requesting what was saved changes nothing."""
    requested, defaults = _settings(cfg), _settings(compose([f"env={start.saved.env.name}"], start.source))
    named = tuple(map(_key, overrides))
    settings, changes = flat(asdict(start.saved)), {}
    for key, value in sorted(requested.items(), key=lambda item: item[0] in automatic.ALLOWED):  # which follow others
        is_requested = value != defaults.get(key) or _is_among(key, named)
        if not is_requested or (key in settings and value == settings[key]):
            continue
        if key == "init_from":
            changes[key] = _same_start(start, value)
            continue
        if not _is_among(key, may_change):
            goes_on = may_change == MAY_CHANGE
            new = _or_begin(_new_run(start, overrides, None if start.at is None else str(start.at))) if goes_on else ""
            raise ConfigError(
                f"{start.asked}: {key}={as_text(value)} would change the run, which has {as_text(settings.get(key))}. "
                f"Leave it out. Allowed to change: {', '.join(may_change)}.{new}"
            )
        changes[key] = value
    merged = OmegaConf.create(asdict(start.saved))
    for key, value in changes.items():
        OmegaConf.update(merged, key, value)
    return to_experiment(merged)


def _same_start(start: _Start, init_from: str | None) -> str:
    """Where the checkpoint is now that the run began with. Raises a ConfigError where `init_from` is another one."""
    same = ancestry.same_start(init_from, start.saved, start.folder)
    if same is None:
        raise ConfigError(
            f"{start.asked}: init_from={as_text(init_from)} begins a new run, and this one began with "
            f"{'random weights' if start.saved.init_from is None else as_text(start.saved.init_from)}. "
            "Leave out one of the two."
        )
    return same


def _new_run(start: _Start, changes: list[str], name: str | None) -> str:
    """The command that begins a new run with the weights of `start`, its settings and `changes`; "" if none does.

    `name`: of the checkpoint, last where there is none.
    """
    with suppress(ConfigError):
        arguments = _begin_with_weights(_begun_with(start), start.folder, name, changes)
        overrides, source = command_line.read(arguments)
        ancestry.with_ancestor(to_experiment(compose(overrides, source)))
        return commands.train(*arguments)
    return ""


def _begin_with_weights(overrides: list[str], folder: Path, name: str | None, changes: Sequence[str] = ()) -> list[str]:
    """The overrides of a run that began so, and `changes`, each key once, to begin with a checkpoint of `folder`."""
    kept: dict[str, str] = {}
    for text in (*(text for text in overrides if not _is_among(_key(text), ("init",))), *changes):
        if not _is_among(_key(text), (*START_KEYS, "init_from")):
            kept.pop(_key(text), None)
            kept[_key(text)] = text
    return [*kept.values(), f"init_from={relative_to_cwd(folder)}{f':{name}' if name else ''}"]


def _or_begin(command: str) -> str:
    return f" Or begin a new run with its weights: {command}" if command else ""


def _begun_with(start: _Start) -> list[str]:
    """The overrides that make the settings of `start`: those that it began with, or else each that is no default."""
    given = read_json(RunFolder(start.folder).manifest).get("overrides")
    if isinstance(given, list) and all(isinstance(text, str) and text.isprintable() for text in given):
        with suppress(ConfigError):
            overrides, source = command_line.read(given)
            if _settings_begun_with(to_experiment(compose(overrides, source))) == _settings_begun_with(start.saved):
                return given
    env = [*start.source.options, f"env={start.saved.env.name}"]
    defaults, saved = _settings(compose(env[-1:], start.source)), flat(asdict(start.saved))
    changed = {key: value for key, value in saved.items() if key not in defaults or defaults[key] != value}
    left_out = [f"~{key}" for key in defaults.keys() - saved.keys()]
    new = (f"{'' if key in defaults else '++'}{key}={_as_override(value)}" for key, value in changed.items())
    return [*env, *left_out, *new]


def _settings_begun_with(cfg: ExperimentConfig) -> dict[str, Any]:
    """Those that make a new run the same, but for its weights at the start."""
    may_differ = (*ON_REQUEST, "init_from", "init")
    return {key: value for key, value in _settings_that_matter(cfg).items() if not _is_among(key, may_differ)}


def _as_override(value: Any) -> str:
    """A value as Hydra reads it."""
    if isinstance(value, list):
        return f"[{','.join(map(_as_override, value))}]"
    is_plain = isinstance(value, str) and re.fullmatch(r"[a-z]{2,}", value) and value not in ("true", "false", "null")
    return quoted(value) if isinstance(value, str) and not is_plain else as_text(value)


def _newest_whole(start: _Start, warnings: list[str]) -> int | None:
    """The newest iteration of which model and state are whole, or the one named. None where nothing was saved yet."""
    folder, at, asked = start.folder, start.at, start.asked
    saved = resumable(RunFolder(folder).checkpoints)
    if at is None and not numbered(RunFolder(folder).checkpoints, "model"):
        return None
    for number in reversed(saved) if at is None else [at]:
        if number not in saved:
            raise ConfigError(
                f"{asked}: iteration {number} has weights alone, no state to go on from. {_resumable(folder)}"
                f"{_or_begin(_new_run(start, [], str(number)))}"
            )
        flaws = [f"{path} {why}" for path in saved[number] if (why := damage(path.read_bytes()))]
        if not flaws:
            return number
        warnings += flaws
    raise ConfigError(
        f"{asked}: {'; '.join(warnings) or 'no state to go on from'}. {_resumable(folder, warnings)}"
        f"{_or_begin(_new_run(start, [], None))}"
    )


def _resumable(folder: Path, broken: list[str] | None = None) -> str:
    """Which checkpoints there are to go on from, in words."""
    saved = resumable(RunFolder(folder).checkpoints)
    there = [str(n) for n in saved if not any(f"_{n}.pt " in why for why in broken or ())]
    return f"Allowed: those of iteration {' or '.join(there)}." if there else "The weights alone cannot go on exactly."


def _take_device(cfg: ExperimentConfig) -> None:
    if position_by_launcher() is None:
        devices.environments(cfg.device, cfg.processes)  # while all cards are visible
    devices.take(cfg.device)
    if cfg.device.startswith("cuda"):
        devices.resolve_device(cfg.device)  # loads torch, which must be able to use it


def _settings(cfg: DictConfig) -> dict[str, Any]:
    content = OmegaConf.to_container(without_start(cfg), resolve=True)
    assert isinstance(content, dict)
    return flat(content)


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _is_among(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
