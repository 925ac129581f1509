"""The training loop of an experiment, built by every rank alike, and the order that rank 0 sends the others."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable

import torch

from ppo_lab.config import ExperimentConfig, to_json
from ppo_lab.contracts import CheckpointStore, MemoryPhases, Ranks, Report, State
from ppo_lab.envs.scenes import make_scenes
from ppo_lab.learning.loop import ALONE, Loop
from ppo_lab.learning.random_state import seed_everything, stream
from ppo_lab.machine import loading
from ppo_lab.machine.cores import threads_per_rank
from ppo_lab.machine.launch import local_world_size
from ppo_lab.memory.predict.allocator import DETERMINISTIC_WORKSPACES

log = logging.getLogger(__name__)


def build_loop(
    cfg: ExperimentConfig,
    device: torch.device,
    phases: MemoryPhases,
    checkpoints: CheckpointStore,
    report: Report,
    should_stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> Loop:
    """The training loop of this rank, before its first iteration. Its env may start the simulator, once in a process.

    `cfg`: of the whole run.
    """
    if cfg.deterministic:
        be_deterministic()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_per_rank(local_world_size()))
    own, seed = cfg.of_one_rank(), stream(cfg.seed, ranks.rank)
    seed_everything(seed)
    env = make_scenes(own, device, seed)
    log.debug("the env is built")
    loading.end()
    gc.collect()  # what building the scenes left in cycles
    return Loop(env, own, phases, checkpoints, report, should_stop, ranks)


def orders(
    cfg: ExperimentConfig, first_iteration: int, saved: tuple[State, State] | None, ancestor: State | None = None
) -> list[State]:
    """What each rank is to train: the experiment, and the learner and its own state as saved before `first_iteration`.

    `ancestor`: the learner of another run, to begin with where nothing was saved; then there is no state.

    Raises a ValueError where another number of ranks has saved them.
    """
    model, state = saved or (ancestor, {"ranks": [None] * cfg.processes})
    states = state.get("ranks", [state])
    if len(states) != cfg.processes:
        raise ValueError(f"{len(states)} ranks have saved it, and processes={cfg.processes}")
    order = {"cfg": to_json(cfg), "first_iteration": first_iteration, "model": model}
    return [order | {"state": state} for state in states]


def obey(loop: Loop, cfg: ExperimentConfig, order: State) -> None:
    """Puts into `loop` what its rank's order brings. Raises what `Loop.restore` and `Loop.begin_with` raise."""
    if order["state"]:
        loop.restore(order["model"], order["state"])
    elif order["model"]:
        loop.begin_with(order["model"], cfg.init)


def be_deterministic() -> None:
    """Lets torch use algorithms alone that repeat to the bit. To be called before the first matrix product."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", DETERMINISTIC_WORKSPACES)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
