"""`ppo-lab export RUN`: a policy of a run as files for a robot, written only where they act as the policy does."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ppo_lab.cli import on_run, waiting
from ppo_lab.deploy.interface import deployment
from ppo_lab.errors import ConfigError
from ppo_lab.machine import devices, preflight
from ppo_lab.machine.commands import relative_to_cwd
from ppo_lab.runs.folder import RunFolder


@dataclass
class Export:
    """What is asked of a run. Values are in conf/commands/export.yaml."""

    checkpoint: str = on_run.checkpoint()
    seed: int = on_run.seed()
    device: str = on_run.device()


def main(argv: list[str]) -> None:
    """Raises a ConfigError, and a NotReproducedError where the files would not act as the policy does."""
    trained, asked = on_run.read(argv, "export", Export)
    if trained.changes:
        changed = ", ".join(trained.changes)
        raise ConfigError(f"{changed}: a policy is exported for the env that it was trained in; leave that out.")
    (checkpoint,) = trained.checkpoints(asked.checkpoint)
    deployment(trained.cfg.env)
    into = RunFolder(trained.folder).export
    preflight.check_system_libraries()
    from ppo_lab.deploy import export  # loads torch
    from ppo_lab.deploy.runner import TOLERANCE
    from ppo_lab.deploy.stage import watched_env

    export.check_replaceable(into)
    device = devices.resolve_device(asked.device)
    with waiting.shown(else_lines=True) as say:
        say(f"recording {export.STEPS} steps of {export.ENVS} envs of {trained.cfg.env.name}")
        exact = dataclasses.replace(trained.cfg.env, randomization={})  # or noise would be in what is compared
        env = watched_env(exact, export.ENVS, device, asked.seed)
        say("exporting and comparing")
        found = export.export(trained, checkpoint, env, into)
    print(
        f"{found.observations} observations, numbers up to {found.largest:.0f}: onnxruntime differs from torch by "
        f"{found.onnxruntime:.1e}, TorchScript by {found.torchscript:.1e} (allowed: {TOLERANCE:.0e})"
    )
    print(found.replayed)
    print(f"written: {relative_to_cwd(into)}, of {checkpoint.name}")
