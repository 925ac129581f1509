"""Evaluates checkpoints in processes of their own while training goes on, which therefore comes out as without them."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from ppo_lab.machine.commands import PACKAGE, relative_to_cwd
from ppo_lab.machine.launch import STARTED_BY_US, VARIABLES
from ppo_lab.runs.folder import RunFolder

log = logging.getLogger(__name__)

NAME, EPISODES = "training", 64
"""Of the evaluation: RUN/evaluation/training.json, and how many episodes each policy plays."""
NICENESS = 10
"""The system prefers training where both want a core."""


class Evaluations:
    """One process at a time; those that come while it runs are evaluated together by the next. A context manager.

    On exit it waits for those that are left; where the run did not come to its end it drops them.
    """

    def __init__(self, folder: Path, every: int | None, max_iterations: int) -> None:
        self._folder = folder
        self._every = every
        self._last = max_iterations - 1
        self._queue = ThreadPoolExecutor(max_workers=1, thread_name_prefix="evaluation")
        self._waiting: list[int] = []  # iterations
        self._done: Future[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def is_due(self, iteration: int) -> bool:
        return self._every is not None and (iteration % self._every == 0 or iteration == self._last)

    def add(self, iteration: int) -> None:
        """The checkpoint of `iteration` is on the disk."""
        if self.is_due(iteration):
            self._waiting.append(iteration)
            self._done = self._queue.submit(self._evaluate_waiting)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._every = None  # a checkpoint that is still being written is not evaluated any more
        try:
            if kind is None and self._done and not self._done.done():
                log.info("evaluating what is left; Ctrl-C leaves it out")
                self._done.exception()  # waits; what failed was told
        except KeyboardInterrupt:
            log.info("left out")
        finally:
            self._queue.shutdown(wait=False, cancel_futures=True)
            if self._process and self._process.poll() is None:
                self._process.terminate()

    def _evaluate_waiting(self) -> None:
        iterations, self._waiting = self._waiting, []
        if iterations:
            self._evaluate(",".join(map(str, iterations)))

    def _evaluate(self, iterations: str) -> None:
        """A process of its own, on the CPU: neither the GPU's memory nor the training's generators are touched."""
        settings = [f"checkpoint={iterations}", f"episodes={EPISODES}", f"name={NAME}", "device=cpu"]
        environment = {key: value for key, value in os.environ.items() if key not in (*VARIABLES, STARTED_BY_US)}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PACKAGE.parent), os.environ.get("PYTHONPATH"))))
        output = RunFolder(self._folder).evaluation / f"{NAME}.log"
        output.parent.mkdir(exist_ok=True)
        with output.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ppo_lab", "evaluate", str(self._folder), *settings],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # what a terminal sends is for the training
            )
            with contextlib.suppress(psutil.Error):
                psutil.Process(self._process.pid).nice(NICENESS)
            if self._process.wait() > 0:
                log.warning("iteration %s was not evaluated: see %s", iterations, relative_to_cwd(output))
