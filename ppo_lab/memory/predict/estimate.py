"""What a run will hold in memory, and how each figure is known."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from ppo_lab.config import ExperimentConfig
from ppo_lab.errors import ConfigError
from ppo_lab.memory.predict import allocator, calibration, closed_form, simulator
from ppo_lab.memory.predict.calibration import Calibration, Range, env_of
from ppo_lab.memory.predict.closed_form import total_bytes
from ppo_lab.memory.predict.hardware import Hardware
from ppo_lab.memory.predict.host import largest_freed_bytes
from ppo_lab.memory.predict.simulator import SimulatorMemory
from ppo_lab.memory.predict.trace import Trace, trace
from ppo_lab.memory.rows import MIB

Known = Literal["exact", "traced", "simulated", "measured", "derived", "calibrated", "unknown"]
"""exact: closed form. traced: the learner on fake tensors. simulated: that trace through a model of the allocator.

measured: counted in the simulator on a CPU. derived: from the simulator's own formulas for a GPU, not yet confirmed on
one. calibrated: from runs that were measured on such a device. unknown: nobody has measured it.
"""

Verdict = Literal["yes", "not known", "no"]
FITS: dict[Verdict, bool | None] = {"yes": True, "not known": None, "no": False}

FURTHER_SCENE_BYTES = 22 * MIB
"""What a scene beside another takes on a CPU beyond its arrays and tensors: objects of Genesis, holes in the heap.

Resident memory grew by so much more for each of Go2's second to fourth scene of 256 envs, on average (6 to 53 MiB), and
by 9 MiB (6 to 14) for hover's.
"""


@dataclass(frozen=True)
class Row:
    """One component of the memory."""

    name: str
    formula: str
    """Its shape, or how it comes about: "98,304 transitions x 345 B"."""
    bytes: int | None
    """None where unknown."""
    known: Known


@dataclass(frozen=True)
class Span:
    """A figure that is not known to the byte. None where nothing supports a number."""

    low: int
    likely: int | None
    """Without `high`, as on another processor."""
    high: int | None

    @property
    def needed(self) -> int:
        """What must be free: the high figure or, where that is unknown, the low one."""
        return self.low if self.high is None else self.high

    def times(self, count: int) -> Span:
        """Of so many alike."""
        likely, high = (None if size is None else count * size for size in (self.likely, self.high))
        return Span(count * self.low, likely, high)


@dataclass(frozen=True)
class Estimate:
    """The prediction for one experiment on one device. Fields that need a trace are None without one.

    Ranks on a CPU share it: the figures are of all of them, and those of each are in `rank`. On GPUs each rank has a
    card of its own: the figures are of one rank on one card.
    """

    processes: int
    scenes: int
    """Of each rank."""
    transitions: int
    mini_batch_size: int
    rows: tuple[Row, ...]
    """In the order in which an iteration meets them; not disjoint: the peaks come last."""
    rollout_bytes: int
    mini_batch_bytes: int
    parameters: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    saved_activation_bytes: int
    """The closed form of the networks; with a trace, all that is saved for backward, the loss's graph included."""
    rollout_peak_bytes: int | None
    """Requested by tensors, as traced."""
    update_peak_bytes: int | None
    allocated_peak_bytes: int | None
    """Of the allocator's blocks on a GPU, workspaces included; of the tensors on a CPU."""
    reserved_peak_bytes: int | None
    """None on a CPU, whose allocator reserves nothing."""
    simulator_bytes: int | None
    device_bytes: Span
    """The whole run on the device. Without a trace or a count of the simulator, `low` is what is known all the same."""
    largest_freed_bytes: int | None
    """On a CPU the heap's holes go by it; None on a GPU."""
    host_bytes: Span | None
    """Of the whole process on the host; on a CPU, which is the host, `device_bytes`. None where nothing tells."""
    wall_s: Range | None
    """How long the run takes. None where no run of its env was measured on such a device."""
    calibration: str | None
    """The measurements that `device_bytes`, `host_bytes` and `wall_s` go by."""
    notes: tuple[str, ...]
    """Calibrations of this device that are not used, and why."""
    hardware: Hardware
    fits: bool | None
    """By `high`; where `high` is unknown, False if even `low` is too much, or else None."""
    trace: Trace | None
    """Of one rank."""
    rank: Estimate | None = None
    """One of several ranks on a CPU; None where there is one, and on GPUs."""

    @property
    def least_learner_bytes(self) -> int:
        """The part of `device_bytes.low` that is torch's, where there is no trace."""
        return self.device_bytes.low - (self.simulator_bytes or 0)


