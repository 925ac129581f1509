"""The rows of the memory log: "Memory/<name>_mib", one value an iteration, in MiB. Standard library only."""

from __future__ import annotations

from typing import Literal, NamedTuple

MIB = 2**20

Source = Literal["tensors", "gpu", "host"]
"""tensors: those of the learner and the env, on whatever device; on a CPU only with memory.count_tensors=true.

gpu: what torch's allocator or the driver say of a GPU; a CPU has no such row. host: the process on the host.
"""


class MemoryRow(NamedTuple):
    """One row."""

    meaning: str
    """A sentence for whoever meets the row in a table or on TensorBoard."""
    label: str
    """A few words, for the axis of a picture."""
    source: Source
    is_maximum: bool = False
    """Over other rows or over the whole run: it never falls, or tells nothing that others do not."""


ROWS = {
    "rollout_peak": MemoryRow("The most that tensors held during the rollout.", "tensors in the rollout", "tensors"),
    "update_peak": MemoryRow("The most that tensors held during the update.", "tensors in the update", "tensors"),
    "allocated_peak": MemoryRow(
        "The larger of rollout_peak and update_peak.", "tensors at the peak", "tensors", is_maximum=True
    ),
    "resident": MemoryRow("What tensors hold at the end of the iteration.", "tensors between iterations", "tensors"),
    "reserved": MemoryRow("What torch's allocator has taken from the GPU.", "reserved by torch", "gpu"),
    "device_used": MemoryRow("What all processes together hold of the GPU.", "in use on the device", "gpu"),
    "process_device": MemoryRow("What this process holds of the GPU.", "the process on the device", "gpu"),
    "host_rss": MemoryRow("This process's resident memory on the host.", "the process on the host, now", "host"),
    "host_peak_rss": MemoryRow(
        "The most resident memory that this process ever had.", "the process on the host", "host", is_maximum=True
    ),
}
"""Name -> row."""

STANDS_FOR_A_RUN = ("reserved", "process_device", "device_used", "allocated_peak", "host_peak_rss")
"""The first of these that a run has is its peak, for tables and comparisons.

What the process itself reserved comes before the device as a whole, which jobs beside it share.
"""

WHOLE_RUN = ("process_device", "device_used", "host_peak_rss")
"""The first of these that a run has is all that it holds of its device, beside a prediction of the whole."""


def tag(name: str) -> str:
    """As TensorBoard and metrics.jsonl have it."""
    return f"Memory/{name}_mib"


def rank_tag(name: str, rank: int) -> str:
    """Of the row of one rank, where a run has several; `tag` then has their sum."""
    return f"Memory/rank_{rank}/{name}_mib"


def predicted_tag(name: str) -> str:
    """Of what was predicted for a row."""
    return tag(f"predicted_{name}")


def name_of(tag: str) -> str | None:
    """The name of the measured row that has this tag; None for any other tag, a prediction's and a single rank's."""
    name = tag.removeprefix("Memory/").removesuffix("_mib")
    return name if tag == f"Memory/{name}_mib" and not name.startswith(("predicted_", "rank_")) else None
