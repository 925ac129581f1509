"""The largest run that a device holds.

A trace has the same events in the same order at every number of envs; only their sizes grow, each along a straight
line. Two small traces therefore give the events at any size to the byte, and a replay what they need. What is found
that way is traced at its own size, and so is the next larger run, before it becomes an answer.

Of several ranks one is traced. They share a CPU, so that its memory holds so many of it; on GPUs each has a card.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count

from ppo_lab.config import ExperimentConfig, check
from ppo_lab.errors import ConfigError
from ppo_lab.memory.predict.allocator import cublas_workspace_bytes, replay, settings_of_this_process
from ppo_lab.memory.predict.calibration import Calibration
from ppo_lab.memory.predict.closed_form import rollout_storage, total_bytes
from ppo_lab.memory.predict.estimate import whole_device
from ppo_lab.memory.predict.hardware import Hardware
from ppo_lab.memory.predict.host import largest_freed_bytes
from ppo_lab.memory.predict.simulator import SimulatorMemory, measure, simulator_memory
from ppo_lab.memory.predict.trace import Allocation, DeviceType, Event, Trace, trace
from ppo_lab.memory.rows import MIB

NUM_MINI_BATCHES = (1, 2, 4, 8, 16, 32)
"""Of the frontier."""
MOST_MINI_BATCHES = 1024
BASE_ENVS = 64
"""About the size of the traces that the others are worked out from."""
WINDOW = 32
"""Candidates tried after the first refusal: what a run needs rises in steps, and now and then falls."""

RESERVED = "reserved memory and simulator"
TENSORS = "tensors and simulator"
JACOBIAN = "the simulator's constraint Jacobian (2^31 elements)"
NOTHING = "nothing: one mini-batch is the whole rollout"


@dataclass(frozen=True)
class DeviceNeed:
    """Bytes that a run takes of its device at its peak: all ranks together on a CPU, one of them on a GPU."""

    reserved_peak_bytes: int
    """By torch's allocator on a GPU; by tensors on a CPU, where nothing is reserved."""
    simulator_bytes: int
    overhead_bytes: int

    @property
    def device_low_bytes(self) -> int:
        """Without the overhead, which only a measurement tells."""
        return self.reserved_peak_bytes + self.simulator_bytes

    @property
    def total_bytes(self) -> int:
        return self.device_low_bytes + self.overhead_bytes


@dataclass(frozen=True)
class LargestRun:
    """The largest run that fits, and the next larger one, which does not. Both were traced at their own size."""

    num_envs: int
    num_mini_batches: int
    need_bytes: int
    memory_bytes: int
    """Of the device."""
    binding: str
    """Why the next larger run does not fit: `RESERVED`, `TENSORS` or `JACOBIAN`; `NOTHING` where there is none."""
    next_num_envs: int | None
    next_num_mini_batches: int | None
    next_need_bytes: int | None


@dataclass(frozen=True)
class Scaling:
    """The events of a trace as straight lines in the number of envs of a rank."""

    num_envs: int
    step: int
    """Numbers of envs that differ from `num_envs` by multiples of this leave whole mini-batches."""
    events: tuple[Event, ...]
    """At `num_envs`."""
    growth_bytes: tuple[int, ...]
    """Of each event, for `step` envs more."""
    matmul_starts: tuple[int, ...]
    """As in `Trace`."""

    def events_at(self, num_envs: int) -> tuple[Event, ...]:
        """Raises a ValueError for a number of envs between the steps."""
        steps, rest = divmod(num_envs - self.num_envs, self.step)
        if rest:
            raise ValueError(
                f"num_envs={num_envs} does not leave whole mini-batches. Allowed: multiples of {self.step}."
            )
        return tuple(
            Allocation(event.block, event.size_bytes + steps * growth_bytes, event.category)
            if isinstance(event, Allocation)
            else event
            for event, growth_bytes in zip(self.events, self.growth_bytes, strict=True)
        )


