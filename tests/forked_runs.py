"""Runs of train.py in forks of a process that has everything loaded and each env built: a second instead of twenty.

A forked run gives the results of a run in a process of its own, which system/test_faults.py checks. What it leaves out:
starting the simulator again and, unless it is asked for, predicting memory.
"""

from __future__ import annotations

import errno
import functools
import gc
import json
import multiprocessing
import os
import re
import runpy
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from ppo_lab.runs.record import read_metrics
from tests.paths import REPOSITORY

NUM_ENVS = 16
SEED = 1
ITERATIONS = 16
OVERRIDES = [
    *("experiment=smoke", f"max_iterations={ITERATIONS}", "algorithm.num_learning_epochs=2"),
    *("network.hidden_dims=[32,32]", "network.actor.obs_normalization=true", "network.critic.obs_normalization=true"),
]
SETTINGS = {
    "go2_walk": [
        "randomization=full",
        "+env.randomization.commands={when:interval,operation:add,low:{ang_vel_rad_s:-1},high:{ang_vel_rad_s:1}}",
    ]
}
"""Name of an env -> its settings in `begin`: of one env all terms of randomization."""
BUILT: list[tuple[Any, Any, Any]] = []
"""An env's settings, the env, and the random state it left."""

Fault = Callable[[], None]
"""Makes a process fail in some way. Called in the process, before its program."""


class ForkedRun:
    """One process that runs train.py, or another program, with `arguments`.

    What it prints goes to the file `output`; what it prints to stderr too, or else to the file `errors`.
    """

    def __init__(
        self,
        arguments: list[str],
        output: Path,
        fault: Fault | None = None,
        cwd: Path = REPOSITORY,
        errors: Path | None = None,
        program: str = "train.py",
        predicts: bool = False,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.forked_runs_preloaded"])
        os.environ["PYTHONPATH"] = str(REPOSITORY)  # where the preloaded is looked for
        self._output = output
        self._process = context.Process(
            target=_run_program, args=(program, arguments, output, errors, fault, cwd, predicts), daemon=True
        )
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid

    def ends(self, within_s: float = 300.0) -> tuple[int, str]:
        """The exit code, or the negative number of the signal that killed it; and what it printed."""
        return self.join(within_s), self._output.read_text()

    def join(self, within_s: float = 300.0) -> int:
        """The same, where what it printed cannot be read again."""
        self._process.join(within_s)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"process {self.pid} did not end within {within_s} s")
        return self._process.exitcode

    def is_over(self) -> bool:
        return not self._process.is_alive()


def begin(env: str, folder: Path, *more: str) -> list[str]:
    return [*OVERRIDES, f"env={env}", *SETTINGS.get(env, []), *more, f"hydra.run.dir={folder}"]


def is_complete(run: Path) -> bool:
    summary = run / "summary.json"
    return summary.exists() and json.loads(summary.read_text())["status"] == "completed"


def rows_so_far(folder: Path) -> int:
    return len(read_metrics(folder))