def estimate(
    cfg: ExperimentConfig, hardware: Hardware, with_trace: bool = True, count_new_envs: bool = True
) -> Estimate:
    """Predicts what `cfg` holds on `hardware`.

    Args:
        cfg: a checked experiment, of any number of ranks.
        hardware: a card, one for each rank; or a CPU for all, where the host's memory is meant.
        with_trace: takes seconds. Without, everything that needs a trace is None, and `device_bytes.low` is the sum of
            what the update holds at once by the closed forms.
        count_new_envs: build an env whose simulator was never counted, to count it, which takes a minute or more.
            Without, what the simulator holds is None for it, and is not in `device_bytes.low`.

    Raises:
        ConfigError: a setting that cannot be traced, or an allocator setting that cannot be simulated; more envs than
            the simulator builds.
        MeasurementError: the env cannot be built to be counted.
    """
    if problem := simulator.too_many_envs(cfg):
        raise ConfigError(problem)
    rank = _of_one_rank(cfg.of_one_rank(), hardware, with_trace, count_new_envs)
    return rank if cfg.processes == 1 else _of_all_ranks(rank, cfg.processes)


def _of_one_rank(cfg: ExperimentConfig, hardware: Hardware, with_trace: bool, count_new_envs: bool) -> Estimate:
    rollout = total_bytes(closed_form.rollout_storage(cfg))
    mini_batches = total_bytes(closed_form.mini_batches(cfg))
    parameters = closed_form.parameters(cfg)
    parameter_count = sum(spec.elements for spec in parameters)
    gradients, beside = total_bytes(closed_form.gradients(cfg)), closed_form.reduced_beside_gradients(cfg)
    optimizer = total_bytes(closed_form.optimizer_state(cfg))
    activations = total_bytes(closed_form.saved_activations(cfg))
    reference = total_bytes(closed_form.reference(cfg))
    counted = simulator.simulator_memory(cfg) or (simulator.measure(cfg) if with_trace and count_new_envs else None)
    simulator_bytes = counted.bytes(cfg.num_envs, hardware) if counted else None
    rows = [
        Row("rollout", f"{cfg.transitions:,} transitions x {rollout // cfg.transitions:,}", rollout, "exact"),
        Row("mini-batches", f"{cfg.transitions:,} x {mini_batches // cfg.transitions:,}", mini_batches, "exact"),
        Row("parameters", f"{parameter_count:,} x 4", total_bytes(parameters), "exact"),
        Row("gradients", f"({parameter_count:,} + {beside}) x 4", gradients, "exact"),
        Row("optimizer state", f"{parameter_count:,} x {optimizer // parameter_count}", optimizer, "exact"),
        Row("saved activations", f"{cfg.mini_batch_size:,} x both networks", activations, "exact"),
        *([Row("reference actor", "of init.kl_coef", reference, "exact")] if reference else []),
        *_env_rows(cfg, hardware, counted),
    ]

    found = trace(cfg, "cuda" if hardware.is_gpu else "cpu") if with_trace else None
    allocated = reserved = None
    if not found:
        learner = rollout + mini_batches + total_bytes(parameters) + gradients + optimizer + activations + reference
        learner += counted.env_bytes(cfg.num_envs) if counted else 0
    else:
        rows += _traced_rows(cfg, found)
        allocated = max(found.rollout_peak_bytes, found.update_peak_bytes)
        if hardware.is_gpu:
            replayed = allocator.replay(
                found.events,
                allocator.settings_of_this_process(),
                allocator.cublas_workspace_bytes(hardware.compute_capability_major, cfg.deterministic),
                found.matmul_starts,
            )
            allocated, reserved = replayed.allocated_peak_bytes, replayed.reserved_peak_bytes
            rows.append(Row("allocated by torch", "blocks, cuBLAS workspaces included", allocated, "simulated"))
            rows.append(Row("reserved by torch", "segments that hold the blocks", reserved, "simulated"))
        learner = reserved or allocated
    known_bytes = learner + (simulator_bytes or 0)
    freed_bytes = largest_freed_bytes(found.events) if found and not hardware.is_gpu else None
    calibrated, notes = calibration.find(hardware.name)
    nearest = calibrated or (None if hardware.is_gpu else calibration.of_another_cpu())
    device = Span(known_bytes, None, None)
    if nearest and found and counted:
        rounding_bytes = counted.rounding_bytes(hardware)
        device = whole_device(cfg, known_bytes, freed_bytes or 0, nearest, calibrated is None, rounding_bytes)
    what = "CUDA context, kernels" if hardware.is_gpu else "Python, torch, the simulator's code"
    overhead = None if device.likely is None else device.likely - known_bytes
    rows.append(Row("overhead", what, overhead, "unknown" if overhead is None else "calibrated"))
    host: Span | None = device
    if hardware.is_gpu:
        host_bytes = calibrated.host_bytes(env_of(cfg), cfg.num_envs) if calibrated else None
        host = Span(*map(round, host_bytes)) if host_bytes else None
    wall_s = calibrated.wall_s(calibration.workload(cfg), cfg.max_iterations) if calibrated else None
    if not calibration.is_of_such_runs(cfg):
        wall_s = None
    return Estimate(
        processes=1,
        scenes=len(cfg.scene_sizes),
        transitions=cfg.transitions,
        mini_batch_size=cfg.mini_batch_size,
        rows=tuple(rows),
        rollout_bytes=rollout,
        mini_batch_bytes=mini_batches,
        parameters=parameter_count,
        parameter_bytes=total_bytes(parameters),
        gradient_bytes=gradients,
        optimizer_bytes=optimizer,
        saved_activation_bytes=found.saved_activation_bytes if found else activations,
        rollout_peak_bytes=found.rollout_peak_bytes if found else None,
        update_peak_bytes=found.update_peak_bytes if found else None,
        allocated_peak_bytes=allocated,
        reserved_peak_bytes=reserved,
        simulator_bytes=simulator_bytes,
        device_bytes=device,
        largest_freed_bytes=freed_bytes,
        host_bytes=host,
        wall_s=wall_s,
        calibration=None if device.likely is None and wall_s is None else str(nearest),
        notes=tuple(notes),
        hardware=hardware,
        fits=FITS[verdict(device, hardware.memory_bytes)],
        trace=found,
    )


