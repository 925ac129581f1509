"""What logging and the memory rows cost, as a share of an iteration: `python benchmarks/logging_cost.py [words]`.

Runs a real training of 30 iterations (512 Go2 envs unless the words say otherwise) with a clock around every call
that only tells: memory rows, episode statistics, TensorBoard, metrics.jsonl, progress. Prints one JSON object.
"""

import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppo_lab.cli.compose import compose
from ppo_lab.envs import make_env
from ppo_lab.learning.checkpoint import Checkpoints
from ppo_lab.learning.loop import Loop
from ppo_lab.machine.devices import resolve_device
from ppo_lab.memory.measure.growth import FlatMemoryWatch
from ppo_lab.memory.measure.monitor import MemoryMonitor
from ppo_lab.runs.config import to_experiment
from ppo_lab.runs.manifest import describe_machine
from ppo_lab.runs.metrics import MetricsWriter
from ppo_lab.training.console import ProgressDisplay

spent_s = 0.0


def clocked(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def timed(*args: Any, **kwargs: Any) -> Any:
        global spent_s
        started_s = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            spent_s += time.perf_counter() - started_s

    return timed


def main() -> None:
    cfg = to_experiment(compose(["experiment=go2_small", "max_iterations=30", "save_interval=1000", *sys.argv[1:]]))
    device = resolve_device(cfg.device)
    env = make_env(cfg.env, cfg.num_envs, device, cfg.seed)
    with tempfile.TemporaryDirectory() as folder, MemoryMonitor(device, cfg.memory.count_tensors) as monitor:
        metrics = MetricsWriter(Path(folder))
        progress, watch = ProgressDisplay(cfg.max_iterations, quiet=False), FlatMemoryWatch()
        ended_s = time.perf_counter()
        iterations_s, logging_s = [], []

        def report(iteration: int, scalars: dict[str, float]) -> None:
            global spent_s
            nonlocal ended_s
            clocked(metrics.write)(iteration, scalars)
            clocked(progress.show)(iteration, scalars)
            clocked(list)(watch.warnings(iteration, scalars))
            iterations_s.append(time.perf_counter() - ended_s)
            logging_s.append(spent_s)
            ended_s, spent_s = time.perf_counter(), 0.0

        loop = Loop(env, cfg, monitor, Checkpoints(Path(folder) / "checkpoints", cfg.save_interval), report)
        monitor.scalars = clocked(monitor.scalars)  # type: ignore[method-assign]
        loop.episodes.add = clocked(loop.episodes.add)  # type: ignore[method-assign]
        loop.episodes.scalars = clocked(loop.episodes.scalars)  # type: ignore[method-assign]
        loop.learn(cfg.max_iterations, init_at_random_ep_len=True)
        metrics.close()
    warm = slice(5, None)  # the first iterations allocate
    shares = [log / whole for log, whole in zip(logging_s[warm], iterations_s[warm], strict=True)]
    print(
        json.dumps(
            {
                "env": cfg.env.name,
                "num_envs": cfg.num_envs,
                "iteration_s": statistics.median(iterations_s[warm]),
                "logging_s": statistics.median(logging_s[warm]),
                "logging_share": statistics.median(shares),
                "machine": describe_machine(device),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
