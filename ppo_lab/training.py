"""One training run, from a checked experiment to a finished run folder."""

from __future__ import annotations

import gc
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ppo_lab.budget import advice, check_budget
from ppo_lab.command_line import NotReproducedError, OverBudgetError, RunFailedError, StoppedError
from ppo_lab.config import ExperimentConfig
from ppo_lab.envs import make_env
from ppo_lab.envs.base import start_simulator
from ppo_lab.files import write_json, write_text
from ppo_lab.learning import checkpoint, guard
from ppo_lab.learning.checkpoint import CheckpointError, Checkpoints, State
from ppo_lab.learning.guard import NonFiniteError
from ppo_lab.learning.runner import Report, Runner
from ppo_lab.memory import measured, render
from ppo_lab.memory.estimate import Estimate
from ppo_lab.memory.monitor import MIB, FlatMemoryWatch, MemoryMonitor, free_bytes
from ppo_lab.preflight import resolve_device
from ppo_lab.reproduction import compare
from ppo_lab.runs import Run, as_yaml
from ppo_lab.telemetry import console, manifest
from ppo_lab.telemetry.metrics import MetricsWriter
from ppo_lab.telemetry.summary import Summary

log = logging.getLogger(__name__)


def train(run: Run, estimated: Future[Estimate]) -> None:
    """Trains as `run.cfg` says, and leaves everything that is to be kept in `run.folder`.

    Raises:
        OverBudgetError: the run is predicted not to fit.
        RunFailedError: something broke; summary.json and train.log in the folder say what.
        StoppedError: SIGTERM or SIGUSR1, after a checkpoint and the summary are written.
        KeyboardInterrupt: Ctrl-C, the same.
    """
    cfg, folder = run.cfg, run.folder
    threading.excepthook = lambda failed: log.debug("a thread failed: %s", failed.exc_value)  # TensorBoard's
    if cfg.quiet:
        console.show_warnings_only()
    log.info("run folder: %s", _shown(folder))
    for warning in run.warnings:
        log.warning(warning)
    device = resolve_device(cfg.device)
    first = 0 if run.checkpoint is None else run.checkpoint + 1
    description = manifest.describe_run(run.overrides, cfg, device, _shown(folder))

    saved = None if run.checkpoint is None else _load(folder / "checkpoints", run.checkpoint)
    checkpoints = Checkpoints(
        folder / "checkpoints", cfg.save_interval, cfg.checkpoint.keep_state, cfg.checkpoint.every_seconds
    )
    checkpoints.set_aside(after=first - 1)  # before their rows go, or they would be missed by who goes on with these
    metrics = MetricsWriter(folder, first)
    checkpoints.before_saving = metrics.sync
    summary = Summary(folder / "summary.json", cfg.transitions, metrics.earlier)
    progress = console.ProgressDisplay(cfg.max_iterations, cfg.quiet, first)
    watch = FlatMemoryWatch()
    prediction: dict[str, Any] = {}
    predicted_mib: dict[str, float] = {}
    estimate: Estimate | None = None

    def report(iteration: int, scalars: dict[str, float]) -> None:
        metrics.write(iteration, scalars | predicted_mib)
        summary.add(scalars)
        progress.show(iteration, scalars)
        for warning in watch.warnings(scalars):
            log.warning(warning)

    def finish(status: str, message: str | None = None) -> str:
        compared = measured.compare(prediction, summary.peak_mib) if prediction else []
        return summary.write(status, message, [measured.as_json(comparison) for comparison in compared])

    with StopSignals() as stop:
        try:
            _write_papers(run, description, first)
            summary.write("running", None, [])
            estimate = check_budget(cfg, estimated, free_bytes(device), device.type == "cuda")
            if estimate:
                prediction |= render.as_json(estimate)
                write_json(folder / "estimate.json", prediction)
                for name, size in measured.predicted_bytes(prediction).items():
                    predicted_mib[f"Memory/predicted_{name}_mib"] = size / MIB
            with MemoryMonitor(device, cfg.memory.count_tensors) as monitor:
                metrics.describe(as_yaml(cfg), _environment(description), monitor.scalars().keys())
                runner = build_runner(cfg, device, monitor, checkpoints, report, stop.requested)
                if saved:
                    checkpoints.best_reward = saved[1]["best_reward"]
                    _restore(runner, *saved, folder / "checkpoints")
                    log.info("goes on after iteration %d", first)
                elif run.continues:
                    log.info("nothing was saved yet: the run starts over")
                summary.begin_training()
                with progress, stop.after_the_iteration():
                    runner.learn(cfg.max_iterations - first, init_at_random_ep_len=first == 0)
            if runner.next_iteration < cfg.max_iterations:
                stop.stop()
            log.info("finished: %s", finish("completed"))
            shown = _shown(Path(sys.executable)), shlex.quote(str(_shown(folder)))
            log.info("see it:   %s -m ppo_lab.dashboard %s", *shown)
            if run.reproduces:
                _compare(run.reproduces, folder)
        except (KeyboardInterrupt, StoppedError) as stopped:
            log.info("interrupted: %s", finish("interrupted", str(stopped) or None))
            log.info("go on:    python train.py resume=%s", _shown(folder))
            raise
        except NotReproducedError:
            raise
        except (OverBudgetError, RunFailedError) as error:
            finish("failed", str(error))
            raise
        except NonFiniteError as found:
            log.debug("the run failed", exc_info=True)
            message = _keep_evidence(found, folder, checkpoints)
            finish("failed", message)
            raise RunFailedError(message) from found
        except Exception as error:
            log.debug("the run failed", exc_info=True)
            finish("failed", f"{type(error).__name__}: {error}")
            checkpoints.write_best()
            more = f"(more in {_shown(folder)}/train.log)"
            if estimate and isinstance(error, torch.OutOfMemoryError):
                free = free_bytes(device)
                what = f"out of memory in iteration {summary.iterations}; checkpoints are safe. "
                raise RunFailedError(f"{what}{advice(cfg, estimate.hardware, free)} {more}") from error
            raise RunFailedError(f"the run failed: {error} {more}") from error
        finally:
            metrics.close()