def _of_all_ranks(rank: Estimate, processes: int) -> Estimate:
    """What so many ranks like this one hold: together on a CPU; on GPUs each holds the same on a card of its own."""
    if rank.hardware.is_gpu:
        return replace(rank, processes=processes, wall_s=None)
    sums: dict[str, Any] = {
        name: None if value is None else processes * value
        for name, value in vars(rank).items()
        if name.endswith("_bytes") and name not in ("device_bytes", "host_bytes", "largest_freed_bytes")
    }
    rows = tuple(
        Row(row.name, f"{processes} ranks", None if row.bytes is None else processes * row.bytes, row.known)
        for row in rank.rows
    )
    device = rank.device_bytes.times(processes)
    return replace(
        rank,
        **sums,
        processes=processes,
        transitions=processes * rank.transitions,
        mini_batch_size=processes * rank.mini_batch_size,
        rows=rows,
        device_bytes=device,
        host_bytes=rank.host_bytes and rank.host_bytes.times(processes),
        wall_s=None,
        fits=FITS[verdict(device, rank.hardware.memory_bytes)],
        rank=rank,
    )


def whole_device(
    cfg: ExperimentConfig,
    known_bytes: int,
    largest_freed_bytes: int,
    calibration: Calibration,
    carries_over: bool = False,
    rounding_bytes: int = 0,
) -> Span:
    """What is known, and what runs of the same env that were measured on such a device held beyond it.

    Args:
        cfg: the experiment.
        known_bytes: of learner and simulator.
        largest_freed_bytes: of the heap's blocks, on a CPU; see `ppo_lab.memory.predict.host`.
        calibration: has the runs.
        carries_over: they are of another processor, and tell what is likely alone.
        rounding_bytes: what the simulator's arrays may take beyond their sizes; in `high` alone.
    """
    beyond = calibration.overhead_bytes(env_of(cfg), cfg.num_envs, known_bytes, largest_freed_bytes)
    if beyond is None:
        return Span(known_bytes, None, None)
    low, likely, high = map(round, beyond.around(known_bytes))
    if calibration.versions.driver is None:
        further_bytes = (len(cfg.scene_sizes) - 1) * FURTHER_SCENE_BYTES
        likely, high = likely + further_bytes, high + further_bytes
    return Span(known_bytes, likely, None) if carries_over else Span(low, likely, high + rounding_bytes)


