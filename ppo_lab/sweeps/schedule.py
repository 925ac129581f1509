"""Runs the jobs of a sweep, as many at a time as there are slots, and records the outcome of each."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ppo_lab.config.overrides import RUN_DIR, quoted
from ppo_lab.runs.folder import RunFolder, is_complete, is_locked, locked_by
from ppo_lab.sweeps.executors import JobHandle, Slot
from ppo_lab.sweeps.jobs import Job, Sweep
from ppo_lab.sweeps.outcomes import outcome
from ppo_lab.training.stopping import StopRequest

POLL_EVERY_S = 0.2


@dataclass
class _RunningJob:
    job: Job
    handle: JobHandle
    submitted_s: float
    """By the monotonic clock."""
    earlier_wall_s: float
    """Of its earlier processes."""


def run(sweep: Sweep, slots: Sequence[Slot], show: Callable[[], None] = lambda: None) -> signal.Signals | None:
    """Runs every job that is planned. One that ends badly stops no other.

    A job that another process has completed since it was planned is not run; one whose folder a process holds, such as
    a job that outlives its sweep, waits for that process while others run.

    Args:
        sweep: its jobs.json is written at every change.
        slots: each runs one job at a time.
        show: called several times a second.

    Returns:
        The signal that stopped it, or None. Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP are handed on to the jobs, as SIGINT or
        SIGTERM, which end after a checkpoint; a second signal other than SIGHUP kills them.
    """
    sweep.folder.joinpath("logs").mkdir(exist_ok=True)
    waiting = [job.number for job in sweep.jobs if job.status == "planned"]
    running: dict[int, _RunningJob] = {}
    """Index of the slot -> job."""
    asked_to_stop: set[int] = set()
    """Numbers of jobs."""
    try:
        with StopRequest() as stop:
            while waiting or running:
                if stop.signal:
                    waiting.clear()
                    _pass_on(stop, running.values(), asked_to_stop)
                for index, ended in list(running.items()):
                    exit_code = ended.handle.poll()
                    if exit_code is not None:
                        _record(sweep, ended, exit_code, ended.job.number in asked_to_stop, was_killed=stop.at_once)
                        del running[index]
                for index, slot in enumerate(slots):
                    if index not in running and (job := _next_job(sweep, waiting)):
                        running[index] = _submit(sweep, job, slot)
                show()
                if running or waiting:
                    time.sleep(POLL_EVERY_S)
            return stop.signal
    finally:
        for left in running.values():  # only where something broke here
            left.handle.stop(signal.SIGTERM)


def _next_job(sweep: Sweep, waiting: list[int]) -> Job | None:
    """Takes the first job out of `waiting` that can be started now; None where there is none."""
    for number in [*waiting]:
        job = sweep.jobs[number]
        folder = sweep.run_folder(job)
        if is_locked(folder):
            message = f"waits for process {locked_by(folder)}, which trains in its folder"
            if job.message != message:
                sweep.update(job, message=message)
            continue
        waiting.remove(number)
        if not is_complete(folder):
            return job
        sweep.update(job, status="completed", exit_code=0, message=None)
    return None


def _submit(sweep: Sweep, job: Job, slot: Slot) -> _RunningJob:
    overrides = [*job.overrides]
    folder = sweep.run_folder(job)
    if sweep.settings["over_budget"] == "run":
        overrides.append("memory.over_budget=warn")
    if RunFolder(folder).config.exists():
        overrides.append(f"resume={quoted(folder)}")
    else:
        _move_aside(folder)
        overrides.append(f"{RUN_DIR}{quoted(folder)}")
    handle = slot.submit(overrides, sweep.log(job))
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    earlier_wall_s, started = job.wall_s or 0.0, job.started or now
    job = sweep.update(job, status="running", device=slot.name, started=started, message=None, exit_code=None)
    return _RunningJob(job, handle, time.monotonic(), earlier_wall_s)


def _move_aside(folder: Path) -> None:
    """A process that ended before it was a run may have left a folder; a new run wants a new one."""
    number = 1
    while folder.exists():
        aside = folder.with_name(f"{folder.name}.aside_{number}")
        if not aside.exists():
            folder.rename(aside)
        number += 1


def _pass_on(stop: StopRequest, running: Iterable[_RunningJob], asked_to_stop: set[int]) -> None:
    for each in running:
        if stop.at_once:
            each.handle.kill()
        elif each.job.number not in asked_to_stop:
            each.handle.stop(signal.SIGINT if stop.signal == signal.SIGINT else signal.SIGTERM)
        asked_to_stop.add(each.job.number)


def _record(sweep: Sweep, ended: _RunningJob, exit_code: int, was_asked: bool, was_killed: bool) -> None:
    job = ended.job
    status, message = outcome(exit_code, sweep.run_folder(job), sweep.log(job), was_asked and not was_killed)
    if was_killed and exit_code == -signal.SIGKILL:
        message = "killed by a second signal to the sweep"
    wall_s = ended.earlier_wall_s + time.monotonic() - ended.submitted_s
    sweep.update(job, status=status, exit_code=exit_code, message=message, wall_s=round(wall_s, 3))
