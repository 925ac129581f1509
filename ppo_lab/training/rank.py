"""What a rank does that is not rank 0, which alone knows the run folder and the console."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict

import torch

from ppo_lab import envs
from ppo_lab.contracts import State
from ppo_lab.errors import ExitCode
from ppo_lab.learning.checkpoint import NoCheckpoints
from ppo_lab.learning.guard import NonFiniteError
from ppo_lab.learning.ranks import TorchRanks, is_loss
from ppo_lab.machine import devices
from ppo_lab.machine.launch import ENV, Position
from ppo_lab.memory.measure.monitor import MemoryMonitor
from ppo_lab.runs.config import from_json
from ppo_lab.training.build import build_loop, obey
from ppo_lab.training.stopping import StopRequest


def follow(position: Position) -> ExitCode:
    """Trains as one of the ranks of a run, by the order that rank 0 sends (`ppo_lab.training.build.orders`)."""
    devices.take(devices.of_rank("auto", position.card))
    if env := os.environ.get(ENV):
        envs.preload(env)  # while rank 0 checks what the run will hold
    ranks = TorchRanks(position, on_gpu=torch.cuda.is_available())
    with StopRequest() as stop:  # the other ranks hear of it at the end of the iteration
        try:
            _train(ranks, ranks.scatter([]), lambda: stop.signal is not None)
        except Exception as error:
            if is_loss(error):  # the one that is gone, or rank 0, says why
                return ExitCode.FAILED
            found = asdict(error.fault) if isinstance(error, NonFiniteError) else None
            evidence = error.evidence if isinstance(error, NonFiniteError) else None
            ranks.report({"message": str(error) or type(error).__name__, "fault": found, "evidence": evidence})
            return ExitCode.FAILED
    ranks.close()
    return ExitCode.DONE


def _train(ranks: TorchRanks, order: State, should_stop: Callable[[], bool]) -> None:
    cfg = from_json(order["cfg"])
    device = devices.resolve_device("cpu" if cfg.device == "cpu" else "auto")  # its card is the only one to be seen
    with MemoryMonitor(device, cfg.memory.count_tensors) as monitor:
        loop = build_loop(cfg, device, monitor, NoCheckpoints(), lambda *_: None, should_stop, ranks)
        obey(loop, cfg, order)
        loop.learn(cfg.max_iterations - order["first_iteration"], init_at_random_ep_len=order["first_iteration"] == 0)
