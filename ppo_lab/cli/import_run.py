"""`import`: an old run becomes a run folder of today."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from ppo_lab.cli.compose import compose
from ppo_lab.cli.exits import Parser
from ppo_lab.config import as_text
from ppo_lab.importers.rsl_rl_2_2.old_run import OldRun, read, write
from ppo_lab.machine import commands


def main(argv: list[str]) -> None:
    """Imports the run that `argv` names. Raises a ConfigError, and then leaves no folder behind."""
    parser = Parser(prog=commands.portable("import"), description="An old run becomes a run folder of today.")
    parser.add_argument("folder", type=Path, help="holds cfgs.pkl and model_<iteration>.pt of rsl-rl-lib 2.2.4")
    parser.add_argument("--into", type=Path, help="the new run folder; else outputs/<env>/<date>_<time>_imported")
    parser.add_argument("--num-envs", type=int, help="how many envs there were, which old runs do not record")
    options = parser.parse_args(argv)
    run = read(options.folder, options.num_envs, lambda env: compose([f"env={env}"]))
    env, now = run.settings.experiment.env.name, datetime.now()
    into = options.into or Path("outputs") / env / f"{now:%Y-%m-%d_%H-%M-%S}_imported"
    write(into, run, commands.portable("import", *argv))
    report(into, run)


def report(into: Path, run: OldRun) -> None:
    """Prints what became of the old run."""
    print(f"run folder: {into}")
    count, env = len(run.checkpoints), run.settings.experiment.env.name
    print(f"imported: env={env}, {count} checkpoint{'s' * (count > 1)}, the last of iteration {max(run.checkpoints)}")
    for key, gone in run.settings.dropped.items():
        print(f"dropped: {key}={as_text(gone['value'])} ({gone['why']})")
    for key, value in run.settings.not_recorded.items():
        print(f"not in the old run, taken as today: {key}={as_text(value)}")