def until(condition: Callable[[], Any], forked: ForkedRun, within_s: float = 600.0) -> bool:
    """Waits for `condition`; False where the process ended first. The first process waits for kernels to compile."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        if forked.is_over():
            return bool(condition())
        assert time.monotonic() < deadline_s, forked.ends(0.0)
        time.sleep(0.005)
    return True


def build_envs() -> None:
    """Loads everything, starts the simulator and builds every env, once."""
    import torch

    import ppo_lab.training.run  # noqa: F401
    from ppo_lab import envs
    from ppo_lab.cli.compose import compose
    from ppo_lab.learning.random_state import random_state, seed_everything
    from ppo_lab.runs.config import to_experiment

    device = torch.device("cpu")
    for overrides in [
        *([f"env={name}"] for name in envs.names()),
        *([f"env={name}", *SETTINGS[name]] for name in SETTINGS),
    ]:
        cfg = to_experiment(compose(overrides)).env
        seed_everything(SEED)
        env, left = envs.make_env(cfg, NUM_ENVS, device, SEED), random_state(device)
        compile_kernels(env)
        BUILT.append((cfg, env, left))
    gc.collect()
    gc.freeze()  # or every fork would walk through all of this when it collects, and when it ends


def compile_kernels(env: Any) -> None:
    """Uses every kernel once, and leaves the env as it was: compiling takes threads, which a fork does not have."""
    import torch

    built = env.state()
    env.step(torch.zeros(env.num_envs, len(env.spec.actions)))
    env.restore(built)


def _run_program(
    program: str,
    arguments: list[str],
    output: Path,
    errors: Path | None,
    fault: Fault | None,
    cwd: Path,
    predicts: bool,
) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    printed = os.open(output, flags)
    os.dup2(printed, 1)
    os.dup2(os.open(errors, flags) if errors else printed, 2)
    os.chdir(cwd)
    _use_what_is_built(alone=predicts)
    if not predicts:
        _predict_nothing()
    if fault:
        fault()
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        runpy.run_path(str(REPOSITORY / program), run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__")


def _use_what_is_built(alone: bool) -> None:
    """`alone`: the env of the run is the only one in memory, and is counted as if it were new."""
    import torch

    from ppo_lab.envs import scenes
    from ppo_lab.learning.random_state import set_random_state

    def make_env(cfg: Any, num_envs: int, device: torch.device, seed: int) -> Any:
        assert (num_envs, seed) == (NUM_ENVS, SEED)
        env, left = next((env, left) for built, env, left in BUILT if built == cfg)
        set_random_state(left, device)
        if alone:
            BUILT.clear()
            gc.collect()
        return env

    vars(scenes).update(make_env=make_env)
    if alone:
        gc.unfreeze()  # or the memory log would not see it


def _predict_nothing() -> None:
    from ppo_lab.training import budget

    no_prediction: Future[Any] = Future()
    no_prediction.set_exception(RuntimeError("this is a test of other things"))
    budget.estimate_in_background = lambda cfg: no_prediction


def killed_before_touching(folder: Path, pattern: str, nth: int = 1) -> Fault:
    """SIGKILL at that moment; see `signalled_before_touching`."""
    return signalled_before_touching(signal.SIGKILL, folder, pattern, nth)


def signalled_before_touching(number: signal.Signals, folder: Path, pattern: str, nth: int = 1) -> Fault:
    """The process sends itself a signal before the nth touch in `folder` that `pattern` is found in.

    A touch reads "open model_3.pt", "os.rename .model_3.pt.123.tmp" or "os.remove state_1.pt".
    """
    return functools.partial(_signal_before_touching, number, folder, re.compile(pattern), nth)


def _signal_before_touching(number: signal.Signals, folder: Path, pattern: re.Pattern[str], nth: int) -> None:
    left = nth

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        if event in ("open", "os.rename", "os.remove") and not isinstance(args[0], int):
            path = Path(os.fsdecode(args[0])).absolute()
            if path.is_relative_to(folder) and pattern.search(f"{event} {path.name}"):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), number)

    sys.addaudithook(hook)


def killed_with_half_a_file(nth: int) -> Fault:
    """SIGKILL in the middle of writing the nth temporary file: half of it is on the disk."""
    return functools.partial(_die_with_half_a_file, nth)


def _die_with_half_a_file(nth: int) -> None:
    left, fsync = nth, os.fsync

    def half(descriptor: Any) -> None:
        nonlocal left
        left -= Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".tmp"
        if left == 0:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    vars(os).update(fsync=half)


def dashboard_fails(after: int) -> Fault:
    """From record number `after` on, the thread that writes TensorBoard's event file gets an error from the disk."""
    return functools.partial(_break_the_dashboard, after)


def _break_the_dashboard(after: int) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    left, write = after, RecordWriter.write

    def fail(self: RecordWriter, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        write(self, data)

    RecordWriter.write = fail
