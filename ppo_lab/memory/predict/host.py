"""What glibc's malloc takes beyond the tensors on a CPU (mallopt(3), M_MMAP_THRESHOLD)."""

from __future__ import annotations

from collections.abc import Iterable

from ppo_lab.memory.predict.trace import Allocation, Event
from ppo_lab.memory.rows import MIB

MMAP_THRESHOLD_BYTES = 32 * MIB
"""The most that the threshold rises to, and soon has. A block from here on is mapped, and unmapped when it is freed.

Smaller blocks come from a heap, where those that are freed leave holes.
"""


def largest_freed_bytes(events: Iterable[Event]) -> int:
    """Of the blocks that the heap gives and takes back in a trace: what its holes were measured to grow with."""
    sizes: dict[int, int] = {}
    largest_bytes = 0
    for event in events:
        if isinstance(event, Allocation):
            sizes[event.block] = event.size_bytes
        elif sizes[event.block] < MMAP_THRESHOLD_BYTES:
            largest_bytes = max(largest_bytes, sizes[event.block])
    return largest_bytes
