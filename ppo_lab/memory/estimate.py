"""What a run will hold in memory, and how each figure is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ppo_lab.memory.hardware import Hardware
from ppo_lab.memory.trace import Trace

Known = Literal["exact", "traced", "simulated", "measured", "derived", "calibrated", "unknown"]
"""exact: closed form. traced: the learner on fake tensors. simulated: that trace through a model of the allocator.

measured: counted in the simulator on a CPU. derived: from the simulator's own formulas for a GPU, not yet confirmed on
one. calibrated: from finished runs on such a device. unknown: nobody has measured it.
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
    high: int | None


@dataclass(frozen=True)
class Estimate:
    """The prediction for one experiment on one device. Fields without a trace are None."""

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
    rollout_peak_bytes: int | None
    """Requested by tensors, as traced."""
    update_peak_bytes: int | None
    allocated_peak_bytes: int | None
    """Of the allocator's blocks on a GPU, workspaces included; of the tensors on a CPU."""
    reserved_peak_bytes: int | None
    """None on a CPU, whose allocator reserves nothing."""
    simulator_bytes: int | None
    device_bytes: Span | None
    """The whole run on the device."""
    hardware: Hardware
    fits: bool | None
    """By `high`; where `high` is unknown, False if even `low` is too much, or else None."""
    trace: Trace | None
