"""What the learner allocates and frees, in order: traced on fake tensors before a run, without a GPU.

`ppo_lab.probes.learner` runs the learner, in a process of its own, since it changes torch there. Here is what it
finds, and how to ask; neither needs torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ppo_lab import config
from ppo_lab.config import ExperimentConfig
from ppo_lab.errors import ConfigError

DeviceType = Literal["cpu", "cuda"]
MOST_TRACED = 20_000
"""Steps and mini-batches of an iteration; each takes some 10 ms."""

CATEGORIES = (
    "parameters",  # weights, the deviation, the normalizers' moments
    "gradients",
    "optimizer",  # Adam's moments
    "storage",  # the rollout buffer
    "mini_batch",  # the order of the transitions, and what is gathered by it
    "activations",  # what the forward pass saves for the backward pass, beyond the above
    "env",  # its tensors, as counted beforehand; the simulator has its memory outside torch
    "episodes",  # the books of returns and lengths
    "temporary",
)


class Allocation(NamedTuple):
    """A block comes alive."""

    block: int
    size_bytes: int
    category: str


class Free(NamedTuple):
    """A block is gone."""

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
    """Numbers of events before the first matrix products of the forward and of the backward pass.

    On a GPU, each pass has a thread of its own and there takes a cuBLAS handle, with a workspace.
    """
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
    """Traces the learner that `cfg` describes. Takes seconds.

    Args:
        cfg: a checked experiment.
        device_type: "cpu" counts what a CPU run counts, to the byte. "cuda" lets the optimizer treat all parameters
            at once, as torch does there, and leaves out its step counters, which stay on the host.

    Raises:
        ConfigError: a setting that cannot be traced.
    """
    if cfg.algorithm.use_mixed_precision and device_type == "cuda":
        raise ConfigError(
            "algorithm.use_mixed_precision=true cannot be traced for a GPU, where other operations than on a CPU go in "
            "bfloat16. Allowed: false."
        )
    rounds = cfg.num_steps_per_env + cfg.algorithm.num_learning_epochs * cfg.algorithm.num_mini_batches
    if rounds > MOST_TRACED:
        raise ConfigError(
            f"an iteration of {rounds:,} steps and mini-batches is too long to trace. Allowed: {MOST_TRACED:,}; see "
            "num_steps_per_env, algorithm.num_learning_epochs and algorithm.num_mini_batches."
        )
    child = subprocess.run(
        [sys.executable, "-m", "ppo_lab.probes.learner", device_type],
        input=config.to_json(cfg),
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[3],  # where ppo_lab can be imported from
    )
    if child.returncode:
        raise RuntimeError(f"the trace failed:\n{child.stderr}")
    return from_json(child.stdout)


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
    """Reads what `to_json` wrote."""
    fields: dict[str, Any] = json.loads(text)
    events: list[Event] = [Allocation(*event) if len(event) == 3 else Free(*event) for event in fields["events"]]
    return summarize(events, tuple(fields["rollout"]), tuple(fields["update"]), fields["matmul_starts"])
