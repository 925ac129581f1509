"""Runs a planned sweep from its first job to its report."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Sequence
from pathlib import Path

from ppo_lab import runs
from ppo_lab.command_line import ExitCode, RunFailedError
from ppo_lab.sweeps import jobs, schedule
from ppo_lab.sweeps.jobs import Sweep
from ppo_lab.sweeps.places import Place, local_places
from ppo_lab.sweeps.table import Board
from ppo_lab.telemetry.console import say

EXIT_CODES = {
    None: ExitCode.FAILED,
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGTERM: ExitCode.REQUEUE,
    signal.SIGUSR1: ExitCode.REQUEUE,
    signal.SIGHUP: ExitCode.HANGUP,
}
"""What stopped a sweep of which jobs are missing -> how the command ends."""


def launch(folder: Path) -> ExitCode:
    """Runs what is planned in the sweep's folder on this machine's devices, and reports.

    Raises a ConfigError where another process runs this sweep.
    """
    with runs.take(folder):
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
    return EXIT_CODES[stopped_by]


def _how_to_go_on(sweep: Sweep) -> str:
    return f"to run what is missing: {sweep.command} {shlex.quote(f'sweep.resume={sweep.folder}')}"


def _write_report(folder: Path) -> Path | None:
    """A report that cannot be written must not hide how the sweep went."""
    try:
        from ppo_lab import report  # loads matplotlib

        return report.write(folder)
    except Exception as error:
        say(f"no report: {error}; python -m ppo_lab.report {folder} tries again")
        return None
