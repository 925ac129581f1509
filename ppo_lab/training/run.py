"""One training run, from a checked experiment to a finished run folder."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

import torch

from ppo_lab import envs
from ppo_lab.config import ExperimentConfig
from ppo_lab.contracts import Ranks, State
from ppo_lab.errors import (
    CheckpointError,
    NotReproducedError,
    OverBudgetError,
    RunFailedError,
    StoppedError,
)
from ppo_lab.learning import checkpoint, guard
from ppo_lab.learning.checkpoint import Checkpoints, rename_newer
from ppo_lab.learning.guard import Fault, NonFiniteError
from ppo_lab.learning.loop import Loop
from ppo_lab.learning.ranks import SingleProcess, TorchRanks, is_loss
from ppo_lab.machine import commands, devices
from ppo_lab.machine.commands import relative_to_cwd
from ppo_lab.machine.launch import OtherRanks, position_by_launcher
from ppo_lab.memory.measure.monitor import MemoryMonitor, of_all_ranks
from ppo_lab.memory.measure.out_of_memory import free_memory_held_by, ran_out_of_memory
from ppo_lab.memory.predict.estimate import Estimate
from ppo_lab.runs.ancestry import Ancestor
from ppo_lab.runs.files import write_json
from ppo_lab.runs.folder import Run, RunFolder, has_rows
from ppo_lab.training import budget, console
from ppo_lab.training.build import build_loop, obey, orders
from ppo_lab.training.evaluations import Evaluations
from ppo_lab.training.recording import Recording
from ppo_lab.training.reproduction import compare
from ppo_lab.training.stopping import StopSignals

log = logging.getLogger(__name__)


def train(run: Run, estimated: Future[Estimate], others: OtherRanks | None = None) -> None:
    """Trains as `run.cfg` says, as rank 0, and leaves everything that is to be kept in `run.folder`.

    Args:
        run: its folder is held.
        estimated: what the run will hold.
        others: the ranks that this process has started; None where there are none, or torchrun has.

    Raises:
        OverBudgetError: the run is predicted not to fit.
        RunFailedError: something broke; summary.json and train.log in the folder say what.
        StoppedError: SIGTERM, SIGUSR1 or SIGHUP, after a checkpoint and the summary are written.
        KeyboardInterrupt: Ctrl-C, the same.
    """
    cfg, folder = run.cfg, run.folder
    threading.excepthook = lambda failed: log.debug("a thread failed: %s", failed.exc_value)  # TensorBoard's
    if cfg.quiet:
        console.show_warnings_only()
    log.info("run folder: %s", relative_to_cwd(folder))
    for note in run.notes:
        log.info(note)
    for warning in run.warnings:
        log.warning(warning)
    available_bytes = budget.available_bytes(cfg.device)  # before there is a CUDA context, which is part of the need
    device = devices.resolve_device(cfg.device)
    if device.type == "cuda":
        log.info("device: %s", devices.card(cfg.device) or device)
    kept = RunFolder(folder).checkpoints
    saved = None if run.checkpoint is None else _load(kept, run.checkpoint)
    ancestor = None if run.ancestor is None else _load_ancestor(run.ancestor)
    rename_newer(kept, after=run.first_iteration - 1)  # before their rows go: a checkpoint has its rows
    record = Recording(run, device, ancestor["iter"] if ancestor else None)
    evaluations = Evaluations(folder, cfg.evaluate_every, cfg.max_iterations)
    checkpoints = Checkpoints(
        kept, cfg.save_interval, cfg.checkpoint.keep_state, cfg.checkpoint.every_seconds, record.sync, evaluations
    )
    with StopSignals() as stop, _failures_explained(folder, record, checkpoints, available_bytes):
        with evaluations, record:  # the run is complete before the last evaluations are
            envs.preload(cfg.env.name)  # while the estimate is made
            record.predict(budget.check_budget(cfg, estimated, available_bytes, device.type == "cuda"))
            _train(run, record, checkpoints, saved, ancestor, stop, others)
        log.info("see it:   %s", commands.module("dashboard", str(relative_to_cwd(folder))))
        if run.reproduces:
            _compare(run.reproduces, folder)


def _train(
    run: Run,
    record: Recording,
    checkpoints: Checkpoints,
    saved: tuple[State, State] | None,
    ancestor: State | None,
    stop: StopSignals,
    others: OtherRanks | None,
) -> None:
    """Builds and trains. Only this call holds the loop, so that its memory is free once the call has failed."""
    cfg, first = run.cfg, run.first_iteration
    with (
        _evidence_kept(run, checkpoints),
        _connected(cfg, record.device, others) as ranks,
        MemoryMonitor(record.device, cfg.memory.count_tensors) as monitor,
    ):
        order = ranks.scatter(_orders(cfg, first, saved, ancestor, checkpoints.folder))
        record.describe(of_all_ranks([monitor.scalars()] * cfg.processes).keys())
        with console.compiling_shown(cfg.quiet):
            loop = build_loop(cfg, record.device, monitor, checkpoints, record.add, stop.requested, ranks)
        _obey(loop, run, order)
        if saved:
            checkpoints.best_reward = saved[1]["best_reward"]
            log.info("goes on after iteration %d", first)
        elif run.continues:
            log.info("nothing was saved yet: the run starts over")
        if run.ancestor:
            taken = ", ".join(["actor", *(f.name for f in fields(cfg.init) if getattr(cfg.init, f.name) is True)])
            iteration, rate = order["model"]["iter"], cfg.algorithm.learning_rate
            log.info("%s: begins with %s of iteration %d; learning rate %g", run.ancestor, taken, iteration, rate)
            for term, deviations in loop.unfamiliar_observations().items():
                log.warning(
                    "observation policy.%s is %.0f deviations from the mean that the other run has seen, so the policy "
                    "may fail at first; a run that varies it more begins better",
                    *(term, deviations),
                )
        if run.continues:
            run.keep_device()
        record.begin_training()
        with record.progress, stop.after_the_iteration():
            loop.learn(cfg.max_iterations - first, init_at_random_ep_len=first == 0)
    if loop.next_iteration < cfg.max_iterations:
        stop.stop()


@contextmanager
def _connected(cfg: ExperimentConfig, device: torch.device, others: OtherRanks | None) -> Iterator[Ranks]:
    """The ranks of this run, of which this process is rank 0. Raises what another rank failed of in its stead."""
    position = others.position if others else position_by_launcher()
    if position is None or cfg.processes == 1:
        yield SingleProcess()
        return
    is_gpu = device.type == "cuda"
    if others:
        ranks = TorchRanks(position, is_gpu, others.hand_over_listener(), others.raise_if_lost)
    else:
        ranks = TorchRanks(position, is_gpu)
    try:
        yield ranks
        if others:
            others.are_done()
        ranks.close()
    except RuntimeError as error:
        if not is_loss(error):
            raise
        raise _failure_of_another(cfg, ranks, others) from error


def _failure_of_another(cfg: ExperimentConfig, ranks: TorchRanks, others: OtherRanks | None) -> Exception:
    if others:
        others.are_done()  # what is to come of their ends is known
    rank, report = ranks.failure() or (None, {})
    if rank is not None and report["fault"]:
        return guard.of_rank(Fault(**report["fault"]), report["evidence"], rank, cfg.of_one_rank().num_envs)
    if rank is not None:
        return RunFailedError(f"the run failed: rank {rank}: {report['message']}")
    how = (others and others.first_death(within_s=2.0)) or "another rank is gone; its own process says why"
    return RunFailedError(f"the run failed: {how}")


def _orders(
    cfg: ExperimentConfig,
    first: int,
    saved: tuple[State, State] | None,
    ancestor: State | None,
    checkpoints: Path,
) -> list[State]:
    try:
        return orders(cfg, first, saved, ancestor)
    except ValueError as error:
        raise RunFailedError(f"{checkpoints}/state_{first - 1}.pt does not fit this run: {error}") from error


@contextmanager
def _evidence_kept(run: Run, checkpoints: Checkpoints) -> Iterator[None]:
    """Writes what led to a NaN or Inf, and says where it is in a RunFailedError."""
    try:
        yield
    except NonFiniteError as found:
        log.debug("the run failed", exc_info=True)
        raise RunFailedError(_keep_evidence(found, run, checkpoints)) from found


@contextmanager
def _failures_explained(
    folder: Path, record: Recording, checkpoints: Checkpoints, available_bytes: int
) -> Iterator[None]:
    """Raises what `train` promises, with what to do next. `available_bytes`: free at the start."""
    try:
        yield
    except (KeyboardInterrupt, StoppedError):
        _say_how_to_go_on(folder)
        raise
    except (NotReproducedError, OverBudgetError):
        raise
    except RunFailedError as error:
        if error.__cause__ and is_loss(error.__cause__):
            checkpoints.write_best()
            _say_how_to_go_on(folder)
        raise
    except Exception as error:
        log.debug("the run failed", exc_info=True)
        checkpoints.write_best()
        what = f"the run failed: {error}"
        if ran_out_of_memory(error):
            free_memory_held_by(error)  # before asking what is free
            what = _out_of_memory(record, checkpoints, available_bytes)
        raise RunFailedError(f"{what} (more in {relative_to_cwd(RunFolder(folder).log)})") from error


def _say_how_to_go_on(folder: Path) -> None:
    if has_rows(folder):
        log.info("go on:    %s", commands.train(f"resume={relative_to_cwd(folder)}"))


def _out_of_memory(record: Recording, checkpoints: Checkpoints, available_bytes: int) -> str:
    """What happened, and what to try. `available_bytes`: free at the start."""
    cfg, predicted = record.run.cfg, record.estimate
    available_bytes = budget.still_available_bytes(cfg.device, predicted, available_bytes)
    when = f"in iteration {record.iterations}" if record.is_training else "while simulator and learner were built"
    safe = "" if checkpoints.newest() is None else "; checkpoints are safe"
    return f"out of memory {when}{safe}. {budget.advice_after(cfg, predicted, available_bytes, record.is_training)}"


def _keep_evidence(found: NonFiniteError, run: Run, checkpoints: Checkpoints) -> str:
    """Writes the dump, and says in one line what happened, where the dump is, and from where one can go on."""
    dump, good = RunFolder(run.folder).dump(found.fault.iteration), checkpoints.newest()
    try:
        checkpoint.save(dump, found.evidence | {"last_good": good})
        checkpoints.write_best()
        replay = f"{commands.module('replay', str(relative_to_cwd(dump)))} shows and repeats it"
    except OSError as error:
        replay = f"its dump {relative_to_cwd(dump)} was not written: {error.strerror}"
    last_good = "there is none yet" if good is None else f"iteration {good}"
    hint = guard.HINTS[found.fault.group]
    if good is not None and (command := run.new_run_from(good)):
        hint += f"; to begin a new run with that checkpoint and other settings: {command}"
    return f"{found}; {replay}; last good checkpoint: {last_good}; {hint}"


def _load(checkpoints: Path, iteration: int) -> tuple[State, State]:
    """Model and state as they were after `iteration`."""
    try:
        return checkpoint.load_both(checkpoints, iteration)
    except CheckpointError as error:
        raise RunFailedError(str(error)) from error


def _load_ancestor(ancestor: Ancestor) -> State:
    try:
        model = checkpoint.load(ancestor.checkpoint, ancestor.sha256)
    except CheckpointError as error:
        raise RunFailedError(str(error)) from error
    if not isinstance(model, dict) or not isinstance(model.get("iter"), int):
        raise RunFailedError(f"{relative_to_cwd(ancestor.checkpoint)} is not a model that a run has saved")
    return model


def _obey(loop: Loop, run: Run, order: State) -> None:
    try:
        obey(loop, run.cfg, order)
    except (KeyError, ValueError, RuntimeError) as error:
        if ran_out_of_memory(error):
            raise
        name = f"{RunFolder(run.folder).checkpoints}/model_{run.checkpoint}.pt or its state"
        if run.ancestor:
            name = str(relative_to_cwd(run.ancestor.checkpoint))
        raise RunFailedError(f"{name} does not fit this run: {' '.join(str(error).split())}") from error


def _compare(original: Path, repeated: Path) -> None:
    found = compare(original, repeated)
    write_json(RunFolder(repeated).reproduction, {"original": str(original), "equal": found.equal, **asdict(found)})
    if not found.equal:
        raise NotReproducedError(f"not reproduced: {found}")
    log.info("reproduced: %s", found)
