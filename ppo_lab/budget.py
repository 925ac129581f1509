"""Whether a run will fit, asked before it starts."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor

from ppo_lab import invocation
from ppo_lab.command_line import OverBudgetError
from ppo_lab.config import ConfigError, ExperimentConfig
from ppo_lab.memory import fit
from ppo_lab.memory.closed_form import gradients, optimizer_state, parameters, rollout_storage, total_bytes
from ppo_lab.memory.estimate import Estimate, estimate
from ppo_lab.memory.hardware import MIB, Hardware, this_machine
from ppo_lab.memory.simulator import too_many_envs

log = logging.getLogger(__name__)


CPU_STEPS_PER_S = {"go2": 7_200, "hover": 46_800}
"""Steps a second of 512 envs on two cores (docs/results). More envs collect no faster on a CPU."""
LONG_S = 900.0


def hint_at_long_run(cfg: ExperimentConfig) -> str | None:
    """What a long run on a CPU takes, and the experiment that is made for one. None where it is short, or unknown."""
    steps_per_s = CPU_STEPS_PER_S.get(cfg.env.name)
    steps = cfg.transitions * cfg.max_iterations
    if steps_per_s is None or steps / steps_per_s < LONG_S or this_machine(cfg.device).is_gpu:
        return None
    small = f"experiment={cfg.env.name}_small"
    minutes = steps / steps_per_s / 60
    return (
        f"no GPU: {steps / 1e6:,.1f} million steps take about {minutes:,.0f} min on two cores of a CPU. "
        f"Made for a CPU: {invocation.train(small)}"
    )


def estimate_in_background(cfg: ExperimentConfig) -> Future[Estimate]:
    """Starts the estimate for this machine, in a process of its own, while torch and the simulator load."""
    executor = ThreadPoolExecutor(max_workers=1)
    future = executor.submit(lambda: estimate(cfg, this_machine(cfg.device), count_new_envs=False))
    executor.shutdown(wait=False)
    return future


def check_budget(
    cfg: ExperimentConfig, estimated: Future[Estimate], free_bytes: int, on_gpu: bool = False
) -> Estimate | None:
    """Says in one line what is predicted and what is free. None where nothing can be predicted.

    Raises:
        OverBudgetError: it will not fit, by the high figure or, where that is unknown, by the low one; unless
            memory.over_budget=warn. Or the simulator builds no so many envs.
    """
    if problem := too_many_envs(cfg):
        raise OverBudgetError(problem)
    try:
        found = estimated.result()
    except (ConfigError, RuntimeError) as error:
        log.info("memory: no prediction: %s", error)
        least = sum(map(total_bytes, (rollout_storage(cfg), parameters(cfg), gradients(cfg), optimizer_state(cfg))))
        if least > free_bytes and cfg.memory.over_budget == "stop":
            raise OverBudgetError(
                f"rollout, parameters, gradients and optimizer need {least / MIB:,.0f} MiB, with "
                f"{free_bytes / MIB:,.0f} MiB free. Try a smaller num_envs, num_steps_per_env or network."
            ) from None
        return None
    if found.hardware.is_gpu != on_gpu:
        log.info("memory: no prediction: there is %s, and torch does not use it", found.hardware.name)
        return None
    if found.device_bytes is None:
        log.info("memory: this env's simulator was never counted; estimate.py counts it once")
        return found
    device = found.device_bytes
    need_bytes = device.needed
    peak = found.reserved_peak_bytes or found.allocated_peak_bytes or 0
    at_least = "at least " if device.high is None else ""
    fits = "fits" if device.high is not None else "fits as far as is known"
    verdict = fits if need_bytes <= free_bytes else "does not fit"
    line = (
        f"memory: {peak / MIB:,.0f} MiB for the learner, {at_least}{need_bytes / MIB:,.0f} MiB in all, "
        f"of {free_bytes / MIB:,.0f} MiB free on {found.hardware.name}: {verdict}"
    )
    if need_bytes <= free_bytes:
        log.info(line)
    elif cfg.memory.over_budget == "warn":
        log.warning(line)
    else:
        raise OverBudgetError(f"{line}. {advice(cfg, found.hardware, free_bytes)}")
    return found


def advice(cfg: ExperimentConfig, hardware: Hardware, free_bytes: int) -> str:
    """What would fit into `free_bytes`, as words for the command line."""
    room = Hardware(hardware.name, free_bytes // MIB, hardware.compute_capability, hardware.multiprocessors)
    tries = []
    for search, setting in (
        (fit.largest_num_envs, "num_envs={0.num_envs}"),
        (fit.smallest_num_mini_batches, "algorithm.num_mini_batches={0.num_mini_batches}"),
    ):
        try:
            tries.append(setting.format(search(cfg, room)))
        except ConfigError as error:
            log.debug("no advice: %s", error)
    tries.append("memory.over_budget=warn to start all the same")
    return f"Try {', or '.join(tries)}."
