"""A model of torch's CUDA caching allocator (c10/cuda/CUDACachingAllocator.cpp): what a trace makes it reserve.

One device and one stream; memory never runs out, so that no segment is ever given back. Segments are taken to lie at
rising addresses, which decides between free blocks of one size.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ppo_lab.errors import ConfigError
from ppo_lab.memory.predict.trace import Allocation, Event
from ppo_lab.memory.rows import MIB

MIN_BLOCK = 512
"""Sizes are rounded up to a multiple of this."""
SMALL = 1 * MIB
"""The largest request that is served from the small pool."""
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
LARGE = 10 * MIB
"""The smallest request that has a segment made to its measure, rounded up to `LARGE_ROUNDING`."""
LARGE_ROUNDING = 2 * MIB

ADDRESS_SPACE = 2**48
"""Bytes that an expandable segment may grow to, and above every size."""

MODELLED_SETTINGS = "expandable_segments:True, max_split_size_mb:N with N >= 20"
IRRELEVANT_SETTINGS = (
    "pinned_use_background_threads",
    "pinned_max_round_threshold_mb",
    "pinned_max_cached_size_mb",
    "pinned_use_cuda_host_register",
    "pinned_num_register_threads",
    "pinned_reserve_segment_size_mb",
    "pinned_free_catch_all",
    "release_lock_on_cudamalloc",
)
"""They concern the host's memory, or time."""


@dataclass(frozen=True)
class AllocatorSettings:
    """Those of PYTORCH_ALLOC_CONF that change what is reserved."""

    expandable_segments: bool = False
    """Each pool is one segment, which grows by pages."""
    max_split_size_bytes: int | None = None
    """Blocks of this size and above are not split."""


@dataclass(frozen=True)
class Replay:
    """What the allocator's counters say, before the first event and after each."""

    allocated: tuple[int, ...]
    """Bytes, as torch.cuda.memory_allocated: of the blocks, which may be larger than what was asked for."""
    reserved: tuple[int, ...]
    """Bytes, as torch.cuda.memory_reserved."""

    @property
    def allocated_peak_bytes(self) -> int:
        return max(self.allocated)

    @property
    def reserved_peak_bytes(self) -> int:
        return max(self.reserved)

    @property
    def reserved_bytes(self) -> int:
        """At the end."""
        return self.reserved[-1]

    def allocated_peak_bytes_within(self, phase: tuple[int, int]) -> int:
        """The peak from the number of events at which a phase starts to the one at which it stops."""
        return max(self.allocated[phase[0] : phase[1] + 1])


def replay(
    events: Sequence[Event],
    settings: AllocatorSettings | None = None,
    workspace_bytes: int = 0,
    workspace_starts: Sequence[int] = (),
) -> Replay:
    """Puts the events through the allocator.

    Args:
        events: as in a `Trace`.
        settings: None for torch's defaults.
        workspace_bytes: of a cuBLAS handle, see `cublas_workspace_bytes`.
        workspace_starts: numbers of events before each of which a handle takes its workspace, for good.
    """
    allocator = _Allocator(settings or AllocatorSettings())
    blocks: dict[int, _Block] = {}
    allocated, reserved = [0], [0]
    for number, event in enumerate(events):
        if number in workspace_starts and workspace_bytes:
            allocator.allocate(workspace_bytes)
        match event:
            case Allocation(block, size_bytes):
                if size_bytes:
                    blocks[block] = allocator.allocate(size_bytes)
            case _:
                if event.block in blocks:
                    allocator.free(blocks.pop(event.block))
        allocated.append(allocator.allocated_bytes)
        reserved.append(allocator.reserved_bytes)
    return Replay(tuple(allocated), tuple(reserved))


DETERMINISTIC_WORKSPACES = ":4096:8"
"""CUBLAS_WORKSPACE_CONFIG of a run with deterministic=true, where the user has set none."""


def cublas_workspace_bytes(compute_capability_major: int, deterministic: bool = False) -> int:
    """What torch gives each cuBLAS handle, one for each thread that multiplies matrices.

    As CUBLAS_WORKSPACE_CONFIG has it, in pairs of KiB and counts: ":4096:2:16:8" (ATen/cuda/CublasHandlePool.cpp).
    """
    words = os.environ.get("CUBLAS_WORKSPACE_CONFIG", DETERMINISTIC_WORKSPACES if deterministic else "")
    if pairs := re.findall(r":(\d+):(\d+)", words):
        return sum(int(kib) * int(count) for kib, count in pairs) * 1024
    return 32 * MIB if compute_capability_major >= 9 else 8 * MIB + 128 * 1024


def settings_of_this_process() -> AllocatorSettings:
    """As the environment sets them, under torch's name for them or the older one. Raises a ConfigError."""
    older = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")
    return read_settings(os.environ.get("PYTORCH_ALLOC_CONF", older))


def read_settings(text: str) -> AllocatorSettings:
    """The settings in `text`, written as in PYTORCH_ALLOC_CONF.

    Raises:
        ConfigError: a setting that does not exist, or that is not modelled.
    """
    settings = AllocatorSettings()
    for setting in filter(None, re.split(r",(?![^[]*])", re.sub(r"\s", "", text))):  # no comma within brackets
        key, _, value = setting.partition(":")
        if key == "expandable_segments" and value in ("True", "False"):
            settings = replace(settings, expandable_segments=value == "True")
        elif key == "max_split_size_mb" and value.isdecimal() and int(value) * MIB >= LARGE_SEGMENT:
            settings = replace(settings, max_split_size_bytes=int(value) * MIB)
        elif key not in IRRELEVANT_SETTINGS and setting != "backend:native":
            raise ConfigError(f"PYTORCH_ALLOC_CONF={setting} cannot be simulated. Allowed: {MODELLED_SETTINGS}.")
    return settings


