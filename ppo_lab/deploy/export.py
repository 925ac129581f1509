"""A policy as a robot takes it: made, compared with the original on recorded steps, and only then put into its place.

N = num_envs, W = width of an observation, A = number of actions.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from tensordict import TensorDict

from ppo_lab.deploy import runner
from ppo_lab.deploy.interface import interface
from ppo_lab.deploy.runner import EXAMPLE, FORMAT, MANIFEST, POLICY, TOLERANCE, difference
from ppo_lab.deploy.script import as_script, load_script
from ppo_lab.errors import ConfigError, NotReproducedError
from ppo_lab.machine.preflight import version_of
from ppo_lab.runs.files import read_json, write_json
from ppo_lab.runs.folder import cannot_write
from ppo_lab.runs.manifest import packages, read_checkout

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ppo_lab.contracts import Deployment, StepDetails, WatchedEnv
    from ppo_lab.deploy.trained import Trained
    from ppo_lab.learning.policy import ActorPolicy

CPU = torch.device("cpu")
SCRIPT, PROGRAM = "policy.pt", "run.py"
FILES = (POLICY, SCRIPT, EXAMPLE, PROGRAM)
"""Beside the manifest, which has their checksums."""
ENVS, STEPS = 64, 200
"""Envs that are recorded, and steps of the rollout that a runner has to repeat."""
COMMANDED = 5
"""And steps with commands that are not 0 and not alike, whatever the env draws, so that their scales show."""
OBSERVATIONS = 1000
"""Recorded ones on which the engines have to agree, as they are and FAR times as large; and as many random ones."""
FAR = (10.0, 100.0)
PACKAGES = ("onnx", "onnxscript", "onnxruntime", "tensordict")


class Recording(NamedTuple):
    """What a policy did in the simulator."""

    observations: Tensor
    """(OBSERVATIONS, W), evenly from all steps of all envs."""
    rollout: dict[str, np.ndarray]
    """Steps of first episodes, T of them, each (T, D): "sensors/<source>", "observations", "actions" as clipped,
    "targets" of the actuators once those actions took effect; and "starts" (T,), where an episode began."""


class Agreement(NamedTuple):
    """How far the exported policy is from the original, see `ppo_lab.deploy.runner.difference`."""

    observations: int
    largest: float
    """Number in those observations."""
    onnxruntime: float
    torchscript: float
    replayed: runner.Differences


@torch.inference_mode()
def record(env: WatchedEnv, policy: ActorPolicy) -> Recording:
    """Steps `env`, just built, under the mean actions of `policy`. Raises a ConfigError where the env does not tell.

    The rollout is of the longest first episodes, each from its start: in a later one an env may still show actions of
    the one before.
    """
    deployed = env.spec.deployment
    assert deployed is not None
    told = env.sensors()
    if silent := [term.source for term in deployed.observations if not term.actions_ago and term.source not in told]:
        raise ConfigError(f"the env does not tell {', '.join(silent)}: its method sensors gives {', '.join(told)}.")
    parts, start = [], env.state()
    if env.commands:
        env.hold_commands([high + 0.1 * number for number, (_, high) in enumerate(env.commands.values(), 1)])
        parts.append(_rollout(*_play(env, policy, COMMANDED, deployed), COMMANDED))
        env.hold_commands(None)
        env.restore(start)
    columns, lengths = _play(env, policy, STEPS, deployed)
    parts.append(_rollout(columns, lengths, STEPS))
    everything = columns["observations"].flatten(0, 1)
    chosen = torch.linspace(0, len(everything) - 1, OBSERVATIONS).long()
    return Recording(everything[chosen], {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _play(
    env: WatchedEnv, policy: ActorPolicy, count: int, deployed: Deployment
) -> tuple[dict[str, Tensor], list[int]]:
    """What is seen, done and told in `count` steps, each column (count, N, D); and the steps of each first episode.

    "targets" are those of the step's own actions: what the actuators were told when these took effect. So an episode
    that ends is shorter by the latency.
    """
    steps: list[dict[str, Tensor]] = []
    details: list[StepDetails] = []
    late = deployed.latency_steps
    lengths = torch.full((env.num_envs,), count + late, device=env.device)
    env.watch(details.append)
    try:
        for step in range(count + late):
            now = {f"sensors/{name}": values.clone() for name, values in env.sensors().items()}
            now["observations"] = env.get_observations()["policy"]
            actions = policy.mean(env.get_observations())
            now["actions"] = actions.clip(-deployed.clip_actions, deployed.clip_actions)
            lengths = torch.where(env.step(actions).dones, lengths.clamp(max=step + 1), lengths)
            if (targets := details.pop().targets) is None:
                raise ConfigError("the env does not tell what its actuators are told: its step gives _show no targets.")
            steps.append(now | {"targets": targets})
    finally:
        env.watch(None)
    columns = {name: torch.stack([step[name] for step in steps]).float().cpu() for name in steps[0]}
    taking_effect = {name: values[late:] if name == "targets" else values[:count] for name, values in columns.items()}
    return taking_effect, (lengths - late).clamp(min=0).tolist()


def _rollout(columns: dict[str, Tensor], lengths: list[int], count: int) -> dict[str, np.ndarray]:
    """`count` steps of the envs that went on for longest, one after the other; "starts" says where each begins."""
    parts: list[dict[str, np.ndarray]] = []
    left = count
    for env in sorted(range(len(lengths)), key=lambda env: -lengths[env]):
        taken = min(left, lengths[env])
        part = {name: values[:taken, env].numpy() for name, values in columns.items()}
        parts.append(part | {"starts": np.arange(taken) == 0})
        left -= taken
    if left:
        raise ConfigError(f"only {count - left} of {count} steps could be recorded: episodes end at once.")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def export(trained: Trained, checkpoint: Path, env: WatchedEnv, into: Path) -> Agreement:
    """Writes the policy of `checkpoint` into the folder `into`, whole or not at all. `env`: 2 envs at least.

    Raises a ConfigError, and a NotReproducedError where the copies do not act as the original.
    """
    described, checkout = interface(trained.cfg.env), read_checkout()
    recording = record(env, trained.policy(checkpoint, env.device))
    original = trained.policy(checkpoint, CPU)
    with _staged(into) as folder:
        write_policy(original.network(), recording.observations.shape[1], folder)
        np.savez_compressed(folder / EXAMPLE, **recording.rollout)  # type: ignore[arg-type]
        shutil.copyfile(runner.__file__, folder / PROGRAM)
        about = {
            "format": FORMAT,
            "run": str(trained.folder),
            "checkpoint": checkpoint.name,
            "iteration": original.iteration,
            "exported": datetime.now().astimezone().isoformat(timespec="seconds"),
            "git": {"commit": checkout.commit, "dirty": checkout.is_dirty},
            "packages": packages() | {name: version_of(name) for name in PACKAGES},
        }
        manifest = about | described | {"files": {name: _sha256(folder / name) for name in FILES}}
        write_json(folder / MANIFEST, manifest)
        agreement = compare(folder, original, recording.observations)
        write_json(folder / MANIFEST, manifest | {"agreement": _as_json(agreement)})
    return agreement


def write_policy(network: nn.Module, width: int, folder: Path) -> None:
    """policy.pt, in TorchScript, and policy.onnx: (N, width) observations in, actions (N, A) out, for any N."""
    (folder / SCRIPT).write_bytes(as_script(network))
    with warnings.catch_warnings(), _quiet("torch.onnx._internal.exporter._registration"):
        warnings.simplefilter("ignore")  # torch's exporter uses what torch deprecates
        program = torch.onnx.export(
            network,
            (torch.zeros(2, width),),
            input_names=["observations"],
            output_names=["actions"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # where on this machine torch and rsl_rl lie
    (folder / POLICY).write_bytes(model.SerializeToString())


@torch.inference_mode()
def compare(folder: Path, original: ActorPolicy, recorded: Tensor) -> Agreement:
    """How far the exported files are from the original. Raises a NotReproducedError where that is too far."""
    observations = far_and_near(recorded)
    expected = original.mean(TensorDict({"policy": observations}, batch_size=[len(observations)]))
    session = onnxruntime.InferenceSession(folder / POLICY, providers=["CPUExecutionProvider"])
    by_onnxruntime = difference(session.run(None, {"observations": observations.numpy()})[0], expected)
    by_torchscript = difference(load_script(folder / SCRIPT, CPU)(observations), expected)
    wrong = [
        f"by {amount:.2g} in {engine}"
        for engine, amount in (("onnxruntime", by_onnxruntime), ("TorchScript", by_torchscript))
        if amount > TOLERANCE
    ]
    if wrong:
        raise NotReproducedError(
            f"the exported policy does not act as the original: on {len(observations)} observations it differs "
            f"{' and '.join(wrong)}, relative to the largest action; allowed: {TOLERANCE:.0e}. Nothing was written."
        )
    replayed = runner.replay(folder)
    if not replayed.agree:
        raise NotReproducedError(f"the runner does not act as the env does: {replayed}. Nothing was written.")
    return Agreement(len(observations), float(observations.abs().max()), by_onnxruntime, by_torchscript, replayed)


def far_and_near(recorded: Tensor) -> Tensor:
    """(n, W) -> ((2 + len(FAR)) n, W): as recorded, farther out, and random numbers of the terms' own spread."""
    noise = torch.randn(recorded.shape, generator=torch.Generator().manual_seed(0))
    return torch.cat([recorded, *(factor * recorded for factor in FAR), noise * recorded.abs().amax(dim=0)])


