"""Where a run comes from: enough to repeat it, and to see what differs when it cannot be."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from ppo_lab import envs
from ppo_lab.config import ExperimentConfig
from ppo_lab.machine import commands, devices
from ppo_lab.machine.preflight import cpu_name, version_of
from ppo_lab.runs.folder import RunFolder

if TYPE_CHECKING:
    import torch

REPOSITORY = commands.PACKAGE.parent
MAX_NEW_BYTES = 2**20
"""Of all new files together that a run keeps with its changes."""
PACKAGES = (
    *("ppo-lab", "torch", "genesis-world", "quadrants", "rsl-rl-lib", "tensordict", "hydra-core", "omegaconf"),
    *("tensorboard", "numpy", "rich", "psutil"),
)


AFFECTS_RESULT = ("cpu", "torch_threads", "device", "gpu", "driver", "cuda", "matmul_precision", "tf32_override")
"""Properties of the machine that can change the last bits of a result."""


class Checkout(NamedTuple):
    """The code that runs, as git tells it."""

    commit: str | None
    """None outside of a checkout."""
    diff: bytes
    """What `git apply` makes of the commit: changes, and new text files. Empty where there are none."""
    left_out: list[str]
    """New files that are not text or too large, and so are not in the diff."""

    @property
    def is_dirty(self) -> bool | None:
        return None if self.commit is None else bool(self.diff or self.left_out)


def read_checkout(repository: Path | None = commands.CHECKOUT) -> Checkout:
    """Reads the checkout that this code runs from. None: it was installed, and is in no checkout."""
    if repository is None:
        return Checkout(None, b"", [])
    head = _git(repository, "rev-parse", "HEAD")
    new = _git(repository, "ls-files", "--others", "--exclude-standard", "-z")
    index = _git(repository, "rev-parse", "--path-format=absolute", "--git-path", "index")
    if head is None or new is None or index is None:
        return Checkout(None, b"", [])
    names = [os.fsdecode(name) for name in new.split(b"\0") if name]
    kept = list(_kept(repository, names))
    with tempfile.TemporaryDirectory() as folder:  # an index of our own, in which new files may be named
        ours = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        with suppress(FileNotFoundError):
            shutil.copy(os.fsdecode(index.strip()), ours["GIT_INDEX_FILE"])
        if kept:
            _git(repository, "add", "--intent-to-add", "--", *kept, environment=ours)
        as_patch = ("--binary", "--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/")
        diff = _git(repository, "diff", *as_patch, "HEAD", environment=ours)
    return Checkout(head.strip().decode(), diff or b"", [name for name in names if name not in kept])


def _kept(repository: Path, names: Iterable[str]) -> Iterator[str]:
    """The files that are text, as git sees it, and together not too large."""
    left_bytes = MAX_NEW_BYTES
    for name in names:
        content = (repository / name).read_bytes() if (repository / name).is_file() else b"\0"
        if len(content) <= left_bytes and b"\0" not in content:
            left_bytes -= len(content)
            yield name


def describe_run(
    overrides: list[str],
    cfg: ExperimentConfig,
    device: torch.device,
    folder: Path,
    checkout: Checkout,
    ancestry: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The content of manifest.json; docs/run_folder.md lists the keys.

    Args:
        folder: the run's, as one would type it.
        ancestry: what it began with, see `Ancestor.ancestry`.
    """
    env_package = describe_env_package(cfg.env.name)
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": commands.portable("train", *overrides),
        "overrides": overrides,
        "config": asdict(cfg),
        "ancestry": list(ancestry),
        "repeat": how_to_repeat(overrides, checkout, RunFolder(folder).diff(), env_package),
        "reproduce": commands.portable("train", f"reproduce={folder}"),
        "exact": _exactness(cfg, device),
        "seed": cfg.seed,
        "git": {"commit": checkout.commit, "dirty": checkout.is_dirty, "left_out": checkout.left_out},
        "env_package": env_package,
        "packages": packages(),
        "machine": describe_machine(device, cfg.device),
    }


def packages() -> dict[str, str | None]:
    """The versions that decide a run's numbers."""
    return {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}}


