"""One training run, from a checked experiment to a finished run folder."""

from __future__ import annotations

import gc
import logging
import signal
import sys
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml

from ppo_lab.budget import advice, check_budget
from ppo_lab.command_line import OverBudgetError, RunFailedError
from ppo_lab.config import ExperimentConfig
from ppo_lab.envs import make_env
from ppo_lab.envs.base import start_simulator
from ppo_lab.files import write_json, write_text
from ppo_lab.learning.checkpoint import Checkpoints
from ppo_lab.learning.runner import Runner
from ppo_lab.memory import measured, render
from ppo_lab.memory.estimate import Estimate
from ppo_lab.memory.monitor import MIB, FlatMemoryWatch, MemoryMonitor, free_bytes
from ppo_lab.preflight import resolve_device
from ppo_lab.telemetry import console
from ppo_lab.telemetry.manifest import describe_run, git_diff
from ppo_lab.telemetry.metrics import MetricsWriter
from ppo_lab.telemetry.summary import Summary

log = logging.getLogger(__name__)


def train(cfg: ExperimentConfig, folder: Path, overrides: list[str], estimated: Future[Estimate]) -> None:
    """Trains as `cfg` says, and leaves everything that is to be kept in `folder`.

    Raises:
        OverBudgetError: the run is predicted not to fit.
        RunFailedError: something broke; summary.json and train.log in the folder say what.
        KeyboardInterrupt: Ctrl-C, after a checkpoint and the summary are written.
    """
    if cfg.quiet:
        console.show_warnings_only()
    log.info("run folder: %s", _shown(folder))
    device = resolve_device(cfg.device)
    config_yaml = yaml.safe_dump(asdict(cfg), sort_keys=False)
    manifest = describe_run(overrides, cfg.seed, device, _shown(folder / "git.diff"))
    write_text(folder / "config.yaml", config_yaml)
    write_json(folder / "manifest.json", manifest)
    if manifest["git"]["dirty"]:
        write_text(folder / "git.diff", git_diff())

    metrics = MetricsWriter(folder)
    environment = manifest["packages"] | manifest["machine"] | {"repeat": manifest["repeat"]}
    summary = Summary(folder / "summary.json", cfg.transitions)
    progress = console.ProgressDisplay(cfg.max_iterations, cfg.quiet)
    checkpoints = Checkpoints(folder / "checkpoints", cfg.save_interval)
    watch = FlatMemoryWatch()
    interrupt = FirstInterrupt()
    prediction: dict[str, Any] = {}
    predicted_mib: dict[str, float] = {}

    def report(iteration: int, scalars: dict[str, float]) -> None:
        metrics.write(iteration, scalars | predicted_mib)
        summary.add(scalars)
        progress.show(iteration, scalars)
        for warning in watch.warnings(scalars):
            log.warning(warning)

    def finish(status: str, message: str | None = None) -> str:
        compared = measured.compare(prediction, summary.peak_mib) if prediction else []
        return summary.write(status, message, [measured.as_json(comparison) for comparison in compared])

    try:
        estimate = check_budget(cfg, estimated, free_bytes(device), device.type == "cuda")
        if estimate:
            prediction |= render.as_json(estimate)
            write_json(folder / "estimate.json", prediction)
            for name, size in measured.predicted_bytes(prediction).items():
                predicted_mib[f"Memory/predicted_{name}_mib"] = size / MIB
        with MemoryMonitor(device, cfg.memory.count_tensors) as monitor:
            metrics.describe(config_yaml, environment, monitor.scalars().keys())
            start_simulator(device, cfg.seed, cfg.env.performance_mode)
            env = make_env(cfg.env, cfg.num_envs, device)
            gc.collect()  # what building the scene left in cycles
            runner = Runner(env, cfg, monitor, checkpoints, report, interrupt.requested)
            summary.begin_training()
            with progress, interrupt:
                runner.learn(cfg.max_iterations, init_at_random_ep_len=True)
        if runner.current_learning_iteration < cfg.max_iterations - 1:
            raise KeyboardInterrupt
        log.info("finished: %s", finish("completed"))
        log.info("see it:   %s --logdir %s", _shown(Path(sys.executable).with_name("tensorboard")), _shown(folder))
    except KeyboardInterrupt:
        log.info("interrupted: %s", finish("interrupted"))
        raise
    except OverBudgetError as error:
        finish("failed", str(error))
        raise
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


def _shown(path: Path) -> Path:
    """`path` as a person here would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


class FirstInterrupt:
    """While entered, the first Ctrl-C is a request, the second stops at once."""

    def __init__(self) -> None:
        self._requested = False

    def requested(self) -> bool:
        return self._requested

    def __enter__(self) -> FirstInterrupt:
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True
        log.info("finishing this iteration, then saving; Ctrl-C again stops at once")
