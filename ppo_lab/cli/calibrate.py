"""Measures what no formula gives on this machine: short runs of train.py, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import psutil
import rich
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ppo_lab.cli.compose import compose
from ppo_lab.config.overrides import RUN_DIR, quoted
from ppo_lab.errors import ConfigError, ExitCode
from ppo_lab.machine import commands
from ppo_lab.memory.measure import measured
from ppo_lab.memory.predict import calibration
from ppo_lab.memory.predict.calibration import MeasuredRun, Versions
from ppo_lab.memory.show import table
from ppo_lab.runs.config import to_experiment
from ppo_lab.runs.files import to_json

ENVS = ("go2", "hover")
"""Measured where no env is named."""
SIZES = (
    ("num_envs=64", "network.hidden_dims=[64,64]", "algorithm.num_mini_batches=16"),
    ("num_envs=1024", "network.hidden_dims=[512,256,128]", "algorithm.num_mini_batches=1"),
    ("num_envs=2048", "network.hidden_dims=[64,64]", "algorithm.num_mini_batches=4"),
)
"""What tells constants from what grows with envs, transitions, weights and the size of malloc's blocks."""
ALWAYS = (
    *("processes=1", "envs_per_scene=auto"),  # what a calibration is of; others would disturb each other
    *("num_steps_per_env=24", "max_iterations=3", "save_interval=1000000", "memory.over_budget=warn", "quiet=true"),
)
SOURCE = "python estimate.py calibrate=true"
BUSY_PERCENT = 25.0
"""Of all cores, by other processes: from here on times come out too long."""


@dataclass(frozen=True)
class Trial:
    """A run to be measured."""

    env: str
    overrides: tuple[str, ...]
    """Of train.py."""
    is_cold: bool
    """The simulator's kernels are not compiled yet."""

    def __str__(self) -> str:
        size = ", ".join(self.overrides[-len(ALWAYS) - len(SIZES[0]) : -len(ALWAYS)])
        return f"{self.env}, {size}{', kernels compiled anew' if self.is_cold else ''}"


def calibrate(overrides: Sequence[str], form: str) -> ExitCode:
    """Measures this machine and remembers it after every run. `overrides`: of the experiment, where some are given.

    Raises a ConfigError where a run fails.
    """
    busy_percent = psutil.cpu_percent(interval=0.5)
    if busy_percent > BUSY_PERCENT:
        print(f"note: the processor is busy ({busy_percent:.0f} %): times will come out too long", file=sys.stderr)
    found: list[MeasuredRun] = []
    trials = list(plan(overrides))
    with _progress(len(trials)) as show, tempfile.TemporaryDirectory(prefix="ppo-lab calibration ") as folder:
        for number, trial in enumerate(trials):
            show(number, str(trial))
            run, versions = measure(trial, Path(folder) / str(number))
            found.append(run)
            file = calibration.remember(versions, [run], SOURCE, f"{date.today()}")
    if form == "json":
        runs = [asdict(run) for run in found]
        print(to_json({"file": str(file), "versions": asdict(versions), "runs": runs}, indent=2))
    else:
        rich.print(table.calibration_table(found, file))
    return ExitCode.DONE


def plan(overrides: Sequence[str]) -> Iterator[Trial]:
    """The runs for the env that `overrides` name, or else for `ENVS`; each env's first one compiles its kernels."""
    names = any(text.startswith(("env=", "experiment=")) for text in overrides)
    envs = [to_experiment(compose(overrides)).env.name] if names else ENVS
    for env in envs:
        named = overrides if names else [f"env={env}", *overrides]
        yield Trial(env, (*named, *SIZES[0], *ALWAYS), is_cold=True)
        for size in SIZES:
            yield Trial(env, (*named, *size, *ALWAYS), is_cold=False)


def measure(trial: Trial, folder: Path) -> tuple[MeasuredRun, Versions]:
    """Runs the trial in `folder`, with its env's cache of kernels beside it: envs have many kernels in common.

    Raises a ConfigError where it fails, or does not tell what it held.
    """
    environment = os.environ | {"QD_OFFLINE_CACHE_FILE_PATH": str(folder.parent / f"kernels {trial.env}")}
    command = [*commands.train_program(), *trial.overrides, f"{RUN_DIR}{quoted(folder)}"]
    child = subprocess.run(command, env=environment, capture_output=True, text=True)
    if child.returncode:
        said = (child.stderr.strip() or child.stdout.strip()).splitlines() or [f"exit code {child.returncode}"]
        raise ConfigError(f"calibrate=true: the run with {trial} failed: {said[-1].removeprefix('error: ')}")
    run = measured.read_run(folder)
    found = run.estimate and measured.measured_run(run, run.estimate, trial.is_cold)
    if not found:
        raise ConfigError(
            f"calibrate=true: the run with {trial} did not tell what its process held. On a GPU the driver tells it "
            "(Memory/process_device_mib), but not within some containers: calibrate outside of one."
        )
    return found, measured.versions(run)


@contextmanager
def _progress(count: int) -> Iterator[Callable[[int, str], None]]:
    """Shows on stderr which run goes: with a bar on a terminal, or else a line each."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=count)

        def show(number: int, text: str) -> None:
            progress.update(task, description=text, completed=number, refresh=True)
            if not console.is_terminal:
                print(f"{number + 1} of {count}: {text}", file=sys.stderr, flush=True)

        yield show
