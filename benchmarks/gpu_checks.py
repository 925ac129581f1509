"""The parts of benchmarks/gpu.py: what a GPU is asked, and what the models expect it to answer.

A part yields rows as it finds them, so that what comes before a failure is kept. docs/results/gpu_h200.json has the
answers of an H200.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import io
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.stock import stock_runner
from ppo_lab import envs
from ppo_lab.cli.compose import compose
from ppo_lab.config import ExperimentConfig, flat
from ppo_lab.machine import devices, preflight
from ppo_lab.memory.measure.measured import highest_mib
from ppo_lab.memory.predict import allocator
from ppo_lab.memory.predict.estimate import estimate
from ppo_lab.memory.predict.hardware import Hardware, this_machine
from ppo_lab.memory.predict.simulator import PAGE_BYTES, simulator_memory, startup_bytes
from ppo_lab.memory.predict.trace import Allocation, trace
from ppo_lab.memory.rows import MIB
from ppo_lab.runs.config import to_experiment
from ppo_lab.runs.files import from_json
from ppo_lab.runs.record import read_metrics

if TYPE_CHECKING:
    import torch

    from ppo_lab.contracts import Env


REPOSITORY = Path(__file__).resolve().parent.parent

Span = tuple[float, float]
"""At least, at most."""
MB = 10**6

# What no model gives, and what the models leave out.
CONTEXT: Span = (450 * MIB, 650 * MIB)  # a CUDA context with torch's kernels, by reports of cards of this size
START = 36 * MB  # beyond random states and scratch: pages of small arrays, the driver pool's granularity
KERNELS: Span = (0.1e9, 0.9e9)  # the stack of the hungriest kernel for every thread of the card, and its code
POOL_GRANULARITY = 32 * MIB
ALLOCATED, RESERVED = 2 * MIB, 20 * MIB  # 1 MiB of torch 2.11's cuBLASLt, reductions, casts; one large segment
POOL_SHARE = 1.02  # work lists of 1 kB an env are not counted: 0.6 to 1.5 % of the pool on an H200
OUR_READS = 9  # of an iteration's end: guard 1, episodes 6, env.check 1, deviation 1 (ppo_lab/learning)
READS_OF_UPDATE: Span = (1, 4)  # losses and learning rate come out once; the rate goes in; torch.randperm may read
SUBSTEPS_OF_A_CHECK = 10  # after so many, Genesis reads its error flags (genesis/engine/simulator.py)
H100_TIMES: dict[str, Span] = {  # worked out from FLOPs and kernel launches for Go2 at 4096 x 24; a guess
    "Perf/collection_time": (0.5, 1.0),
    "Perf/learning_time": (0.08, 0.15),
    "Perf/total_fps": (85_000, 170_000),
}
UPDATES = 5  # of each kind that are timed
LOSS_TOLERANCE = 0.02  # relative: bfloat16 rounds to 3 digits, and a mini-batch's errors carry over to the next
RANKS_SHARE: Span = (0.8, 1.1)  # a guess: 1.5 MB of gradients a mini-batch is little for NVLink or PCIe
POOL_RESERVED, POOL_USED, BLOCKS_PER_MULTIPROCESSOR = 5, 7, 106  # cuda.h: CU_MEMPOOL_ATTR_..., CU_DEVICE_ATTRIBUTE_...


class Row(NamedTuple):
    """One check."""

    check: str
    expected: Span | str | None
    """None: nothing is expected, the figure is to be known."""
    measured: float | str
    unit: str = ""
    """B: bytes."""
    if_not: str = ""
    """What is wrong where it is not as expected."""

    @property
    def agrees(self) -> bool | None:
        if self.expected is None:
            return None
        if isinstance(self.expected, str):
            return self.measured == self.expected
        return not isinstance(self.measured, str) and self.expected[0] <= self.measured <= self.expected[1]


class Part(NamedTuple):
    """`check` takes the device, "cuda" or "cpu"; its docstring's first line says what it is."""

    check: Callable[[str], Iterable[Row]]
    limit_s: float
    needs_gpu: bool = False
    environment: dict[str, str] = {}

    @property
    def what(self) -> str:
        function = self.check.func if isinstance(self.check, partial) else self.check
        arguments = " ".join(map(str, self.check.args)) if isinstance(self.check, partial) else ""
        return " ".join([(function.__doc__ or "").partition("\n")[0], arguments]).strip()


