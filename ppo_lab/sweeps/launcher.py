"""Runs a planned sweep from its first job to its report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ppo_lab.errors import STOPS, ExitCode, RunFailedError
from ppo_lab.machine import commands
from ppo_lab.runs.files import shown
from ppo_lab.runs.folder import take
from ppo_lab.sweeps import jobs, schedule
from ppo_lab.sweeps.jobs import Sweep
from ppo_lab.sweeps.places import Place, local_places
from ppo_lab.sweeps.table import Board
from ppo_lab.training.console import say


def launch(folder: Path) -> ExitCode:
    """Runs what is planned in the sweep's folder on this machine's devices, and reports.

    Raises a ConfigError where another process runs this sweep.
    """
    with take(folder):
        sweep = jobs.read(folder)
        return run(sweep, local_places(sweep.device, sweep.settings["jobs_per_device"]))


def run(sweep: Sweep, places: Sequence[Place]) -> ExitCode:
    """Runs what is planned, wherever the places are. Prints the folder, the table and the report's path.

    Raises:
        RunFailedError: jobs.json cannot be written any more; the jobs that ran were asked to stop.
    """
    say(f"sweep folder: {sweep.folder}")
    board = Board(sweep, len(places))
    try:
        with board:
            stopped_by = schedule.run(sweep, places, board.show)
    except OSError as error:
        raise RunFailedError(f"the sweep stopped: {error}. {_how_to_go_on(sweep)}") from error
    board.print_table()
    report = _write_report(sweep.folder)
    if report:
        say(f"report: {report}")

    missing = [job for job in sweep.jobs if job.is_missing]
    if not missing:
        return ExitCode.DONE
    say(f"missing: {len(missing)} of {len(sweep.jobs)} jobs")
    for job in missing:
        why = f": {job.message}" if job.message else ""
        if job.message and sweep.log(job).exists():
            why += f"; see {sweep.log(job)}"
        say(f"  {job.folder} {job.status.replace('_', ' ')}{why}")
    say(_how_to_go_on(sweep))
    return STOPS[stopped_by] if stopped_by else ExitCode.FAILED


def _how_to_go_on(sweep: Sweep) -> str:
    argv = shlex.split(sweep.command)[2:]  # after `python train.py` or `ppo-lab train`
    return f"to run what is missing: {commands.train(*argv, f'sweep.resume={shown(sweep.folder)}')}"


def _write_report(folder: Path) -> Path | None:
    """A report that cannot be written must not hide how the sweep went."""
    try:
        from ppo_lab import report

        return report.write(folder)
    except Exception as error:
        say(f"no report: {error}; {commands.module('report', str(folder))} tries again")
        return None