def describe_env_package(env: str) -> dict[str, Any] | None:
    """The installed package that brings the env, and its checkout where it has one; None for an env of our own."""
    origin = envs.registered().get(env)
    if origin is None:
        return None
    package = {"name": origin.package, "version": origin.version, "module": origin.module}
    folder = origin.folder
    top = _git(folder, "rev-parse", "--show-toplevel") if folder and _git(folder, "ls-files") else None
    checkout = read_checkout(Path(os.fsdecode(top.strip()))) if top else Checkout(None, b"", [])
    kept = checkout.diff if len(checkout.diff) <= MAX_NEW_BYTES else b""
    return package | {
        "commit": checkout.commit,
        "dirty": checkout.is_dirty,
        "left_out": checkout.left_out if kept == checkout.diff else [*checkout.left_out, "the changes: too large"],
        "diff": os.fsdecode(kept) or None,
    }


def how_to_repeat(
    overrides: list[str], checkout: Checkout, diff: Path, env_package: dict[str, Any] | None = None
) -> str | None:
    """The command that trains with the very code, for the top of a checkout; None where not all of it was kept.

    The code goes into a folder of its own beside the checkout, which stays as it is. The package that brings the env is
    named in a comment.
    """
    if checkout.left_out or (env_package and env_package["left_out"]):
        return None
    comment = ""
    if env_package:
        comment = f"  # with {env_package['name']} {env_package['version']}"
        comment += f" at commit {env_package['commit']}" if env_package["commit"] else ""
        comment += " and the changes in env_package.diff of manifest.json" if env_package["diff"] else ""
    if checkout.commit is None:
        return commands.portable("train", *overrides) + comment
    code = f"../{REPOSITORY.name}-{checkout.commit[:8]}"
    steps = [shlex.join(["git", "worktree", "add", "--detach", code, checkout.commit])]
    if checkout.diff:
        here = "" if diff.is_absolute() else '"$PWD"/'
        steps.append(f"git -C {shlex.quote(code)} apply {here}{shlex.quote(str(diff))}")
    return " && ".join([*steps, shlex.join(["python", f"{code}/train.py", *overrides])]) + comment


def go_on(original: dict[str, Any], iteration: int, now: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a run that goes on with `iteration`: `original`, with `now`, of `describe_run`, in its list."""
    again = {"iteration": iteration, **now}
    parts = [(0, _device_of(original))]
    for entry in (*original.get("continued", []), again):
        parts = [part for part in parts if part[0] < entry["iteration"]]  # what came after is trained anew
        parts.append((entry["iteration"], _device_of(entry)))
    if len({device.partition(":")[0] for _, device in parts if device}) > 1:
        later = (f"from iteration {first} on {device}" for first, device in parts[1:])
        again["exact"] = f"not claimed: trained on {', '.join([str(parts[0][1]), *later])}"
    return original | {"exact": again["exact"], "continued": [*original.get("continued", []), again]}


def _device_of(manifest: dict[str, Any]) -> str | None:
    return (manifest.get("machine") or {}).get("device")


def differences(then: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """What differs between two manifests of what a result may depend on, as sentences."""
    for group, keys in (("git", ("commit", "dirty")), ("packages", PACKAGES), ("machine", AFFECTS_RESULT)):
        before, after = then.get(group) or {}, now[group]
        for key in keys:
            if before.get(key) != after.get(key):
                yield f"{key} was {before.get(key)} and is {after.get(key)}"
    if then.get("git", {}).get("dirty"):
        yield "the checkout had changes beyond its commit"


def _exactness(cfg: ExperimentConfig, device: torch.device) -> str:
    """What is promised of resuming and repeating the run."""
    if device.type == "cpu":
        return "identical, on the same versions, processor and number of threads"
    if cfg.deterministic:
        return "not claimed: deterministic algorithms are on, but equality on a GPU has not been checked with them"
    return "not claimed: on a GPU only deterministic=true could be exact"


def describe_machine(device: torch.device, asked: str = "auto") -> dict[str, Any]:
    """Processor, memory, and the card with its driver where one is used. `asked`: the device, as the user named it."""
    import torch

    machine = {
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device": asked if ":" in asked else str(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        card = devices.card(asked)
        machine |= {
            "gpu": properties.name,
            "gpu_uuid": card.uuid if card else None,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "driver": devices.driver_version(),
            "matmul_precision": torch.backends.cuda.matmul.fp32_precision,  # "tf32" rounds what is multiplied
            "tf32_override": os.environ.get("NVIDIA_TF32_OVERRIDE"),
        }
    return machine


def _git(repository: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> bytes | None:
    """What git prints; None where it fails, or is not there."""
    command = ["git", "-C", str(repository), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, timeout=30, env=os.environ | (environment or {}))
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None
