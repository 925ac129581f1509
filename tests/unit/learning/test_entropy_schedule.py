"""The update of an iteration has the entropy coefficient of that iteration."""

from collections.abc import Callable

import torch

from ppo_lab.config import ExperimentConfig
from ppo_lab.learning.checkpoint import NoCheckpoints
from ppo_lab.learning.loop import Loop
from ppo_lab.memory.measure.monitor import MemoryMonitor
from ppo_lab.probes.learner import ZeroEnv


def test_each_iteration_has_its_entropy_coefficient_also_after_a_restart(
    experiment: Callable[..., ExperimentConfig],
) -> None:
    schedule = "entropy_schedule={final_coef:0.002,from_iteration:1,to_iteration:3}"
    cfg = experiment("num_envs=4", "num_steps_per_env=4", "network.hidden_dims=[8]", schedule)
    seen = []
    for start in (0, 2):
        loop = Loop(ZeroEnv(cfg), cfg, MemoryMonitor(torch.device("cpu")), NoCheckpoints(), lambda *_: None)
        loop.next_iteration = start
        update = loop.update

        def watched(last_observations, loop=loop, update=update):  # type: ignore[no-untyped-def]
            seen.append((loop.next_iteration, round(loop.alg.entropy_coef, 6)))
            return update(last_observations)

        loop.update = watched
        loop.learn(5 - start)
    assert seen == [
        *zip(range(5), (0.01, 0.01, 0.006, 0.002, 0.002), strict=True),
        *zip(range(2, 5), (0.006, 0.002, 0.002), strict=True),
    ]