def verdict(needs: Span, available_bytes: int) -> Verdict:
    """Whether a run fits: by the high figure or, where that is unknown, by the low one."""
    if needs.needed > available_bytes:
        return "no"
    return "not known" if needs.high is None else "yes"


def need(needs: Span, available_bytes: int) -> str:
    """What a run needs beside what there is: "needs about 1,310 MiB (1,260 to 1,360) of 23,163 MiB"."""
    low, likely, high = (f"{size / MIB:,.0f}" for size in (needs.low, needs.likely or 0, needs.high or 0))
    available_mib = available_bytes / MIB
    if needs.needed > available_bytes:  # or both might be the same rounded number
        available_mib = math.floor(available_mib)
        low, high = (f"{math.ceil(size / MIB):,}" for size in (needs.low, needs.high or 0))
    if needs.likely is None:
        words = f"at least {low} MiB"
    elif needs.high is None:
        words = f"about {likely} MiB (at least {low})"
    else:
        words = f"about {likely} MiB ({low} to {high})"
    return f"needs {words} of {available_mib:,.0f} MiB"


def _env_rows(cfg: ExperimentConfig, hardware: Hardware, counted: SimulatorMemory | None) -> list[Row]:
    if counted is None:
        return [Row("simulator", "never counted for these settings", None, "unknown")]
    n = cfg.num_envs
    scenes = f"{counted.scenes} scenes x " if counted.scenes > 1 else ""
    size, startup_bytes = counted.bytes(n, hardware), simulator.startup_bytes(hardware)
    at_start = f"{startup_bytes:,} at start"
    if not hardware.is_gpu:
        per_env = f"{n:,} envs x {counted.per_env_bytes:,}"
        formula = f"{scenes}{counted.constant_bytes:,} + {per_env}" if size else "no scene"
    elif size == startup_bytes:
        formula = f"no scene; {at_start}"
    else:
        per_env = f"{n:,} envs x {counted.gpu_per_env_bytes:,}"
        formula = f"{scenes}{counted.gpu_constant_bytes:,} + {per_env} + threads + {at_start}"
    rounding_bytes = counted.rounding_bytes(hardware)
    rounding = f"in high alone: a page for each of {counted.gpu_arrays:,} arrays, growth of the driver's pool"
    return [
        Row("simulator", formula, size, "derived" if hardware.is_gpu else "measured"),
        *([Row("simulator's rounding, up to", rounding, rounding_bytes, "derived")] if rounding_bytes else []),
        Row(
            "env's own tensors",
            _env_formula(counted, n),
            counted.env_bytes(n),
            "measured",
        ),
    ]


def _env_formula(counted: SimulatorMemory, num_envs: int) -> str:
    per_env, constant_bytes = f"{num_envs:,} envs x {counted.env_per_env_bytes:,}", counted.env_constant_bytes
    if counted.scenes == 1:
        return f"{constant_bytes:,} + {per_env}"
    of_each = f"{counted.scenes} scenes x {constant_bytes - counted.env_once_bytes:,}"
    return f"{counted.env_once_bytes:,} + {of_each} + {per_env} + {counted.observed_bytes:,} side by side"


def _traced_rows(cfg: ExperimentConfig, found: Trace) -> list[Row]:
    steps, updates = cfg.num_steps_per_env, cfg.algorithm.num_learning_epochs * cfg.algorithm.num_mini_batches
    return [
        Row("saved for backward", "the same, and the loss's graph", found.saved_activation_bytes, "traced"),
        Row("peak of the rollout", f"{steps} steps", found.rollout_peak_bytes, "traced"),
        Row("peak of the update", f"{updates} mini-batches", found.update_peak_bytes, "traced"),
    ]
