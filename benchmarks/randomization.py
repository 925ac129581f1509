"""What each term of randomization adds to a step of go2, in one run: `python benchmarks/randomization.py [num_envs]`.

Envs without it, with each term of full alone, with light and with full take turns of 20 steps. Prints one JSON object
with the medians over the turns.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout, whatever is installed

import torch

from ppo_lab.cli.compose import compose
from ppo_lab.config import EnvConfig
from ppo_lab.envs import make_env
from ppo_lab.runs.config import to_experiment
from ppo_lab.runs.manifest import describe_machine, packages, read_checkout

TURNS, STEPS = 15, 20


def main(num_envs: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    full = to_experiment(compose(["randomization=full"])).env
    configs = {choice: to_experiment(compose([f"randomization={choice}"])).env for choice in ("none", "light", "full")}
    configs |= {name: only(full, name) for name in full.randomization}
    envs: dict[str, Any] = {name: make_env(cfg, num_envs, torch.device("cpu"), seed=1) for name, cfg in configs.items()}
    actions = torch.zeros(num_envs, 12)
    took_s: dict[str, list[float]] = defaultdict(list)
    with torch.inference_mode():
        for _ in range(TURNS):
            for name, env in envs.items():
                began_s = time.perf_counter()
                for _ in range(STEPS):
                    env.step(actions)
                took_s[name].append((time.perf_counter() - began_s) / STEPS)
    step_ms = {name: 1000 * statistics.median(times[1:]) for name, times in took_s.items()}
    return {
        "env": "go2",
        "num_envs": num_envs,
        "step_ms": step_ms,
        "times_none": {name: value / step_ms["none"] for name, value in step_ms.items()},
        "machine": describe_machine(torch.device("cpu")),
        "packages": packages(),
        "commit": read_checkout().commit,
        "date": datetime.date.today().isoformat(),
    }


def only(cfg: EnvConfig, term: str) -> EnvConfig:
    """`cfg` with that term alone."""
    return dataclasses.replace(cfg, randomization={term: cfg.randomization[term]})


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]) if len(sys.argv) > 1 else 256), indent=2))
