"""Lists runs."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ppo_lab.cli.exits import Parser
from ppo_lab.errors import ConfigError
from ppo_lab.machine import commands
from ppo_lab.machine.commands import relative_to_cwd
from ppo_lab.runs.files import to_json
from ppo_lab.runs.folder import find_runs
from ppo_lab.runs.overview import Overview, overview
from ppo_lab.training.console import clock

OUTPUTS = Path("outputs")
WIDE = 10_000
"""Columns where the output is no terminal: every run is one line."""
STYLES = {"running": "bold", "completed": "green", "failed": "red", "killed": "red", "unknown": "red"}
UNKNOWN = "-"


def main(argv: list[str]) -> None:
    parser = Parser(prog=commands.portable("runs"), description="Lists runs, the newest first.")
    parser.add_argument("folders", nargs="*", type=Path, help="runs, sweeps, or folders of them; default: outputs")
    parser.add_argument("--json", action="store_true", help="one JSON list, with what could not be read")
    asked = parser.parse_args(argv)
    folders: list[Path] = asked.folders
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: there is no such folder. Name a run, a sweep, or a folder of them.")
    found = {run.resolve(): run for folder in folders or [OUTPUTS] for run in find_runs(folder)}
    runs = sorted(map(overview, found.values()), key=lambda run: run.started_s, reverse=True)
    if asked.json:
        print(to_json([as_json(run) for run in runs], indent=2))
    elif runs:
        is_terminal = Console().is_terminal
        Console(width=None if is_terminal else WIDE).print(table(runs))
    else:
        where = ", ".join(map(str, folders or [OUTPUTS]))
        print(f"There is no run in {where}. To train one: {commands.train()}")


def as_json(run: Overview) -> dict[str, Any]:
    """The fields of an Overview, which are stable; `started` is local time with its zone."""
    started = datetime.fromtimestamp(run.started_s).astimezone().isoformat(timespec="seconds")
    fields = asdict(run) | {"folder": str(run.folder), "started": started}
    del fields["started_s"]
    return fields


def table(runs: list[Overview]) -> Table:
    """A row a run. What could not be read stands below the folder."""
    listed = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    listed.add_column("env", no_wrap=True)
    listed.add_column("status", no_wrap=True)
    for name in ("iterations", "reward", "length", "training"):
        listed.add_column(name, justify="right", no_wrap=True)
    listed.add_column("folder", overflow="fold")
    for run in runs:
        estimated = "~" * run.training_s_is_estimated
        cells = (
            run.env or UNKNOWN,
            run.status,
            f"{run.iterations}/{run.max_iterations or UNKNOWN}",
            UNKNOWN if run.mean_reward is None else f"{run.mean_reward:.2f}",
            UNKNOWN if run.episode_length is None else f"{run.episode_length:.0f}",
            UNKNOWN if run.training_s is None else f"{estimated}{clock(run.training_s)}",
            "; ".join([str(relative_to_cwd(run.folder)), *run.damages]),
        )
        listed.add_row(*map(_printable, cells), style=STYLES.get(run.status))
    return listed


def _printable(text: str) -> Text:
    """Without what could move a terminal's cursor: anyone may have written a run folder."""
    return Text("".join(character if character.isprintable() else "?" for character in text))