def check_replaceable(into: Path) -> None:
    """Raises a ConfigError where `into` holds what is no export, or an export that was changed since."""
    if not into.exists():
        return
    known = read_json(into / MANIFEST).get("files")
    names = sorted(path.name for path in into.iterdir()) if into.is_dir() else [into.name]
    for name in names:
        if name in (MANIFEST, "__pycache__") and isinstance(known, dict):
            continue
        if not isinstance(known, dict) or known.get(name) != _sha256(into / name):
            raise ConfigError(
                f"{into / name} was not written by an export, or was changed since. Move it elsewhere: "
                "an export replaces the whole folder."
            )


@contextmanager
def _staged(into: Path) -> Iterator[Path]:
    """A new folder, which takes the place of `into` at the end; of an error nothing remains."""
    staged, old = (into.with_name(f".{into.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        staged.mkdir()
    except OSError as error:
        raise cannot_write(into.parent, error) from None
    try:
        yield staged
        if into.exists():
            into.rename(old)
        try:
            staged.rename(into)
        except OSError:
            if old.exists():
                old.rename(into)
            raise
    finally:
        for left in (staged, old):
            shutil.rmtree(left, ignore_errors=True)


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _as_json(agreement: Agreement) -> dict[str, Any]:
    return agreement._asdict() | {"tolerance": TOLERANCE, "replayed": agreement.replayed._asdict()}


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """torch's exporter warns of packages that it does not need here."""
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
