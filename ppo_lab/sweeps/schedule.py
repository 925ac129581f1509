"""Runs the jobs of a sweep, as many at a time as there are places, and writes down what becomes of each."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ppo_lab.config import as_text
from ppo_lab.config.overrides import RUN_DIR, quoted
from ppo_lab.runs.files import is_locked
from ppo_lab.runs.folder import is_complete
from ppo_lab.sweeps.jobs import Job, Sweep
from ppo_lab.sweeps.outcomes import outcome
from ppo_lab.sweeps.places import Place, Running
from ppo_lab.training.stopping import StopRequest

POLL_EVERY_S = 0.2


@dataclass
class _Started:
    job: Job
    running: Running
    since_s: float
    spent_s: float
    """By its earlier processes."""


def run(sweep: Sweep, places: Sequence[Place], show: Callable[[], None] = lambda: None) -> signal.Signals | None:
    """Runs every job that is planned. One that ends badly stops no other.

    A job that another process has completed since it was planned is not run; one whose folder a process holds, such as
    a job that outlives its sweep, waits for that process while others run.

    Args:
        sweep: its jobs.json is written at every change.
        places: each takes one job at a time.
        show: called over and over.

    Returns:
        The signal that stopped it, or None. Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP are handed on to the jobs, as SIGINT or
        SIGTERM, which end after a checkpoint; a second signal other than SIGHUP kills them.
    """
    sweep.folder.joinpath("logs").mkdir(exist_ok=True)
    waiting = [job.number for job in sweep.jobs if job.status == "planned"]
    started: dict[int, _Started] = {}
    """By the place's index."""
    asked: set[int] = set()
    """The jobs that were told to stop, by number."""
    try:
        with StopRequest() as stop:
            while waiting or started:
                if stop.signal:
                    waiting.clear()
                    _hand_on(stop, started.values(), asked)
                for index, one in list(started.items()):
                    exit_code = one.running.poll()
                    if exit_code is not None:
                        _write_down(sweep, one, exit_code, was_asked=one.job.number in asked, was_killed=stop.at_once)
                        del started[index]
                for index, place in enumerate(places):
                    if index not in started and (job := _next_job(sweep, waiting)):
                        started[index] = _start(sweep, job, place)
                show()
                if started or waiting:
                    time.sleep(POLL_EVERY_S)
            return stop.signal
    finally:
        for one in started.values():  # only where something broke here
            one.running.stop(signal.SIGTERM)


def _next_job(sweep: Sweep, waiting: list[int]) -> Job | None:
    """Takes the first job out of `waiting` that can be started now; None where there is none."""
    for number in [*waiting]:
        job = sweep.jobs[number]
        folder = sweep.run_folder(job)
        if is_locked(folder):
            pid = as_text((folder / ".lock").read_text(errors="replace").strip())
            message = f"waits for process {pid}, which trains in its folder"
            if job.message != message:
                sweep.update(job, message=message)
            continue
        waiting.remove(number)
        if not is_complete(folder):
            return job
        sweep.update(job, status="completed", exit_code=0, message=None)
    return None


def _start(sweep: Sweep, job: Job, place: Place) -> _Started:
    words = [*job.overrides]
    folder = sweep.run_folder(job)
    if sweep.settings["over_budget"] == "run":
        words.append("memory.over_budget=warn")
    if (folder / "config.yaml").exists():
        words.append(f"resume={quoted(folder)}")
    else:
        _move_aside(folder)
        words.append(f"{RUN_DIR}{quoted(folder)}")
    running = place.start(words, sweep.log(job))
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    spent_s, started = job.wall_s or 0.0, job.started or now
    job = sweep.update(job, status="running", device=place.name, started=started, message=None, exit_code=None)
    return _Started(job, running, time.monotonic(), spent_s)


def _move_aside(folder: Path) -> None:
    """A process that ended before it was a run may have left a folder; a new run wants a new one."""
    number = 1
    while folder.exists():
        aside = folder.with_name(f"{folder.name}.aside_{number}")
        if not aside.exists():
            folder.rename(aside)
        number += 1


def _hand_on(stop: StopRequest, started: Iterable[_Started], asked: set[int]) -> None:
    for one in started:
        if stop.at_once:
            one.running.kill()
        elif one.job.number not in asked:
            one.running.stop(signal.SIGINT if stop.signal == signal.SIGINT else signal.SIGTERM)
        asked.add(one.job.number)


def _write_down(sweep: Sweep, one: _Started, exit_code: int, was_asked: bool, was_killed: bool) -> None:
    status, message = outcome(exit_code, sweep.run_folder(one.job), sweep.log(one.job), was_asked and not was_killed)
    if was_killed and exit_code == -signal.SIGKILL:
        message = "killed by a second signal to the sweep"
    wall_s = one.spent_s + time.monotonic() - one.since_s
    sweep.update(one.job, status=status, exit_code=exit_code, message=message, wall_s=round(wall_s, 3))
