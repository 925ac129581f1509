"""What became of a job, read from what it left."""

from __future__ import annotations

import signal
from pathlib import Path

from ppo_lab.errors import ExitCode
from ppo_lab.runs.files import read_json
from ppo_lab.runs.folder import RunFolder
from ppo_lab.sweeps.jobs import Status

LOG_TAIL_BYTES = 8192


def outcome(exit_code: int, folder: Path, log: Path, was_asked_to_stop: bool = False) -> tuple[Status, str | None]:
    """How a job ended, and why, from its exit code, its summary.json and the last line that it printed."""
    summary = read_json(RunFolder(folder).summary)
    last_line = _last_line(log)
    reason: str | None
    if last_line.startswith("error: "):
        reason = last_line.removeprefix("error: ")
    else:
        reason = summary.get("message") if summary.get("status") == "failed" else None
    if exit_code == ExitCode.DONE:
        return "completed", None
    if exit_code == ExitCode.OVER_BUDGET:
        return "over_budget", reason
    if exit_code == ExitCode.WRONG_INPUT or (exit_code == ExitCode.FAILED and reason):
        return "failed", reason or last_line
    if exit_code in (ExitCode.INTERRUPTED, ExitCode.REQUEUE) or was_asked_to_stop:
        return "interrupted", f"stopped after {summary.get('iterations', 0)} iterations"
    if exit_code < 0:
        often = "; the system does that when memory runs out" if exit_code == -signal.SIGKILL else ""
        return "killed", f"ended by signal {-exit_code} ({signal.strsignal(-exit_code)}){often}"
    return "killed", f"ended with code {exit_code} and no reason given; it last printed: {last_line}"


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