# The card, as CUDA tells it


def card(device: str) -> Hardware:
    """The GPU as torch sees it, since NVML may be missing; or this machine's CPU."""
    if device == "cpu":
        return this_machine("cpu")
    import torch

    found = torch.cuda.get_device_properties(0)
    capability = f"{found.major}.{found.minor}"
    return Hardware(found.name, found.total_memory // MIB, capability, found.multi_processor_count)


def used_bytes() -> int:
    """Of the card, whoever uses it."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return total - free


def outside_pool_bytes() -> int:
    """Used by neither the driver's pool, where the simulator's arrays are, nor torch."""
    import torch

    return used_bytes() - pool_bytes(POOL_RESERVED) - torch.cuda.memory_reserved()


def pool_bytes(attribute: int) -> int:
    """Of the device's default memory pool in this process."""
    cuda, device, pool, value = _driver(), ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    _succeed(cuda.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    _succeed(cuda.cuDeviceGetDefaultMemPool(ctypes.byref(pool), device), "cuDeviceGetDefaultMemPool")
    _succeed(cuda.cuMemPoolGetAttribute(pool, attribute, ctypes.byref(value)), "cuMemPoolGetAttribute")
    return value.value


def blocks_per_multiprocessor() -> int:
    cuda, device, value = _driver(), ctypes.c_int(), ctypes.c_int()
    _succeed(cuda.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    _succeed(cuda.cuDeviceGetAttribute(ctypes.byref(value), BLOCKS_PER_MULTIPROCESSOR, device), "cuDeviceGetAttribute")
    return value.value


def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _succeed(code: int, call: str) -> None:
    if code:
        raise RuntimeError(f"{call} returned CUDA error {code}")


# What the models expect of it


def experiment(*overrides: str) -> ExperimentConfig:
    return to_experiment(compose(list(overrides)))


def size(device: str) -> tuple[str, ...]:
    """Overrides that make an experiment tiny on a CPU."""
    return ("num_envs=16", "num_steps_per_env=8") if device == "cpu" else ()


def simulator_bytes(cfg: ExperimentConfig, hardware: Hardware) -> tuple[int, int]:
    """The simulator's arrays on the card, and what quadrants takes when it starts, for random numbers above all."""
    counted = simulator_memory(cfg)
    assert counted
    return counted.array_bytes(cfg.num_envs, hardware), startup_bytes(hardware)


def pool_span(cfg: ExperimentConfig, hardware: Hardware) -> Span:
    arrays, _ = simulator_bytes(cfg, hardware)
    counted = simulator_memory(cfg)
    assert counted
    return arrays, POOL_SHARE * arrays + counted.gpu_arrays * PAGE_BYTES


def workspace_bytes(hardware: Hardware) -> int:
    return allocator.cublas_workspace_bytes(hardware.compute_capability_major)


def memory_spans(cfg: ExperimentConfig, hardware: Hardware) -> dict[str, Span]:
    """The highest of each memory row, by its name without "Memory/" and "_mib", in bytes."""
    found = estimate(cfg, hardware, count_new_envs=False)
    assert found.trace
    if not hardware.is_gpu:
        exact = {
            "rollout_peak": found.rollout_peak_bytes,
            "update_peak": found.update_peak_bytes,
            "resident": found.trace.resident_bytes,
        }
        return {name: (size, size) for name, size in exact.items() if size is not None}
    replayed = allocator.replay(
        found.trace.events,
        allocator.settings_of_this_process(),
        workspace_bytes(hardware),
        found.trace.matmul_starts,
    )
    allocated = {
        "rollout_peak": replayed.allocated_peak_bytes_within(found.trace.rollout),
        "update_peak": replayed.allocated_peak_bytes_within(found.trace.update),
        "resident": replayed.allocated[-1],
    }
    whole = found.device_bytes
    low, high = whole.low, whole.high
    if high is None:  # no finished run on such a card
        low, high = low + int(CONTEXT[0] + KERNELS[0]), low + int(CONTEXT[1] + START + KERNELS[1])
    spans: dict[str, Span] = {name: (size - ALLOCATED, size + ALLOCATED) for name, size in allocated.items()}
    reserved = found.reserved_peak_bytes or 0
    return spans | {"reserved": (reserved - RESERVED, reserved + RESERVED), "process": (low, high)}


# The parts


def context(device: str) -> Iterator[Row]:
    """The card's memory, and the CUDA context"""
    import torch

    torch.zeros(1, device=device)
    free, total = torch.cuda.mem_get_info()
    named = this_machine("cuda")
    if named.is_gpu:
        span = (named.memory_bytes - MIB, named.memory_bytes + MIB)
        yield Row("memory that CUDA gives", span, total, "B", "the card's capacity (memory.hardware, conf/hardware)")
    own = total - free - torch.cuda.memory_reserved()
    yield Row("used after torch.zeros(1)", CONTEXT, own, "B", "the context, or another process uses the card")


def workspaces(device: str) -> Iterator[Row]:
    """cuBLAS workspaces: a layer forward, backward, and both again"""
    import torch

    expected = workspace_bytes(card(device))
    layer, inputs = torch.nn.Linear(512, 512, device=device), torch.randn(1024, 512, device=device)
    before = torch.cuda.memory_allocated()
    outputs = layer(inputs)
    forward = torch.cuda.memory_allocated() - before - outputs.nbytes
    if_not = "allocator.cublas_workspace_bytes; 1 MiB more: cuBLASLt has one of its own"
    yield Row("forward, beyond tensors", (expected, expected), forward, "B", if_not)
    outputs.sum().backward()
    del outputs
    gradients = sum(parameter.nbytes for parameter in layer.parameters())
    both = torch.cuda.memory_allocated() - before - gradients
    yield Row("backward, beyond that", (expected, expected), both - forward, "B", if_not)
    layer.zero_grad()
    layer(inputs).sum().backward()
    again = torch.cuda.memory_allocated() - before - gradients - both
    yield Row("both again, beyond that", (0, 0), again, "B", "workspaces are taken once for each thread (tracer)")


def caching_allocator(device: str) -> Iterator[Row]:
    """The allocator's model: a trace's events as torch.empty, without a matrix product"""
    import torch

    events = trace(experiment("env=go2"), "cuda").events
    expected = allocator.replay(events, allocator.settings_of_this_process())
    blocks: dict[int, Any] = {}
    agreed = None
    for number, event in enumerate(events):
        match event:
            case Allocation(block, size_bytes):
                if size_bytes:
                    blocks[block] = torch.empty(size_bytes, dtype=torch.uint8, device=device)
            case _:
                blocks.pop(event.block, None)
        counters = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        if agreed is None and counters != (expected.allocated[number + 1], expected.reserved[number + 1]):
            agreed = number
    if_not = "the allocator's model alone (memory.predict.allocator)"
    allocated, reserved = expected.allocated_peak_bytes, expected.reserved_peak_bytes
    yield Row("peak allocated", (allocated, allocated), torch.cuda.max_memory_allocated(), "B", if_not)
    yield Row("peak reserved", (reserved, reserved), torch.cuda.max_memory_reserved(), "B", if_not)
    alike = len(events) if agreed is None else agreed
    yield Row("events up to the first difference", (len(events), len(events)), alike, "", if_not)


def simulator(device: str) -> Iterator[Row]:
    """The simulator: its start, 64 Go2 envs (which compiles the kernels), the first step"""
    import torch

    from ppo_lab.envs import make_env
    from ppo_lab.envs.genesis.start import ensure_started

    cfg, hardware, where = experiment("env=go2", "num_envs=64"), card(device), devices.resolve_device(device)
    _, states = simulator_bytes(cfg, hardware)
    blocks, found = (hardware.blocks_per_multiprocessor,) * 2, blocks_per_multiprocessor()
    yield Row("blocks of a multiprocessor", blocks, found, "", "memory.hardware: BLOCKS_PER_MULTIPROCESSOR")
    torch.zeros(1, device=where)
    context_bytes = used_bytes()
    ensure_started(where, seed=1, performance_mode=cfg.env.performance_mode)
    started_bytes = used_bytes()
    grown = started_bytes - context_bytes
    yield Row("gs.init takes", (states, states + START), grown, "B", "quadrants' random states (memory.simulator)")
    started_s, reserved = time.perf_counter(), torch.cuda.memory_reserved()
    env = make_env(cfg.env, cfg.num_envs, where, seed=1)
    torch.cuda.synchronize()
    yield Row("building takes", None, time.perf_counter() - started_s, "s")
    pool, pool_used = pool_bytes(POOL_RESERVED), pool_bytes(POOL_USED)
    if_not = "the simulator's constants (memory/simulator.json); over 1 GiB more: quadrants' fixed block"
    yield Row("the pool's bytes in use", pool_span(cfg, hardware), pool_used, "B", if_not)
    yield Row("reserved beyond", (0, POOL_GRANULARITY), pool - pool_used, "B", "the driver pool's granularity")
    built_bytes = outside_pool_bytes()
    stack = built_bytes - started_bytes + reserved
    if_not = "the kernels' code and stack, which no model has: note it"
    yield Row("building, outside the pool", KERNELS, stack, "B", if_not)
    with torch.inference_mode():
        env.step(torch.zeros(cfg.num_envs, len(env.spec.actions), device=where))
    torch.cuda.synchronize()
    yield Row("first step, outside the pool", None, outside_pool_bytes() - built_bytes, "B")
    threads = hardware.multiprocessors * torch.cuda.get_device_properties(0).max_threads_per_multi_processor
    yield Row("that is, of each thread", None, stack / threads / 1024, "KiB")


def memory(overrides: str, device: str) -> Iterator[Row]:
    """Memory of six iterations, and their times:"""
    cfg, hardware = experiment(*overrides.split(), *size(device)), card(device)
    estimating = ThreadPoolExecutor().submit(memory_spans, cfg, hardware)
    rows = train_here(cfg, device, iterations=3 if device == "cpu" else 6)
    expected = estimating.result()
    measured = {tag.removeprefix("Memory/").removesuffix("_mib"): mib * MIB for tag, mib in highest_mib(rows).items()}
    measured["process"] = measured.get("process_device", measured.get("device_used", 0.0))
    wrong = {
        "rollout_peak": "the env's tensors (probes.learner.ZeroEnv)",
        "update_peak": "the trace (probes.learner)",
        "resident": "the trace, or cuBLAS workspaces",
        "reserved": "the allocator's model, or where workspaces are placed (memory.predict.allocator)",
        "process": "simulator, context, stack, or what other processes hold",
    }
    for name, span in expected.items():
        yield Row(name, span, measured[name], "B", wrong[name])
    if hardware.is_gpu:
        if_not = "the simulator's line in num_envs (memory/simulator.json)"
        yield Row("the pool's bytes in use", pool_span(cfg, hardware), pool_bytes(POOL_USED), "B", if_not)
    guessed = H100_TIMES if "H100" in hardware.name and overrides == "env=go2 num_envs=4096" else {}
    for tag, unit in {"Perf/collection_time": "s", "Perf/learning_time": "s", "Perf/total_fps": "1/s"}.items():
        median = statistics.median(row[tag] for row in rows[2:])
        yield Row(tag, guessed.get(tag), median, unit, "a guess from FLOPs and launches: no model")


def train_here(cfg: ExperimentConfig, device: str, iterations: int) -> list[dict[str, float]]:
    """The rows of training in this process, with no folder."""
    from ppo_lab.learning.checkpoint import NoCheckpoints
    from ppo_lab.memory.measure.monitor import MemoryMonitor
    from ppo_lab.training.build import build_loop

    where, rows = devices.resolve_device(device), list[dict[str, float]]()
    with MemoryMonitor(where, count_tensors=device == "cpu") as monitor:
        report = lambda _, scalars: rows.append(scalars)  # noqa: E731
        build_loop(cfg, where, monitor, NoCheckpoints(), report).learn(iterations, True)
    return rows


class SyncCounter:
    """Stands in for the memory monitor: notes how many of `caught` each phase adds."""

    def __init__(self, caught: list[warnings.WarningMessage]) -> None:
        self.caught = caught
        self.of: dict[str, list[warnings.WarningMessage]] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        before = len(self.caught)
        yield
        self.of[name] = [found for found in self.caught[before:] if "synchronizing" in str(found.message)]

    def scalars(self) -> dict[str, float]:
        return {}


def syncs(device: str) -> Iterator[Row]:
    """How often the host waits for the GPU in an iteration, as far as torch knows"""
    import torch

    from ppo_lab.learning.checkpoint import NoCheckpoints
    from ppo_lab.training.build import build_loop

    cfg, where = experiment("env=go2", "num_envs=64"), devices.resolve_device(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        counter = SyncCounter(caught)
        loop = build_loop(cfg, where, counter, NoCheckpoints(), lambda *_: None)
        loop.learn(2, init_at_random_ep_len=True)
        caught.clear()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with counter.phase("iteration"):  # not the last of a run, which is saved
                loop.iterate(cfg.num_steps_per_env, loop.update)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    steps = cfg.num_steps_per_env
    checks = -(-steps * cfg.env.substeps // SUBSTEPS_OF_A_CHECK)
    rollout, update, whole = (len(counter.of[name]) for name in ("rollout", "update", "iteration"))
    yield Row("rollout", (0, checks), rollout, "", "a read of the host in an env or in ppo_lab/learning/rollout.py")
    yield Row("update", READS_OF_UPDATE, update, "", "a read of the host in ppo_lab/learning/update.py")
    yield Row("the rest", (OUR_READS, OUR_READS), whole - rollout - update, "", "our own reads at an iteration's end")
    places = Counter(f"{Path(found.filename).name}:{found.lineno}" for found in counter.of["iteration"])
    for place, count in places.most_common(10):
        yield Row(f"at {place}", None, count)


def repeat(device: str) -> Iterator[Row]:
    """deterministic=true: the same seed twice, and stopped after 3 iterations and resumed, against 6 straight"""
    from ppo_lab.training.reproduction import compare

    with tempfile.TemporaryDirectory() as folder:
        runs = {name: Path(folder) / name for name in ("straight", "again", "stopped")}
        iterations = {"straight": 6, "again": 6, "stopped": 3}
        started = [
            start_training(
                *(f"max_iterations={iterations[name]}", f"device={device}", f"hydra.run.dir={run}"),
                *("deterministic=true", *size(device)),
            )
            for name, run in runs.items()
        ]
        for process in started:
            finish(process)
        twice = compare(runs["straight"], runs["again"])
        if_not = "kernels that do not repeat"
        yield Row("seed twice", "equal", "equal" if twice.equal else str(twice), "", if_not)
        finish(start_training(f"resume={runs['stopped']}", "max_iterations=6"))
        resumed = compare(runs["straight"], runs["stopped"])
        all_of_it = resumed.equal and resumed.iterations == 6
        if_not = "what a checkpoint lacks (see part state), where the seed twice is equal"
        yield Row("stopped and resumed", "equal", "equal" if all_of_it else str(resumed), "", if_not)


def start_training(*overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "train.py", *overrides, "quiet=true", "memory.over_budget=warn"]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(f"train.py ended with exit code {process.returncode}: {said.strip()[-500:]}")


def state(device: str) -> Iterator[Row]:
    """deterministic=true: from a restored state the coming steps are the same bits (tests/system/test_state.py)"""
    from ppo_lab.envs import make_env
    from ppo_lab.envs.genesis.start import ensure_started
    from ppo_lab.training.build import be_deterministic
    from tests.system.test_state import N

    where = devices.resolve_device(device)
    be_deterministic()
    ensure_started(where, seed=1, performance_mode=False)
    for name in envs.names():
        env = make_env(experiment(f"env={name}", "env.episode_length_s=1.0").env, N, where, seed=1)
        walked = walk(env, where)
        found = first_difference(env, where, *walked, is_poisoned=False)
        yield Row(name, "equal", found, "", "kernels that do not repeat, or what the state lacks")
        found = first_difference(env, where, *walked, is_poisoned=True)
        if_not = "an array for envs.genesis.state.CARRIED_OVER, where the row above is equal"
        yield Row(f"{name}, what is left out NaN", "equal", found, "", if_not)


def walk(env: Env, where: torch.device) -> tuple[dict[int, bytes], torch.Tensor, list[list[torch.Tensor]]]:
    """Saved states by the step that they are of, the actions of all steps, and what the steps returned."""
    import torch

    from ppo_lab.learning.random_state import random_state
    from tests.system.test_state import EVERY, STEPS, N, step

    with torch.inference_mode():
        actions = torch.randn(STEPS, N, len(env.spec.actions), generator=torch.Generator().manual_seed(0)).to(where)
        states, returned = dict[int, bytes](), []
        for now in range(STEPS):
            if now % EVERY == EVERY - 1:
                buffer = io.BytesIO()
                torch.save((env.state(), random_state(where)), buffer)
                states[now] = buffer.getvalue()
            returned.append(step(env, actions[now]))
    return states, actions, returned


def first_difference(
    env: Env,
    where: torch.device,
    states: dict[int, bytes],
    actions: torch.Tensor,
    returned: list[list[torch.Tensor]],
    is_poisoned: bool,
) -> str:
    """Where the steps from restored states first differ, or "equal". `is_poisoned`: what a state leaves out was NaN."""
    import torch

    from ppo_lab.learning.random_state import set_random_state
    from tests.system.test_state import AHEAD, poison, step

    with torch.inference_mode():
        for start in (104, 14, 134, 59):  # back and forth
            if is_poisoned:
                poison(env)
            saved, random = torch.load(io.BytesIO(states[start]), weights_only=True)
            env.restore(saved)
            set_random_state(random, where)
            for now in range(start, start + AHEAD):
                for output, (there, here) in enumerate(zip(returned[now], step(env, actions[now]), strict=True)):
                    if not torch.equal(there, here):
                        return f"differs {now - start} steps after step {start}, in tensor {output} of the step"
    return "equal"


def speed(device: str) -> Iterator[Row]:
    """An iteration of our loop and of rsl_rl's OnPolicyRunner, in turn on one env, both with TensorBoard"""
    from ppo_lab.learning.checkpoint import NoCheckpoints
    from ppo_lab.memory.measure.monitor import MemoryMonitor
    from ppo_lab.runs.metrics import MetricsWriter
    from ppo_lab.training.build import build_loop

    cfg, where = experiment("env=go2", "save_interval=1000000", *size(device)), devices.resolve_device(device)
    with tempfile.TemporaryDirectory() as folder, MemoryMonitor(where) as monitor:
        metrics = MetricsWriter(Path(folder))
        ended_s: dict[str, list[float]] = {"ours": [], "rsl_rl's": []}

        def clocked(name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
            call(*args, **kwargs)
            ended_s[name].append(time.perf_counter())

        report = partial(clocked, "ours", metrics.write)
        ours = build_loop(cfg, where, monitor, NoCheckpoints(), report)
        stock = stock_runner(cfg, ours.env, f"{folder}/stock")
        stock.logger.log = partial(clocked, "rsl_rl's", stock.logger.log)
        took_s: dict[str, list[float]] = {"ours": [], "rsl_rl's": []}
        for _ in range(2):
            for name, learn in (("ours", ours.learn), ("rsl_rl's", stock.learn)):
                ended_s[name].clear()
                learn(7, True)
                took_s[name] += [after - before for before, after in itertools.pairwise(ended_s[name][1:])]
        metrics.close()
    medians = {name: statistics.median(times) for name, times in took_s.items()}
    for name, median in medians.items():
        yield Row(f"an iteration of {name}", None, median, "s")
    at_most: Span = (0, 1.05)  # that ours costs nothing is a claim, not a model; 5 % is noise
    yield Row("ours over rsl_rl's", at_most, medians["ours"] / medians["rsl_rl's"], "", "our loop, guard or rows")


def update(device: str) -> Iterator[Row]:
    """An update of ours and of rsl_rl's, in turn, from one rollout and the same weights: seconds and losses"""
    import torch

    from ppo_lab.learning.checkpoint import NoCheckpoints
    from ppo_lab.memory.measure.monitor import MemoryMonitor
    from ppo_lab.training.build import build_loop

    where = devices.resolve_device(device)
    synchronize: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    for precision in ("false", "true"):
        overrides = ("env=go2", "processes=1", f"algorithm.use_mixed_precision={precision}", *size(device))
        loop = build_loop(experiment(*overrides), where, MemoryMonitor(where), NoCheckpoints(), lambda *_: None)
        loop.learn(1, init_at_random_ep_len=True)
        alg, last, began = loop.alg, loop.env.get_observations(), copy.deepcopy(loop.model())

        def of_rsl_rl(alg: Any = alg, last: Any = last) -> dict[str, float]:
            with torch.no_grad():  # not inference_mode, as its runner has it: ours goes on with the same storage
                alg.compute_returns(last)
            return alg.update()

        took_s: dict[str, list[float]] = {"ours": [], "rsl_rl's": []}
        losses = dict[str, dict[str, float]]()
        for _ in range(1 + UPDATES):  # the first of each allocates
            for name, learn in (("ours", partial(loop.update, last)), ("rsl_rl's", of_rsl_rl)):
                alg.load(copy.deepcopy(began), load_cfg=None, strict=True)
                alg.learning_rate, alg.storage.step = began["learning_rate"], alg.storage.num_transitions_per_env
                torch.manual_seed(1)  # the same mini-batches
                synchronize()
                started_s = time.perf_counter()
                losses[name] = learn()
                synchronize()
                took_s[name].append(time.perf_counter() - started_s)
        medians = {name: statistics.median(times[1:]) for name, times in took_s.items()}
        kind = "bfloat16" if precision == "true" else "float32"
        for name, median in medians.items():
            yield Row(f"{kind}: an update of {name}", None, median, "s")
        fast = medians["rsl_rl's"] / medians["ours"]
        yield Row(f"{kind}: times as fast", (1.0, 100.0), fast, "", "the lean update (ppo_lab/learning)")
        for name, value in losses["ours"].items():
            theirs = losses["rsl_rl's"][name]
            span = (theirs - LOSS_TOLERANCE * abs(theirs), theirs + LOSS_TOLERANCE * abs(theirs))
            yield Row(f"{kind}: {name} loss", span, value, "", "the lean update's mathematics (ppo_lab/learning)")


def ranks(device: str) -> Iterator[Row]:
    """Steps per second of a rank on each card, against one rank on one card with as many envs each"""
    import torch

    most = 2 if device == "cpu" else torch.cuda.device_count()
    yield Row("cards" if device == "cuda" else "ranks", None, most)
    if most == 1:
        return
    each = 16 if device == "cpu" else 4096
    fps = dict[int, float]()
    with tempfile.TemporaryDirectory() as folder:
        for processes in (1, most):
            run = Path(folder) / str(processes)
            overrides = (f"processes={processes}", f"num_envs={each * processes}", *size(device)[1:])
            finish(start_training(*overrides, "max_iterations=8", f"device={device}", f"hydra.run.dir={run}"))
            fps[processes] = statistics.median(row["Perf/total_fps"] for row in read_metrics(run)[3:])
            yield Row(f"steps per second, {processes} x {each} envs", None, fps[processes], "1/s")
    if_not = "NCCL between the cards, or too few cores: a rank needs one"
    yield Row("of what as many single ranks would do", RANKS_SHARE, fps[most] / (most * fps[1]), "", if_not)


def calibrate(_: str) -> Iterator[Row]:
    """The estimate's calibration of the card, which stays in the user's folder as far as it came"""
    command = [sys.executable, "estimate.py", "calibrate=true", "format=json"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    yield Row("exit code", (0, 0), done.returncode, "", "python estimate.py calibrate=true")
    try:
        said = from_json(done.stdout)
    except ValueError:
        yield Row("it said", None, (done.stderr or done.stdout).strip()[-500:])
        return
    for key, value in flat(said).items():
        yield Row(key, None, value if isinstance(value, int | float | str) else json.dumps(value))


def machine(device: str) -> Iterator[Row]:
    """Device, versions and commit"""
    from ppo_lab.runs.manifest import PACKAGES, describe_machine, read_checkout

    preflight.check_installed()
    found = describe_machine(devices.resolve_device(device)) | {"python": platform.python_version()}
    found |= {name: metadata.version(name) for name in PACKAGES if name != "ppo-lab"}
    for name, value in (found | {"commit": read_checkout().commit}).items():
        yield Row(name, None, str(value))


MEMORY = [
    ("go2", 512, 4),
    ("go2", 2048, 4),
    ("go2", 8192, 4),
    ("go2", 4096, 1),
    ("go2", 4096, 16),
    ("hover", 8192, 4),
    ("hover", 512, 4),
    ("hover", 2048, 4),
    ("hover", 4096, 4),
    ("hover", 16384, 4),
    ("hover", 8192, 16),
]
"""env, num_envs, num_mini_batches: with memory_go2, twelve."""
GO2 = "env=go2 num_envs=4096"
EXPANDABLE = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
PARTS = {
    "context": Part(context, 30, needs_gpu=True),
    "workspaces": Part(workspaces, 30, needs_gpu=True),
    "allocator": Part(caching_allocator, 60, needs_gpu=True),
    "simulator": Part(simulator, 240, needs_gpu=True),
    "memory_go2": Part(partial(memory, GO2), 90),
    "syncs": Part(syncs, 60, needs_gpu=True),
    "repeat": Part(repeat, 180),
    "state": Part(state, 90),
    "speed": Part(speed, 90, environment={"GIT_PYTHON_REFRESH": "quiet"}),  # rsl_rl's runner asks for git
    "update": Part(update, 120),
    "ranks": Part(ranks, 150),
    "memory_deterministic": Part(partial(memory, f"{GO2} deterministic=true"), 60),
    "allocator_expandable": Part(caching_allocator, 60, needs_gpu=True, environment=EXPANDABLE),
    "memory_expandable": Part(partial(memory, GO2), 60, needs_gpu=True, environment=EXPANDABLE),
} | {
    f"memory_{env}_{num_envs}x{num_mini_batches}": Part(
        partial(memory, f"env={env} num_envs={num_envs} algorithm.num_mini_batches={num_mini_batches}"),
        150 if env == "hover" else 60,  # the first compiles
    )
    for env, num_envs, num_mini_batches in MEMORY
}
PARTS["calibrate"] = Part(calibrate, 400, needs_gpu=True)  # compiles all kernels anew
"""In the order in which they are worth their time: the last are dropped where it does not suffice."""
