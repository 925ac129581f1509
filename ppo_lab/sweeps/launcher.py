"""Runs a planned sweep from its first job to its report."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from ppo_lab.errors import STOPS, ExitCode, RunFailedError
from ppo_lab.machine import commands
from ppo_lab.machine.commands import relative_to_cwd
from ppo_lab.runs.folder import lock
from ppo_lab.sweeps import jobs, schedule
from ppo_lab.sweeps.executors import Slot, local_slots
from ppo_lab.sweeps.jobs import Sweep
from ppo_lab.sweeps.table import SweepTable
from ppo_lab.training.console import say

WriteReport = Callable[[Path], Path]
"""Reports on the sweep in a folder, and returns the page's path."""


def launch(folder: Path, write_report: WriteReport) -> ExitCode:
    """Runs what is planned in the sweep's folder on this machine's devices, and reports.

    Raises a ConfigError where another process runs this sweep.
    """
    with lock(folder):
        sweep = jobs.read(folder)
        return run(sweep, local_slots(sweep.device, sweep.settings["jobs_per_device"]), write_report)


def run(sweep: Sweep, slots: Sequence[Slot], write_report: WriteReport) -> ExitCode:
    """Runs what is planned in `slots`, wherever they are. Prints the folder, the table and the report's path.

    Raises:
        RunFailedError: jobs.json cannot be written any more; the jobs that ran were asked to stop.
    """
    say(f"sweep folder: {sweep.folder}")
    table = SweepTable(sweep, len(slots))
    try:
        with table:
            stopped_by = schedule.run(sweep, slots, table.show)
    except OSError as error:
        raise RunFailedError(f"the sweep stopped: {error}. {_how_to_go_on(sweep)}") from error
    table.print_table()
    _report(sweep.folder, write_report)

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
    return f"to run what is missing: {commands.train(*argv, f'sweep.resume={relative_to_cwd(sweep.folder)}')}"


def _report(folder: Path, write_report: WriteReport) -> None:
    """A report that cannot be written must not hide how the sweep went."""
    try:
        say(f"report: {write_report(folder)}")
    except Exception as error:
        say(f"no report: {error}; {commands.module('report', str(folder))} tries again")