def build_runner(
    cfg: ExperimentConfig,
    device: torch.device,
    monitor: MemoryMonitor,
    checkpoints: Checkpoints,
    report: Report,
    should_stop: Callable[[], bool] = lambda: False,
) -> Runner:
    """The runner of `cfg`, before its first iteration. Starts the simulator, which a process can do once."""
    if cfg.deterministic:
        _be_deterministic()
    start_simulator(device, cfg.seed, cfg.env.performance_mode, cfg.deterministic)
    env = make_env(cfg.env, cfg.num_envs, device)
    gc.collect()  # what building the scene left in cycles
    return Runner(env, cfg, monitor, checkpoints, report, should_stop)


def _keep_evidence(found: NonFiniteError, folder: Path, checkpoints: Checkpoints) -> str:
    """Writes the dump, and says in one line what happened, where the dump is, and from where one can go on."""
    dump, good = folder / f"nan_{found.fault.iteration}.pt", checkpoints.newest()
    try:
        checkpoint.save(dump, found.evidence | {"last_good": good})
        checkpoints.write_best()
        replay = f"python -m ppo_lab.replay {shlex.quote(str(_shown(dump)))} shows and repeats it"
    except OSError as error:
        replay = f"its dump {_shown(dump)} was not written: {error.strerror}"
    last_good = "there is none yet" if good is None else f"iteration {good}"
    return f"{found}; {replay}; last good checkpoint: {last_good}; {guard.MEND[found.fault.group]}"


def _write_papers(run: Run, description: dict[str, Any], first: int) -> None:
    """manifest.json and git.diff; a run that goes on adds to the manifest what is different now."""
    folder, diff = run.folder, "git.diff"
    original = manifest.read(run.reproduces or folder) if run.continues or run.reproduces else None
    if original:
        for difference in manifest.differences(original, description):
            log.warning("%s: the result may differ", difference)
    if original and run.continues:
        diff = f"git_{first}.diff"
        again = {"iteration": first, **description}
        description = original | {"continued": [*original.get("continued", []), again]}
    write_json(folder / "manifest.json", description)
    if description["git"]["dirty"]:
        write_text(folder / diff, manifest.git_diff())


def _environment(description: dict[str, Any]) -> dict[str, Any]:
    return description["packages"] | description["machine"] | {"repeat": description["repeat"]}


def _load(checkpoints: Path, iteration: int) -> tuple[State, State]:
    """Model and state as they were after `iteration`."""
    try:
        model, state = (checkpoint.load(checkpoints / f"{kind}_{iteration}.pt") for kind in ("model", "state"))
    except CheckpointError as error:
        raise RunFailedError(str(error)) from error
    for kind, found in (("model", model.get("iter")), ("state", state.get("iteration"))):
        if found != iteration:
            raise RunFailedError(f"{checkpoints / kind}_{iteration}.pt is of iteration {found}")
    return model, state


def _restore(runner: Runner, model: State, state: State, checkpoints: Path) -> None:
    try:
        runner.restore(model, state)
    except (KeyError, ValueError, RuntimeError) as error:
        name = f"{checkpoints}/model_{model['iter']}.pt or its state"
        raise RunFailedError(f"{name} does not fit this run: {' '.join(str(error).split())}") from error


def _compare(original: Path, repeated: Path) -> None:
    found = compare(original, repeated)
    write_json(repeated / "reproduction.json", {"original": str(original), "equal": found.equal, **asdict(found)})
    if not found.equal:
        raise NotReproducedError(f"not reproduced: {found}")
    log.info("reproduced: %s", found)


def _be_deterministic() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _shown(path: Path) -> Path:
    """`path` as a person here would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


class StopSignals:
    """While entered, Ctrl-C, SIGTERM and SIGUSR1 stop the run: within `after_the_iteration` the first is a request."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._patient = False

    def requested(self) -> bool:
        return self._received is not None

    def stop(self) -> None:
        """Raises what belongs to the signal: KeyboardInterrupt for Ctrl-C, or else a StoppedError."""
        if self._received in (None, signal.SIGINT):
            raise KeyboardInterrupt
        raise StoppedError(f"{self._received.name}; resume=auto or resume=FOLDER goes on")

    @contextmanager
    def after_the_iteration(self) -> Iterator[None]:
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        first = self._received is None
        self._received = signal.Signals(signum)
        if not (first and self._patient):
            self.stop()
        log.info("%s: finishing this iteration, then saving; again stops at once", self._received.name)