def scaling(cfg: ExperimentConfig, device_type: DeviceType, scenes: int = 1) -> Scaling:
    """How the events of the trace of one of `cfg`'s ranks grow. `cfg.num_envs` does not matter.

    Args:
        cfg: the experiment.
        device_type: as for `trace`.
        scenes: that the rank's envs are split into.

    Raises:
        ConfigError: a setting that cannot be traced.
    """
    step = _step(cfg)
    num_envs = scenes * step * math.ceil(BASE_ENVS / (scenes * step))
    sizes = (num_envs, num_envs + scenes * step)  # so that all scenes are alike
    runs = [replace(cfg, processes=1, num_envs=n, envs_per_scene=n // scenes) for n in sizes]
    small, large = _traces(runs, device_type)
    growth_bytes = []
    for event, larger in zip(small.events, large.events, strict=True):
        match event, larger:
            case Allocation(), Allocation():
                assert (event.block, event.category) == (larger.block, larger.category)
                growth_bytes.append((larger.size_bytes - event.size_bytes) // scenes)
            case _:
                assert event == larger
                growth_bytes.append(0)
    assert small.matmul_starts == large.matmul_starts
    return Scaling(num_envs, step, small.events, tuple(growth_bytes), small.matmul_starts)


def learner_peak_bytes(
    events: Sequence[Event], matmul_starts: Sequence[int], hardware: Hardware, deterministic: bool = False
) -> int:
    """What learner and env take at their peak: reserved on a GPU, under PYTORCH_ALLOC_CONF; by tensors on a CPU."""
    if hardware.is_gpu:
        workspace_bytes = cublas_workspace_bytes(hardware.compute_capability_major, deterministic)
        return replay(events, settings_of_this_process(), workspace_bytes, matmul_starts).reserved_peak_bytes
    sizes: dict[int, int] = {}
    alive_bytes = peak_bytes = 0
    for event in events:
        if isinstance(event, Allocation):
            sizes[event.block] = event.size_bytes
            alive_bytes += event.size_bytes
            peak_bytes = max(peak_bytes, alive_bytes)
        else:
            alive_bytes -= sizes.pop(event.block)
    return peak_bytes


def largest_num_envs(cfg: ExperimentConfig, hardware: Hardware, calibration: Calibration | None = None) -> LargestRun:
    """The largest num_envs that fits at `cfg`'s num_mini_batches. `cfg.num_envs` does not matter.

    Found by bisection; of the `WINDOW` candidates after the first refusal, the largest that fits after all.

    Raises:
        ConfigError: not even the fewest envs fit, or a setting that cannot be traced.
        MeasurementError: the env was never counted, and cannot be built.
    """
    device = _Device(hardware, cfg, _simulator(cfg), calibration)
    step = cfg.processes * _step(cfg)
    least = next(n for n in count(step, step) if _is_valid(device.run(n)))
    most = hardware.memory_bytes * cfg.num_envs // total_bytes(rollout_storage(cfg))
    most = cfg.processes * max(most, device.simulator.max_num_envs())  # some beyond what can be built
    candidates = range(least, least + most + step, step)

    @functools.cache
    def is_refused(num_envs: int) -> bool:
        return device.why_refused(num_envs, device.memory_at(num_envs)) is not None

    first_refused = bisect_left(candidates, True, key=is_refused)
    window = range(first_refused, min(first_refused + WINDOW, len(candidates)))
    index = max((i for i in window if not is_refused(candidates[i])), default=max(first_refused - 1, 0))
    while not is_refused(candidates[index + 1]):
        index += 1
    return _confirmed(candidates, index, device.run, device)


def smallest_num_mini_batches(
    cfg: ExperimentConfig, hardware: Hardware, calibration: Calibration | None = None
) -> LargestRun:
    """The smallest num_mini_batches that fits `cfg`'s num_envs: a divisor of the transitions, at most 1024.

    Found in growing strides from 1, which is the quickest to trace, and by bisection of the last stride; with one
    epoch, whose need is a lower bound: in later ones fragmentation may reserve a little more.

    Raises:
        ConfigError: none fits, or a setting that cannot be traced.
        MeasurementError: the env was never counted, and cannot be built.
    """
    device = _Device(hardware, cfg, _simulator(cfg), calibration)
    rank = cfg.of_one_rank()
    fixed_bytes = total_bytes(rollout_storage(rank)) + device.simulator.bytes(rank.num_envs, hardware)
    fixed_bytes *= device.ranks_that_share
    if fixed_bytes > hardware.memory_bytes:  # or else the search would go through them all
        raise ConfigError(
            f"num_envs={cfg.num_envs}: rollout and simulator alone need {_mib(fixed_bytes)}, and {hardware.name} has "
            f"{_mib(hardware.memory_bytes)}; mini-batches do not change that. Try fit=num_envs."
        )
    divisors = [m for m in range(1, MOST_MINI_BATCHES + 1) if rank.transitions % m == 0]
    candidates = [m for m in divisors if _is_valid(_with_mini_batches(cfg, m))]

    @functools.cache
    def one_epoch_need(num_mini_batches: int) -> DeviceNeed:
        run = _with_mini_batches(cfg, num_mini_batches)
        return device.traced_needs([replace(run, algorithm=replace(run.algorithm, num_learning_epochs=1))])[0]

    def fits(num_mini_batches: int) -> bool:
        return device.why_refused(cfg.num_envs, one_epoch_need(num_mini_batches)) is None

    last = len(candidates) - 1
    low, high = 0, 0  # of `candidates`; those below `low` do not fit
    while not fits(candidates[high]):
        if high == last or max(cfg.scene_sizes) > device.simulator.max_num_envs():
            raise device.error_for(_with_mini_batches(cfg, candidates[high]), one_epoch_need(candidates[high]))
        low, high = high + 1, min(2 * high + 1, last)
    found = bisect_left(candidates, True, low, high, key=fits)
    found = next(i for i in range(max(found - 2, 0), found + 1) if fits(candidates[i]))
    return _confirmed(candidates[::-1], last - found, functools.partial(_with_mini_batches, cfg), device)


def half_the_envs(cfg: ExperimentConfig) -> int | None:
    """The largest num_envs that is allowed, up to half of `cfg`'s. None where there is none."""
    return next((n for n in range(cfg.num_envs // 2, 0, -1) if _is_valid(_with_envs(cfg, n))), None)


def twice_the_mini_batches(cfg: ExperimentConfig) -> int | None:
    """The smallest num_mini_batches that is allowed, from twice `cfg`'s on. None where there is none."""
    candidates = range(2 * cfg.algorithm.num_mini_batches, MOST_MINI_BATCHES + 1)
    return next((m for m in candidates if _is_valid(_with_mini_batches(cfg, m))), None)


def frontier(
    cfg: ExperimentConfig,
    hardware: Hardware,
    calibration: Calibration | None = None,
    num_mini_batches: Sequence[int] = NUM_MINI_BATCHES,
    show: Callable[[str], None] = lambda _: None,
) -> tuple[LargestRun, ...]:
    """The largest num_envs for each number of mini-batches. Raises as `largest_num_envs` does.

    `show` is called with what is being computed, each time before that takes seconds.
    """
    found = []
    for number, m in enumerate(num_mini_batches, 1):
        show(f"{number} of {len(num_mini_batches)}: the largest num_envs with num_mini_batches={m}")
        found.append(largest_num_envs(_with_mini_batches(cfg, m), hardware, calibration))
    return tuple(found)


def need_table(
    cfg: ExperimentConfig,
    hardware: Hardware,
    num_envs: Sequence[int] = (512, 1024, 2048, 4096, 8192, 16384, 32768),
    num_mini_batches: Sequence[int] = NUM_MINI_BATCHES[:5],
    show: Callable[[str], None] = lambda _: None,
) -> dict[tuple[int, int], int]:
    """(num_envs, num_mini_batches) -> bytes that such a run needs, without the overhead. What cannot be is missing.

    `show` is called with what is being computed, each time before that takes seconds.
    """
    device = _Device(hardware, cfg, _simulator(cfg), calibration=None)
    found = {}
    for number, m in enumerate(num_mini_batches, 1):
        show(f"the map, {number} of {len(num_mini_batches)}: num_mini_batches={m}")
        device = replace(device, cfg=_with_mini_batches(cfg, m), scalings={})
        for n in num_envs:
            if _is_valid(device.run(n)):
                found[n, m] = device.memory_at(n).total_bytes
    return found


@dataclass(frozen=True)
class _Device:
    """A device, and what the runs that are tried on it have in common."""

    hardware: Hardware
    cfg: ExperimentConfig
    """The experiment, but for the sizes that are searched."""
    simulator: SimulatorMemory
    calibration: Calibration | None
    """Runs on such a device, which tell what a process takes beyond learner and simulator. None: that is left out."""
    scalings: dict[int, Scaling] = field(default_factory=dict)
    """By the number of scenes, made when one is asked for."""

    @property
    def type(self) -> DeviceType:
        return "cuda" if self.hardware.is_gpu else "cpu"

    @property
    def ranks_that_share(self) -> int:
        """Ranks on one device."""
        return 1 if self.hardware.is_gpu else self.cfg.processes

    def run(self, num_envs: int) -> ExperimentConfig:
        """The experiment with so many envs: in one scene, where one has them all by envs_per_scene=auto."""
        cfg = self.cfg
        per_scene = num_envs if cfg.envs_per_scene == cfg.num_envs else cfg.envs_per_scene
        return replace(cfg, num_envs=num_envs, envs_per_scene=per_scene)

    def memory_at(self, num_envs: int) -> DeviceNeed:
        """What a run of so many envs takes, worked out from two small traces.

        To the byte where a rank has one scene or two; of more, the peak within a step is that of two.
        """
        rank = self.run(num_envs).of_one_rank()
        scenes = len(rank.scene_sizes)
        traced, real = (replace(self.simulator, scenes=number) for number in (min(scenes, 2), scenes))
        if traced.scenes not in self.scalings:
            self.scalings[traced.scenes] = scaling(self.cfg, self.type, traced.scenes)
        scaled = self.scalings[traced.scenes]
        further_bytes = real.env_bytes(rank.num_envs) - traced.env_bytes(rank.num_envs)
        return self._need(scaled.events_at(rank.num_envs), scaled.matmul_starts, rank, further_bytes)

    def traced_needs(self, runs: Sequence[ExperimentConfig]) -> list[DeviceNeed]:
        """What each takes by a trace of its own."""
        ranks = [run.of_one_rank() for run in runs]
        traces = zip(_traces(ranks, self.type), ranks, strict=True)
        return [self._need(trace.events, trace.matmul_starts, rank) for trace, rank in traces]

    def _need(
        self, events: Sequence[Event], matmul_starts: Sequence[int], rank: ExperimentConfig, further_bytes: int = 0
    ) -> DeviceNeed:
        simulator = replace(self.simulator, scenes=len(rank.scene_sizes))
        peak_bytes = learner_peak_bytes(events, matmul_starts, self.hardware, self.cfg.deterministic) + further_bytes
        simulator_bytes, overhead_bytes = simulator.bytes(rank.num_envs, self.hardware), 0
        if self.calibration is not None:
            known_bytes = peak_bytes + simulator_bytes
            freed_bytes = 0 if self.hardware.is_gpu else largest_freed_bytes(events)
            rounding_bytes = simulator.rounding_bytes(self.hardware)
            whole = whole_device(rank, known_bytes, freed_bytes, self.calibration, rounding_bytes=rounding_bytes)
            overhead_bytes = whole.needed - known_bytes
        sizes = (peak_bytes, simulator_bytes, overhead_bytes)
        return DeviceNeed(*(self.ranks_that_share * size for size in sizes))

    def why_refused(self, num_envs: int, need: DeviceNeed) -> str | None:
        """Why a run does not fit; None if it does."""
        if max(self.run(num_envs).scene_sizes) > self.simulator.max_num_envs():
            return JACOBIAN
        if need.total_bytes > self.hardware.memory_bytes:
            return RESERVED if self.hardware.is_gpu else TENSORS
        return None

    def error_for(self, run: ExperimentConfig, need: DeviceNeed) -> ConfigError:
        """The error for when `run`, the smallest of all, does not fit."""
        smallest = f"num_envs={run.num_envs} algorithm.num_mini_batches={run.algorithm.num_mini_batches}"
        if self.why_refused(run.num_envs, need) == JACOBIAN:
            return ConfigError(f"{smallest} is too many for {JACOBIAN}. Allowed: {self.simulator.max_num_envs()} envs.")
        return ConfigError(
            f"hardware.name={self.hardware.name} has {_mib(self.hardware.memory_bytes)}, and {smallest}, the smallest "
            f"candidate, needs {_mib(need.total_bytes)}. Try other hardware, or a smaller network.hidden_dims."
        )


def _confirmed(
    candidates: Sequence[int], index: int, run: Callable[[int], ExperimentConfig], device: _Device
) -> LargestRun:
    """Traces the candidate at `index` and the next, and moves on until one fits and the next does not."""
    while True:
        runs = [run(candidate) for candidate in candidates[index : index + 2]]
        needs = device.traced_needs(runs)
        reasons = [device.why_refused(run.num_envs, need) for run, need in zip(runs, needs, strict=True)]
        if reasons[0] and index == 0:
            raise device.error_for(runs[0], needs[0])
        if reasons[0]:
            index -= 1
        elif reasons[1:] == [None]:
            index += 1
        else:
            break
    memory_bytes = device.hardware.memory_bytes
    fitting = (runs[0].num_envs, runs[0].algorithm.num_mini_batches, needs[0].total_bytes, memory_bytes)
    if len(runs) == 1:
        return LargestRun(*fitting, NOTHING, None, None, None)
    larger = (runs[1].num_envs, runs[1].algorithm.num_mini_batches, needs[1].total_bytes)
    return LargestRun(*fitting, reasons[1] or NOTHING, *larger)


def _traces(runs: Iterable[ExperimentConfig], device_type: DeviceType) -> list[Trace]:
    """Traces two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(functools.partial(trace, device_type=device_type), runs))


def _simulator(cfg: ExperimentConfig) -> SimulatorMemory:
    return simulator_memory(cfg) or measure(cfg)


def _step(cfg: ExperimentConfig) -> int:
    """The smallest number of envs whose transitions make whole mini-batches."""
    return cfg.algorithm.num_mini_batches // math.gcd(cfg.algorithm.num_mini_batches, cfg.num_steps_per_env)


def _with_envs(cfg: ExperimentConfig, num_envs: int) -> ExperimentConfig:
    return replace(cfg, num_envs=num_envs)


def _with_mini_batches(cfg: ExperimentConfig, num_mini_batches: int) -> ExperimentConfig:
    return replace(cfg, algorithm=replace(cfg.algorithm, num_mini_batches=num_mini_batches))


def _is_valid(cfg: ExperimentConfig) -> bool:
    try:
        check(cfg)
    except ConfigError:
        return False
    return True


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:,.1f} MiB"
