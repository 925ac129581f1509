"""`ppo-lab evaluate RUN`: plays many episodes with a run's policies, and writes and shows what they came to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ppo_lab.cli import on_run, waiting
from ppo_lab.config import as_text, setting
from ppo_lab.deploy.table import notes, tables
from ppo_lab.deploy.trained import Trained, read_conditions
from ppo_lab.errors import ConfigError
from ppo_lab.machine import devices, preflight
from ppo_lab.machine.commands import relative_to_cwd
from ppo_lab.runs.files import read_json, write_json
from ppo_lab.runs.folder import RunFolder, make_part

if TYPE_CHECKING:
    from ppo_lab.deploy.exported import RunnerPolicy


@dataclass
class Evaluation:
    """What is asked of a run. Values are in conf/commands/evaluate.yaml."""

    checkpoint: str = on_run.checkpoints()
    episodes: int = setting(at_least=1, at_most=1_000_000)
    actions: str = setting(choices=("mean", "sampled"))
    seed: int = on_run.seed()
    device: str = on_run.device()
    conditions: str | None = setting()
    policy: str | None = setting()
    name: str | None = setting(pattern=r"[\w.-]+", examples=("best", "on_ice"))


def main(argv: list[str]) -> None:
    """Raises a ConfigError."""
    trained, asked = on_run.read(argv, "evaluate", Evaluation)
    conditions = read_conditions(trained, Path(asked.conditions) if asked.conditions else None)
    exported = _check_policy(asked, argv, conditions) if asked.policy else None
    files = [] if asked.policy else trained.checkpoints(asked.checkpoint)
    name = re.sub(r"[^\w.-]", "_", Path(asked.policy).resolve().name) if asked.policy else asked.checkpoint
    into = make_part(RunFolder(trained.folder).evaluation) / f"{asked.name or name}.json"
    preflight.check_system_libraries()
    from ppo_lab.deploy import evaluation  # loads torch
    from ppo_lab.deploy.script import ScriptPolicy
    from ppo_lab.runs.events import show_scalars

    device = devices.resolve_device(asked.device)
    plan = evaluation.Plan(asked.episodes, asked.actions == "sampled", asked.seed)
    candidates = evaluation.checkpoints(trained, files, device)
    if asked.policy:
        policy = exported or ScriptPolicy(Path(asked.policy), trained.cfg.env.spec(), device)
        candidates = [evaluation.Candidate(policy.name, policy.iteration, policy)]
    with waiting.shown(else_lines=True) as say:
        results = evaluation.evaluate(conditions, candidates, plan, device, say)
    now = evaluation.document(trained, conditions, plan, device, results)
    document = evaluation.added_to(read_json(into), now)
    write_json(into, document)
    show_scalars(make_part(into.with_suffix("")), evaluation.scalars(document))
    console = Console()
    for shown in tables(now, console.width):
        console.print(shown, end="\n\n")
    print("\n".join([*notes(now), f"written: {relative_to_cwd(into)}"]))


def _check_policy(asked: Evaluation, argv: list[str], conditions: Mapping[str, Trained]) -> RunnerPolicy | None:
    """The exported folder that `asked.policy` names; None for a file. Raises a ConfigError where it does not fit."""
    path = Path(str(asked.policy))
    if any(argument.startswith("checkpoint=") for argument in argv):
        raise ConfigError("checkpoint= names a policy of the run, policy= another. Give one of them.")
    if asked.actions == "sampled":
        raise ConfigError("actions=sampled: a policy from a file gives its mean alone. Allowed with policy=: mean.")
    if not path.exists():
        raise ConfigError(f"policy={as_text(path)}: there is no such file or folder.")
    if not path.is_dir():
        return None
    from ppo_lab.deploy.exported import RunnerPolicy  # loads onnxruntime

    policy = RunnerPolicy(path)
    for condition in conditions.values():
        policy.check_fits(condition.cfg.env)
    return policy
