"""Starts the Genesis simulator, which a process can do once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import genesis as gs
import torch
from genesis.utils import misc

from ppo_lab.envs.genesis import kernels
from ppo_lab.machine import loading, preflight

log = logging.getLogger(__name__)


def ensure_started(device: torch.device, seed: int, performance_mode: bool) -> None:
    """Starts Genesis unless it runs already. Raises a RuntimeError where it runs on another kind of device."""
    if not gs._initialized:
        log.debug("the simulator is imported")
        loading.end()
        kernels.remove_stale_lock()
        start_simulator(device, seed, performance_mode, torch.are_deterministic_algorithms_enabled())
        log.debug("the simulator has started")
        kernels.tell_when_compiled()
    elif (gs.backend == gs.cpu) != (device.type == "cpu"):
        raise RuntimeError(f"the simulator runs on {gs.device} in this process, which starts it once; got {device}")


def start_simulator(device: torch.device, seed: int, performance_mode: bool, deterministic: bool = False) -> None:
    """Starts Genesis on `device`. Seeds torch, numpy and python, but not the engine.

    The engine, Quadrants, makes its seed part of the names under which it keeps kernels: with each seed a run, and a
    rank, would build them anew, for half a minute. What draws in its kernels (Genesis' force fields, noise of its
    probes) is therefore the same with every seed; none of the envs here has any.

    `deterministic` is Genesis' switch, too. On a GPU it pins one of two constraint solvers that differ in the last
    bits, where Genesis would take the one that is faster at the time; on a CPU there is one. Left to Genesis (None), it
    is on outside performance mode.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    with _processor_known():
        gs.init(
            backend=gs.cuda if on_gpu else gs.cpu,
            performance_mode=performance_mode,
            use_deterministic_algorithms=deterministic if on_gpu else deterministic or None,
            logging_level="error",
        )
    misc.set_random_seed(seed)


@contextmanager
def _processor_known() -> Iterator[None]:
    """Tells Genesis the processor's name, for a banner that nobody sees. It would ask a process of a second's work."""
    ask = misc.cpuinfo.get_cpu_info
    misc.cpuinfo.get_cpu_info = lambda: {"brand_raw": preflight.cpu_name()}
    try:
        yield
    finally:
        misc.cpuinfo.get_cpu_info = ask
