"""Counts the simulator's memory for the shipped envs, and checks the count against the process's resident memory.

`store` counts anew what ppo_lab/memory/simulator.json holds; `growth` writes docs/results/simulator_memory.json:

    python benchmarks/simulator_memory.py store | growth
"""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from ppo_lab.cli.compose import compose
from ppo_lab.config import ExperimentConfig, to_json
from ppo_lab.memory.predict import simulator
from ppo_lab.runs.config import from_json, to_experiment
from ppo_lab.runs.files import write_json, write_text

OPTIONS = {
    "go2": ["name", "performance_mode", "max_collision_pairs", "robot.urdf", "randomization"],
    "go2_backflip": ["name", "performance_mode", "max_collision_pairs", "robot.urdf", "randomization"],
    "go2_walk": ["name", "performance_mode", "max_collision_pairs", "robot.urdf", "randomization"],
    "hover": ["name", "performance_mode", "robot.urdf", "randomization"],
}
"""The settings that change what the simulator holds."""
GROWTH_SIZES = {"go2": [64, 1024, 4096], "hover": [64, 2048, 8192]}
RESULT = Path(__file__).parent.parent / "docs/results/simulator_memory.json"


def main(command: str) -> None:
    match command:
        case "store":
            records = [simulator.record(_experiment(env), OPTIONS[env], simulator.SIZES) for env in OPTIONS]
            write_text(simulator.STORED, json.dumps(records, indent=1) + "\n")
        case "growth":
            write_json(RESULT, _about() | {env: growth(_experiment(env)) for env in OPTIONS})
        case "resident":
            print(resident_bytes(from_json(sys.stdin.read())))
        case _:
            sys.exit(__doc__)


def growth(cfg: ExperimentConfig) -> dict[str, Any]:
    """Resident memory of processes that each hold `cfg`'s env at one size, beside what is counted per env."""
    memory = simulator.simulator_memory(cfg)
    assert memory is not None
    sizes = GROWTH_SIZES[cfg.env.name]
    resident = []
    for cfg.num_envs in sizes:
        command = [sys.executable, __file__, "resident"]
        child = subprocess.run(command, input=to_json(cfg).encode(), stdout=subprocess.PIPE, check=True)
        resident.append(int(child.stdout.splitlines()[-1]))
    counted = {
        "simulator": memory.per_env_bytes,
        "env_tensors": memory.env_per_env_bytes,
        "step_peak": memory.step_peak_per_env_bytes,  # freed, but the process keeps the pages
    }
    grown = (resident[-1] - resident[0]) / (sizes[-1] - sizes[0])
    return {
        "num_envs": sizes,
        "resident_bytes": resident,
        "resident_growth_per_env_bytes": round(grown),
        "counted_per_env_bytes": counted,
        "growth_over_counted": round(grown / sum(counted.values()), 4),
    }


def resident_bytes(cfg: ExperimentConfig) -> int:
    """Builds the env of `cfg` in this process, steps it, and says what the process then holds."""
    import torch

    from ppo_lab.envs import make_env

    cpu = torch.device("cpu")
    env = make_env(cfg.env, cfg.num_envs, cpu, seed=1)
    with torch.inference_mode():
        for _ in range(10):
            env.step(2 * torch.rand(cfg.num_envs, len(env.spec.actions)) - 1)
    return psutil.Process().memory_info().rss


def _experiment(env: str) -> ExperimentConfig:
    return to_experiment(compose([f"env={env}"]))


def _about() -> dict[str, Any]:
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{psutil.cpu_count()} CPU cores, {psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: metadata.version(name) for name in ("genesis-world", "quadrants", "torch")},
    }


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) == 2 else "")
