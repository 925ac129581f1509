"""Where a run comes from: enough to repeat it, and to see what differs when it cannot be."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from collections.abc import Iterator
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from ppo_lab.config import ExperimentConfig
from ppo_lab.preflight import cpu_name

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = (
    "torch genesis-world quadrants rsl-rl-lib tensordict hydra-core omegaconf tensorboard numpy rich psutil".split()
)


MATTERS = ("cpu", "torch_threads", "device", "gpu", "driver", "cuda")
"""Of the machine: what decides the last bits."""


def describe_run(overrides: list[str], cfg: ExperimentConfig, device: torch.device, folder: Path) -> dict[str, Any]:
    """The content of manifest.json; docs/run_folder.md lists the keys. `folder`: the run's, as one would type it."""
    git = describe_git()
    command = shlex.join(["python", "train.py", *overrides])
    restore = [f"git checkout {git['commit']}"] if git["commit"] else []
    if git["dirty"]:
        restore.append(f"git apply {shlex.quote(str(folder / 'git.diff'))}")
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command,
        "overrides": overrides,
        "repeat": " && ".join([*restore, command]),
        "reproduce": shlex.join(["python", "train.py", f"reproduce={folder}"]),
        "exact": _exactness(cfg, device),
        "seed": cfg.seed,
        "git": git,
        "packages": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "machine": describe_machine(device),
    }


def differences(then: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """What differs between two manifests of what a result may depend on, in words."""
    for group, keys in (("git", ("commit", "dirty")), ("packages", PACKAGES), ("machine", MATTERS)):
        before, after = then.get(group) or {}, now[group]
        for key in keys:
            if before.get(key) != after.get(key):
                yield f"{key} was {before.get(key)} and is {after.get(key)}"
    if then.get("git", {}).get("dirty"):
        yield "the checkout had changes beyond its commit"


def _exactness(cfg: ExperimentConfig, device: torch.device) -> str:
    """What is promised of resuming and repeating the run, in words."""
    if device.type == "cpu":
        return "bit for bit, on the same versions, processor and number of threads"
    if cfg.deterministic:
        return "not claimed: deterministic algorithms are on, but equality on a GPU has not been checked yet"
    return "not claimed: on a GPU only deterministic=true could be exact"


def describe_git() -> dict[str, Any]:
    """Commit and dirtiness of the checkout that this code runs from; nulls outside of one."""
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def git_diff() -> str:
    """What the checkout has beyond its commit, new files included by name alone."""
    changes, status = _git("diff", "HEAD"), _git("status", "--porcelain")
    new = [line for line in (status or "").splitlines() if line.startswith("??")]
    return "\n".join([*(f"# {line}" for line in new), changes or ""]) + "\n"


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, memory, and the accelerator with its driver where one is used."""
    machine = {
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device": str(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "driver": _driver_version(),
        }
    return machine


def _git(*words: str) -> str | None:
    try:
        answer = subprocess.run(["git", "-C", str(REPOSITORY), *words], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.rstrip() if answer.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _driver_version() -> str | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml.nvmlSystemGetDriverVersion()
    except Exception:  # no library or no driver that answers
        return None