def rounded(size: int) -> int:
    """The bytes of the block that a request of `size` bytes asks for."""
    return max(MIN_BLOCK, -(-size // MIN_BLOCK) * MIN_BLOCK)


@dataclass(eq=False, slots=True)
class _Block:
    """A stretch of a segment; `before` and `after` are its neighbours there."""

    address: int
    size: int
    pool: _Pool
    free: bool = True
    mapped: bool = True
    before: _Block | None = None
    after: _Block | None = None


class _Pool:
    """The free blocks for small or for large requests, by size, then by address."""

    def __init__(self, is_small: bool) -> None:
        self.is_small = is_small
        self.page = SMALL_SEGMENT if is_small else LARGE_SEGMENT
        self.tail: _Block | None = None  # what an expandable segment has not mapped yet
        self._keys: list[tuple[int, int]] = []
        self._blocks: dict[int, _Block] = {}  # by address

    def add(self, block: _Block) -> None:
        insort(self._keys, (block.size, block.address))
        self._blocks[block.address] = block

    def remove(self, block: _Block) -> None:
        del self._keys[bisect_left(self._keys, (block.size, block.address))]
        del self._blocks[block.address]

    def at_least(self, size: int) -> Iterator[_Block]:
        """The free blocks of `size` bytes and more, the best fit first."""
        for place in range(bisect_left(self._keys, (size, 0)), len(self._keys)):
            yield self._blocks[self._keys[place][1]]


class _Allocator:
    """`allocate` and `free` follow DeviceCachingAllocator::malloc and ::free."""

    def __init__(self, settings: AllocatorSettings) -> None:
        self.settings = settings
        self.allocated_bytes = 0
        self.reserved_bytes = 0
        self._small = _Pool(is_small=True)
        self._large = _Pool(is_small=False)
        self._next_address = 0
        self._max_split_size = settings.max_split_size_bytes or ADDRESS_SPACE

    def allocate(self, requested: int) -> _Block:
        size = rounded(requested)
        pool = self._small if size <= SMALL else self._large
        block = self._best_fit(pool, size)
        if block is not None:
            pool.remove(block)
        elif self.settings.expandable_segments:
            block = self._expand(pool, size)
        else:
            block = self._new_segment(pool, size)
        if self._should_split(block, size):
            rest = _Block(block.address + size, block.size - size, pool, before=block, after=block.after)
            if block.after:
                block.after.before = rest
            block.after = rest
            block.size = size
            pool.add(rest)
        block.free = False
        self.allocated_bytes += block.size
        return block

    def free(self, block: _Block) -> None:
        self.allocated_bytes -= block.size
        block.free = True
        self._merge_and_add(block)

    def _best_fit(self, pool: _Pool, size: int) -> _Block | None:
        fits = pool.at_least(size)
        block = next(fits, None)
        if block is None:
            return None
        if self.settings.expandable_segments:  # the block that can grow is taken to be as large as it can become
            for larger in fits:
                if _expandable_size(larger) >= _expandable_size(block):
                    break
                block = larger
        if size < self._max_split_size <= block.size:
            return None
        if size >= self._max_split_size and block.size >= size + LARGE_SEGMENT:
            return None
        return block

    def _should_split(self, block: _Block, size: int) -> bool:
        rest = block.size - size
        if block.pool.is_small or self.settings.expandable_segments:
            return rest >= MIN_BLOCK
        return size < self._max_split_size and rest > SMALL

    def _new_segment(self, pool: _Pool, size: int) -> _Block:
        if size <= SMALL:
            segment = SMALL_SEGMENT
        elif size < LARGE:
            segment = LARGE_SEGMENT
        else:
            segment = -(-size // LARGE_ROUNDING) * LARGE_ROUNDING
        self.reserved_bytes += segment
        return _Block(self._take_addresses(segment), segment, pool)

    def _expand(self, pool: _Pool, size: int) -> _Block:
        """Maps as many pages as the free block at the end of the pool's segment, if any, lacks to hold `size`."""
        if pool.tail is None:
            pool.tail = _Block(self._take_addresses(ADDRESS_SPACE), ADDRESS_SPACE, pool, mapped=False)
        tail = pool.tail
        last = tail.before if tail.before and tail.before.free else None
        if last and last.size >= size:  # passed over as too large to be split
            pool.remove(last)
            return last
        lacking = size - (last.size if last else 0)
        new_bytes = -(-lacking // pool.page) * pool.page
        self.reserved_bytes += new_bytes
        block = _Block(tail.address, new_bytes, pool, before=tail.before, after=tail)
        if tail.before:
            tail.before.after = block
        tail.before = block
        tail.address += new_bytes
        tail.size -= new_bytes
        self._merge_and_add(block)
        pool.remove(block)
        return block

    def _merge_and_add(self, block: _Block) -> None:
        """Joins a free block with its free neighbours."""
        pool = block.pool
        before, after = block.before, block.after
        if before and before.free:
            pool.remove(before)
            block.address = before.address
            block.size += before.size
            block.before = before.before
            if block.before:
                block.before.after = block
        if after and after.free and after.mapped:
            pool.remove(after)
            block.size += after.size
            block.after = after.after
            if block.after:
                block.after.before = block
        pool.add(block)

    def _take_addresses(self, size: int) -> int:
        address = self._next_address
        self._next_address += size
        return address


def _expandable_size(block: _Block) -> int:
    return block.size + (block.after.size if block.after and not block.after.mapped else 0)
