"""Whether a run will fit, asked before it starts."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import psutil

from ppo_lab.config import ExperimentConfig, check
from ppo_lab.errors import ConfigError, OverBudgetError
from ppo_lab.machine import commands
from ppo_lab.memory.predict import calibration, hardware, largest
from ppo_lab.memory.predict.driver import has_memory_pools
from ppo_lab.memory.predict.estimate import Estimate, estimate, need, verdict
from ppo_lab.memory.predict.hardware import Hardware, this_machine
from ppo_lab.memory.predict.simulator import FIXED_BLOCK_BYTES, simulator_memory, too_many_envs
from ppo_lab.memory.rows import MIB
from ppo_lab.memory.show.table import as_time

log = logging.getLogger(__name__)


CPU_STEPS_PER_S = {"go2": 7_200, "hover": 46_800}
"""Steps a second of 512 envs on two cores (docs/results). More envs collect no faster on a CPU."""
LONG_S = 900.0


def hint_at_long_run(cfg: ExperimentConfig) -> str | None:
    """What a long run on a CPU takes, and the experiment that is made for one. None where it is short, or unknown."""
    machine = this_machine(cfg.device)
    steps_per_s = CPU_STEPS_PER_S.get(cfg.env.name)
    if steps_per_s is None or machine.is_gpu:
        return None
    calibrated, _ = calibration.find(machine.name)
    wall_s = None
    if calibrated and calibration.is_of_such_runs(cfg):
        wall_s = calibrated.wall_s(calibration.workload(cfg), cfg.max_iterations)
    steps = cfg.transitions * cfg.max_iterations
    likely_s, where = (wall_s.likely, "here") if wall_s else (steps / steps_per_s, "on two cores of a CPU")
    if likely_s < LONG_S:
        return None
    small = f"experiment={cfg.env.name}_small"
    return (
        f"no GPU: {steps / 1e6:,.1f} million steps take about {as_time(likely_s)} {where}. "
        f"Made for a CPU: {commands.train(small)}"
    )


def estimate_in_background(cfg: ExperimentConfig) -> Future[Estimate]:
    """Starts the estimate for this machine, in a process of its own, while torch and the simulator load."""
    executor = ThreadPoolExecutor(max_workers=1)
    future = executor.submit(lambda: estimate(cfg, this_machine(cfg.device), count_new_envs=False))
    executor.shutdown(wait=False)
    return future


def available_bytes(device: str) -> int:
    """What a run of this process may come to: what is free on `device`, and on a CPU what its ranks hold already.

    To be asked before there is a CUDA context, which what a run needs contains.
    """
    is_gpu = this_machine(device).is_gpu
    return hardware.free_bytes(device) + (0 if is_gpu else _held_bytes())


def still_available_bytes(device: str, predicted: Estimate | None, at_start_bytes: int) -> int:
    """What was available at the start of a run that ran out of memory, without what other processes have taken since.

    On a GPU the simulator may keep what it holds.
    """
    held_bytes = (predicted.simulator_bytes or 0) if predicted and predicted.hardware.is_gpu else 0
    return min(at_start_bytes, available_bytes(device) + held_bytes)


def _held_bytes() -> int:
    """By this process and those that it has started."""
    held_bytes = 0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.Error):  # it is gone
            held_bytes += process.memory_info().rss
    return held_bytes


def check_budget(
    cfg: ExperimentConfig, estimated: Future[Estimate], free_bytes: int, on_gpu: bool = False
) -> Estimate | None:
    """Says in one line what is predicted and what is free. None where nothing can be predicted.

    Raises:
        OverBudgetError: it will not fit, by the high figure or, where that is unknown, by the low one; unless
            memory.over_budget=warn. Or the simulator does not build so many envs, or not on such a GPU.
    """
    if problem := too_many_envs(cfg):
        raise OverBudgetError(problem)
    if on_gpu and (problem := _too_large_without_memory_pools(cfg, this_machine(cfg.device))):
        if cfg.memory.over_budget == "stop":
            raise OverBudgetError(problem)
        log.warning(problem)
    try:
        found = estimated.result()
    except (ConfigError, RuntimeError) as error:
        log.info("memory: no prediction: %s", error)
        _check_closed_forms(cfg, free_bytes)
        return None
    if found.hardware.is_gpu != on_gpu:
        uses = "a GPU" if on_gpu else "the CPU"
        log.info("memory: no prediction: it was made for %s, and torch uses %s", found.hardware.name, uses)
        return None
    peak = found.reserved_peak_bytes or found.allocated_peak_bytes or 0
    fits = verdict(found.device_bytes, free_bytes)
    who = f"each of {cfg.processes} ranks" if on_gpu and cfg.processes > 1 else "the run"
    line = (
        f"memory: {peak / MIB:,.0f} MiB for the learner; {who} {need(found.device_bytes, free_bytes)} free on "
        f"{found.hardware.name}; fits: {fits}"
    )
    if found.wall_s:
        low, likely, high = map(as_time, found.wall_s)
        log.info("time: about %s (%s to %s), as calibrated by %s", likely, low, high, found.calibration)
    elif fits == "not known":
        line += f" ({commands.calibrate()} measures this machine)"
    for note in found.notes:
        log.info(note)
    if found.simulator_bytes is None:
        log.info(
            "memory: this env's simulator was never counted; python estimate.py with the same overrides counts it once"
        )
    if fits != "no":
        log.info(line)
    elif cfg.memory.over_budget == "warn":
        log.warning(line)
    else:
        raise OverBudgetError(f"{line}. {advice(cfg, found.hardware, free_bytes)}")
    return found


def _too_large_without_memory_pools(cfg: ExperimentConfig, card: Hardware) -> str | None:
    """Says so where the driver has no memory pools, as on some virtual GPUs: the simulator then keeps to one block."""
    counted = simulator_memory(cfg)
    if not card.is_gpu or counted is None:
        return None
    rank, steps = cfg.of_one_rank(), cfg.num_steps_per_env
    needed_bytes = counted.array_bytes(rank.num_envs, card)
    if needed_bytes <= FIXED_BLOCK_BYTES or has_memory_pools() is not False:
        return None
    whole = (n for n in range(rank.num_envs, 0, -1) if n * steps % cfg.algorithm.num_mini_batches == 0)
    most = next((n for n in whole if counted.array_bytes(n, card) <= FIXED_BLOCK_BYTES), None)
    fewer = f"num_envs={most * cfg.processes}, " if most else ""
    return (
        f"memory: the driver of {card.name} has no memory pools, as on some virtual GPUs, so that the simulator keeps "
        f"to one block of {FIXED_BLOCK_BYTES / MIB:,.0f} MiB; num_envs={cfg.num_envs} needs {needed_bytes / MIB:,.0f} "
        f"MiB of it. Try {fewer}a GPU with memory pools, or memory.over_budget=warn to start all the same."
    )


def _check_closed_forms(cfg: ExperimentConfig, free_bytes: int) -> None:
    """Raises an OverBudgetError where even the closed forms come to more than is free."""
    try:
        least = estimate(cfg, this_machine(cfg.device), with_trace=False).device_bytes
    except ConfigError:  # one of them does not exist for these settings
        return
    if verdict(least, free_bytes) == "no" and cfg.memory.over_budget == "stop":
        raise OverBudgetError(
            f"memory: the run {need(least, free_bytes)} free; fits: no. Try a smaller num_envs, num_steps_per_env "
            "or network, or memory.over_budget=warn to start all the same."
        ) from None


def advice(cfg: ExperimentConfig, card: Hardware, free_bytes: int) -> str:
    """What would fit into `free_bytes`, as overrides for the command line."""
    tries = [*_what_fits(cfg, card, free_bytes), "memory.over_budget=warn to start all the same"]
    return f"Try {', or '.join(tries)}."


def advice_after(cfg: ExperimentConfig, predicted: Estimate | None, available_bytes: int, has_begun: bool) -> str:
    """What to try of a run that ran out of memory, as overrides for the command line.

    What fits into `available_bytes`, or half of the run where it was predicted to fit into that, and did not. Smaller
    mini-batches are no help where it ran out before it had begun.
    """
    is_foreseen = predicted and verdict(predicted.device_bytes, available_bytes) == "no"
    tries = _what_fits(cfg, predicted.hardware, available_bytes) if predicted and is_foreseen else _half(cfg)
    tries = [setting for setting in tries if has_begun or setting.startswith(("num_envs=", "processes="))]
    return f"Try {', or '.join(tries or ['a smaller num_steps_per_env or network'])}."


def _half(cfg: ExperimentConfig) -> list[str]:
    """The settings with which about half as much is held."""
    fewer, more = largest.half_the_envs(cfg), largest.twice_the_mini_batches(cfg)
    return [f"num_envs={fewer}"] * bool(fewer) + [f"algorithm.num_mini_batches={more}"] * bool(more)


def _what_fits(cfg: ExperimentConfig, card: Hardware, free_bytes: int) -> list[str]:
    """The settings with which `cfg` fits into `free_bytes`."""
    available = Hardware(card.name, free_bytes // MIB, card.compute_capability, card.multiprocessors)
    calibrated, _ = calibration.find(card.name)
    tries = []
    for search, setting in (
        (largest.largest_num_envs, "num_envs={0.num_envs}"),
        (largest.smallest_num_mini_batches, "algorithm.num_mini_batches={0.num_mini_batches}"),
    ):
        try:
            tries.append(setting.format(search(cfg, available, calibrated)))
        except (ConfigError, RuntimeError) as error:
            log.debug("no advice: %s", error)
    fewer = None if card.is_gpu else _fewer_processes(cfg, available)
    return [*tries, *([f"processes={fewer}"] if fewer else [])]


def _fewer_processes(cfg: ExperimentConfig, available: Hardware) -> int | None:
    """The largest half, quarter, ... of the ranks with which `cfg` fits; None where none does."""
    processes = cfg.processes // 2
    while processes:
        run = replace(cfg, processes=processes)
        with suppress(ConfigError, RuntimeError):
            check(run)
            if verdict(estimate(run, available, count_new_envs=False).device_bytes, available.memory_bytes) != "no":
                return processes
        processes //= 2
    return None
