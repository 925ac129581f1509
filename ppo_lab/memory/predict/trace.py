"""What the learner allocates and frees, in order: traced on fake tensors before a run, without a GPU.

`ppo_lab.probes.learner` runs the learner, in a process of its own, since it changes torch there. Here is what it
finds, how to ask, and what a trace depends on, so that one that was made before is read from the cache folder. None of
it needs torch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ppo_lab import config
from ppo_lab.config import CheckpointConfig, EntropyScheduleConfig, ExperimentConfig, InitConfig, MemoryConfig
from ppo_lab.errors import ConfigError
from ppo_lab.machine.preflight import version_of
from ppo_lab.memory.predict import cache
from ppo_lab.memory.predict.simulator import simulator_memory

PACKAGE = Path(__file__).resolve().parents[2]
SOURCES = ("probes/learner.py", "memory/measure/live_tensors.py", "learning/*.py")
"""The code that a trace follows, relative to the package."""
LIBRARIES = ("torch", "rsl-rl-lib", "tensordict")
FACTORS = (
    *("clip_param", "gamma", "lam", "value_loss_coef", "entropy_coef", "learning_rate", "max_grad_norm", "desired_kl"),
)
"""Settings of the algorithm that change values alone, no tensor's size or lifetime."""

DeviceType = Literal["cpu", "cuda"]
MOST_TRACED = 20_000
"""Steps and mini-batches of an iteration; each takes some 10 ms."""

CATEGORIES = (
    "parameters",  # weights, the deviation, the normalizers' moments
    "gradients",
    "optimizer",  # Adam's moments
    "storage",  # the rollout buffer
    "mini_batch",  # the order of the transitions, and what is gathered by it
    "activations",  # what the networks' passes hold: outputs of hidden layers, and their gradients
    "env",  # its tensors, as counted beforehand; the simulator has its memory outside torch
    "episodes",  # statistics: returns and lengths
    "temporary",
)


class Allocation(NamedTuple):
    """A block is allocated."""

    block: int
    size_bytes: int
    category: str


class Free(NamedTuple):
    """A block is freed."""

    block: int


Event = Allocation | Free


@dataclass(frozen=True)
class Trace:
    """Every allocation from the learner's construction to the end of an iteration in steady state, the one reported."""

    events: tuple[Event, ...]
    rollout: tuple[int, int]
    """The reported rollout is `events[start:stop]`."""
    update: tuple[int, int]
    matmul_starts: tuple[int, ...]
    """Numbers of events before the first matrix product of each thread: on a GPU it takes a cuBLAS handle there, with
    a workspace. The update's passes are written out, in one thread; autograd's backward pass would have its own."""
    rollout_peak_bytes: int
    update_peak_bytes: int
    resident_bytes: int
    """Alive at the end of the iteration."""
    alive_at_rollout_peak: dict[str, int]
    """Category -> bytes, the largest first; they sum to the peak."""
    alive_at_update_peak: dict[str, int]
    saved_activation_bytes: int
    """The most that the category "activations" holds: the whole forward pass of one mini-batch."""


def trace(cfg: ExperimentConfig, device_type: DeviceType = "cpu") -> Trace:
    """Traces the learner that `cfg` describes. Takes seconds, or nothing where the same was traced before.

    Args:
        cfg: a checked experiment.
        device_type: "cpu" counts what a CPU run counts, to the byte. "cuda" lets rmsprop treat all parameters at
            once, as torch does there, and leaves out its step counters, which stay on the host.

    Raises:
        ConfigError: a setting that cannot be traced.
    """
    rounds = cfg.num_steps_per_env + cfg.algorithm.num_learning_epochs * cfg.algorithm.num_mini_batches
    if rounds > MOST_TRACED:
        raise ConfigError(
            f"an iteration of {rounds:,} steps and mini-batches is too long to trace. Allowed: {MOST_TRACED:,}; see "
            "num_steps_per_env, algorithm.num_learning_epochs and algorithm.num_mini_batches."
        )
    key = dependencies(cfg, device_type)
    stored = cache.load_trace(key)
    if stored is not None:
        try:
            return _checked(stored)
        except ValueError:
            pass  # not one that `to_json` wrote
    content = json.loads(_run_tracer(_without_what_changes_nothing(cfg), device_type))
    cache.save_trace(key, content)
    return _checked(content)


def dependencies(cfg: ExperimentConfig, device_type: DeviceType) -> dict[str, Any]:
    """All that the trace of `cfg` depends on, as JSON content. Two experiments of the same have the same trace."""
    spec, counted = cfg.env.spec(), simulator_memory(cfg)
    algorithm = dataclasses.asdict(cfg.algorithm)
    actor = dataclasses.asdict(cfg.network.actor)
    return {
        "device_type": device_type,
        "observations": {group: spec.width(group) for group in spec.observations},
        "actions": len(spec.actions),
        "rewards": len(spec.rewards),
        "num_envs": cfg.num_envs,
        "num_steps_per_env": cfg.num_steps_per_env,
        "algorithm": {name: value for name, value in algorithm.items() if name not in FACTORS},
        "actor": {name: value for name, value in actor.items() if name != "init_std"},
        "critic": dataclasses.asdict(cfg.network.critic),
        "reference": cfg.init.kl_coef > 0,
        "env_tensors": counted
        and {name: size for name, size in vars(counted).items() if name.startswith(("env_", "step_", "scenes"))},
        "python": platform.python_version(),
        "libraries": {name: version_of(name) for name in LIBRARIES},
        "sources": _source_digest(),
    }


