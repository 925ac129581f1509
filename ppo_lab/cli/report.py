"""Reports on a sweep, or on runs laid side by side: `python -m ppo_lab report --help`."""

from __future__ import annotations

import time
from pathlib import Path

from ppo_lab.cli.exits import Parser
from ppo_lab.errors import ConfigError
from ppo_lab.machine import commands
from ppo_lab.report import write, write_into
from ppo_lab.report.job_results import read_runs, read_sweep
from ppo_lab.sweeps.jobs import is_sweep as holds_sweep


def main(argv: list[str]) -> None:
    parser = Parser(prog=commands.portable("report"), description="Lays runs side by side.")
    parser.add_argument("folders", nargs="+", type=Path, help="one sweep, or any folders with runs in them")
    parser.add_argument("--into", type=Path, help="a folder for the report; a sweep's goes into the sweep otherwise")
    asked = parser.parse_args(argv)
    folders: list[Path] = asked.folders
    is_sweep = len(folders) == 1 and holds_sweep(folders[0])
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    into = asked.into or (folders[0] if is_sweep else Path("outputs", "reports", stamp))
    try:
        if is_sweep and not asked.into:
            page = write(folders[0])
        else:
            sweep = read_sweep(folders[0]) if is_sweep else read_runs(folders)
            into.mkdir(parents=True, exist_ok=True)
            page = write_into(into, sweep)
        print(f"report: {page}")
    except OSError as error:
        raise ConfigError(
            f"cannot write the report into {into}: {error.strerror}; choose another folder with --into FOLDER."
        ) from None
