"""Counts what the simulator and an env hold in memory, in a process of its own.

`python -m ppo_lab.probes.simulator SIZE...` reads an experiment as JSON from stdin, builds its env on the CPU with each
number of envs in turn, and prints as its last line the JSON of `count`. The simulator is loaded where the env uses it.
"""

from __future__ import annotations

import gc
import json
import sys
from collections import defaultdict
from typing import Any

import torch

from ppo_lab.config import EnvConfig
from ppo_lab.envs import make_env
from ppo_lab.memory.measure.live_tensors import LiveTensors
from ppo_lab.runs.config import from_json

CPU = torch.device("cpu")
SETTLING_STEPS = 2
"""Steps until the env has every buffer that it keeps."""
TOLD_ONCE = ("gpu_thread_bytes", "gpu_core_bytes", "gpu_arrays", "len_constraints", "n_dofs")


def count(cfg: EnvConfig, sizes: list[int]) -> dict[str, Any]:
    """Bytes held with each number of envs in `sizes`, a list per quantity.

    simulator_bytes: the simulator's arrays, which torch does not see, by kind.
    gpu_simulator_bytes: the same on a GPU, without the scratch of its threads, whose sizes are gpu_thread_bytes and
    gpu_core_bytes (see `simulator_arrays`); gpu_arrays counts these arrays.
    env_bytes: torch tensors alive between steps, the newest observations among them.
    step_peak_bytes: the most alive within `env.step` beyond env_bytes, what it returns included.
    step_returned_bytes: what `env.step` returns beyond env_bytes.
    env_once_bytes: a number alone, of the tensors that are alive when no env is: the simulator keeps them once.

    The actions belong to the caller and are not counted. An env without a scene has no simulator: its bytes are 0.
    """
    by_size: defaultdict[str, list[Any]] = defaultdict(list)
    with LiveTensors(CPU) as live:
        for num_envs in sizes:
            env: Any = make_env(cfg, num_envs, CPU, seed=1)
            actions = 2 * torch.rand(num_envs, len(env.spec.actions)) - 1
            before = env.get_observations()
            with torch.inference_mode():
                for _ in range(SETTLING_STEPS):
                    before = env.step(actions).observations
                gc.collect()  # what the build left in cycles
                resident_bytes = live.current_bytes
                live.reset_peak()
                returned = env.step(actions)  # while the learner still holds the observations before
                del before
            by_size["env_bytes"].append(resident_bytes - actions.nbytes)
            by_size["step_peak_bytes"].append(live.peak_bytes - resident_bytes)
            by_size["step_returned_bytes"].append(live.current_bytes - resident_bytes)

            by_kind, difference_bytes, once = _arrays_of(getattr(env, "_scene", None))
            by_size["simulator_bytes"].append(by_kind)
            by_size["gpu_simulator_bytes"].append(sum(by_kind.values()) + difference_bytes)
            del env, actions, returned
            gc.collect()
        once["env_once_bytes"] = live.current_bytes
    return {"num_envs": sizes, **by_size, **once}


def _arrays_of(scene: Any) -> tuple[dict[str, int], int, dict[str, int]]:
    """Of a gs.Scene, or None where the env has none: bytes by kind, how many more on a GPU, and what is told once."""
    nothing = dict.fromkeys(TOLD_ONCE, 0)
    if scene is None:
        return {}, 0, nothing
    from ppo_lab.probes.simulator_arrays import count_arrays

    by_kind, difference_bytes, once = count_arrays(scene)
    return by_kind, difference_bytes, nothing | once


if __name__ == "__main__":
    try:
        print(json.dumps(count(from_json(sys.stdin.read()).env, [int(size) for size in sys.argv[1:]])))
    except Exception as error:  # one line, for `ppo_lab.memory.predict.simulator`
        sys.exit(f"{type(error).__name__}: {error}")