@functools.cache
def _source_digest() -> str:
    digest = hashlib.sha256()
    for file in sorted(file for pattern in SOURCES for file in PACKAGE.glob(pattern)):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _without_what_changes_nothing(cfg: ExperimentConfig) -> ExperimentConfig:
    """`cfg` with fixed values for the settings that `dependencies` leaves out, so that they cannot change the trace."""
    factors: dict[str, Any] = dict.fromkeys(FACTORS, 0.5)
    actor = dataclasses.replace(cfg.network.actor, init_std=1.0)
    return dataclasses.replace(
        cfg,
        algorithm=dataclasses.replace(cfg.algorithm, **factors),
        entropy_schedule=EntropyScheduleConfig(final_coef=None, from_iteration=0, to_iteration=0),
        network=dataclasses.replace(cfg.network, actor=actor),
        memory=MemoryConfig(count_tensors=False, over_budget="warn"),
        checkpoint=CheckpointConfig(keep_state=1, every_seconds=None),
        processes=1,
        max_iterations=1,
        save_interval=1,
        evaluate_every=None,
        init_from=cfg.any_ancestor,
        init=InitConfig(critic=True, optimizer=False, std=True, kl_coef=0.5 if cfg.init.kl_coef else 0.0),
        seed=0,
        device="cpu",
        deterministic=False,
        run_name="trace",
        quiet=True,
    )


def _run_tracer(cfg: ExperimentConfig, device_type: DeviceType) -> str:
    child = subprocess.run(
        [sys.executable, "-m", "ppo_lab.probes.learner", device_type],
        input=config.to_json(cfg),
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,  # where ppo_lab can be imported from
    )
    if child.returncode:
        raise RuntimeError(f"the trace failed:\n{child.stderr}")
    return child.stdout


def summarize(
    events: Sequence[Event], rollout: tuple[int, int], update: tuple[int, int], matmul_starts: Sequence[int]
) -> Trace:
    """The trace of these events; the last is the last of the iteration."""
    rollout_peak = _Peak(rollout)
    update_peak = _Peak(update)
    saved_activation_bytes = 0
    alive: dict[int, Allocation] = {}
    totals: Counter[str] = Counter()
    for number, event in enumerate((None, *events)):
        match event:
            case Allocation(block, size_bytes, category):
                alive[block] = event
                totals[category] += size_bytes
            case Free(block):
                freed = alive.pop(block)
                totals[freed.category] -= freed.size_bytes
        if update[0] <= number <= update[1]:
            saved_activation_bytes = max(saved_activation_bytes, totals["activations"])
        rollout_peak.offer(number, totals)
        update_peak.offer(number, totals)
    return Trace(
        tuple(events),
        rollout,
        update,
        tuple(matmul_starts),
        rollout_peak.bytes,
        update_peak.bytes,
        totals.total(),
        rollout_peak.alive,
        update_peak.alive,
        saved_activation_bytes,
    )


class _Peak:
    """The most that is alive within a phase, its start included, and what it is made of."""

    def __init__(self, phase: tuple[int, int]) -> None:
        self._start, self._stop = phase
        self.bytes = 0
        self.alive: dict[str, int] = {}

    def offer(self, number: int, totals: Counter[str]) -> None:
        """`totals`: category -> bytes alive after `number` events."""
        if self._start <= number <= self._stop and (total := totals.total()) > self.bytes:
            self.bytes = total
            self.alive = {category: size for category, size in totals.most_common() if size}


def to_json(trace: Trace) -> str:
    """What the tracer prints: an allocation as [block, bytes, category], a free as [block]."""
    return json.dumps(
        {
            "events": trace.events,
            "rollout": trace.rollout,
            "update": trace.update,
            "matmul_starts": trace.matmul_starts,
        }
    )


def from_json(text: str) -> Trace:
    """Reads what `to_json` wrote. Raises a ValueError where it is something else."""
    return _checked(json.loads(text))


def _checked(content: Any) -> Trace:
    """The trace in JSON content. Raises a ValueError where it is none."""
    try:
        events = [_event(*fields) for fields in content["events"]]
        rollout, update = (tuple(content[phase]) for phase in ("rollout", "update"))
        marks = (*rollout, *update)
        if [type(mark) for mark in marks] != [int] * 4 or not 0 <= rollout[0] <= rollout[1] <= update[0] <= update[1]:
            raise ValueError(f"phases {rollout} and {update}")
        starts = content["matmul_starts"]
        if update[1] > len(events) or not all(type(start) is int and 0 <= start <= len(events) for start in starts):
            raise ValueError("numbers of events that there are not")
        return summarize(events, (rollout[0], rollout[1]), (update[0], update[1]), starts)
    except (LookupError, TypeError) as error:
        raise ValueError(f"not a trace: {error}") from None


def _event(block: int, size_bytes: int | None = None, category: str = "") -> Event:
    if type(block) is not int:
        raise TypeError(f"block {block!r}")
    if size_bytes is None:
        return Free(block)
    if type(size_bytes) is not int or size_bytes < 0 or category not in CATEGORIES:
        raise ValueError(f"allocation of {size_bytes!r} bytes for {category!r}")
    return Allocation(block, size_bytes, category)
