"""The size of the tensors that leave holes in the heap of glibc's malloc (mallopt(3), M_MMAP_THRESHOLD)."""

from __future__ import annotations

from collections.abc import Iterable

from ppo_lab.memory.predict.trace import Allocation, Event
from ppo_lab.memory.rows import MIB

MMAP_THRESHOLD_BYTES = 32 * MIB
"""The largest value of the threshold, which it soon reaches. Larger blocks are mapped, and unmapped when freed.

Smaller blocks come from the heap, where those that are freed leave holes.
"""


def largest_freed_bytes(events: Iterable[Event]) -> int:
    """The largest block below the threshold that a trace frees. The heap's holes were measured to grow with it."""
    sizes: dict[int, int] = {}
    largest_bytes = 0
    for event in events:
        if isinstance(event, Allocation):
            sizes[event.block] = event.size_bytes
        elif sizes[event.block] < MMAP_THRESHOLD_BYTES:
            largest_bytes = max(largest_bytes, sizes[event.block])
    return largest_bytes
