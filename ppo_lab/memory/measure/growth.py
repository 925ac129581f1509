"""Whether a run's memory grows from iteration to iteration: the trend of every measured memory row."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from ppo_lab.memory.rows import MIB, ROWS, name_of, tag

WARM_UP = 10
"""Iterations at the start that do not count: buffers are allocated for the first time."""
QUARTER = 5
"""Points in a quarter of a window."""
TENSOR_SLACK_MIB, OTHER_SLACK_MIB = 1.0, 16.0
"""Rises below this are no growth. Tensors are counted to the byte; allocators and processes take more now and then."""


class Growth(NamedTuple):
    """A steady growth."""

    since: int
    """The first iteration of the window in which it was found."""
    mib_per_iteration: float


def steady_rise(points: Sequence[float]) -> float | None:
    """How far the last quarter of 4 x QUARTER points lies above the first; None where they do not rise steadily.

    They do where each quarter's median lies above the one before by at least a fifth of the whole rise (a third, were
    it even), and the rise is at least 2.5 times the range inside a typical quarter (3.75 times on a straight line).
    So a step does not, nor does noise, nor a sawtooth with a fall in the points.
    """
    quarters = [sorted(points[start : start + QUARTER]) for start in range(0, 4 * QUARTER, QUARTER)]
    medians = [quarter[QUARTER // 2] for quarter in quarters]
    rise = medians[-1] - medians[0]
    typical_range = sorted(quarter[-1] - quarter[0] for quarter in quarters)[2]
    is_steady = min(later - earlier for earlier, later in pairwise(medians)) >= rise / 5
    return rise if rise > 0 and is_steady and rise >= 2.5 * typical_range else None


class _Block(NamedTuple):
    """Consecutive iterations."""

    first: int
    least_mib: float


@dataclass
class _Scale:
    """The newest blocks of one length."""

    half: _Block | None = None
    """The first half of the block to come."""
    window: deque[_Block] = field(default_factory=lambda: deque(maxlen=4 * QUARTER))
    highest_before_mib: float = -math.inf
    """The highest of the blocks that have left the window."""
    block_count: int = 0


class RowTrend:
    """Looks for steady growth in one row, in windows of 40, 80, 160, ... iterations.

    A window has 20 blocks, each with its least value: what is given back within a block does not count. A short window
    finds a fast leak soon, a long one a slow leak under noise. Each length keeps 20 blocks, however long the run is.
    """

    def __init__(self, slack_mib: float) -> None:
        self._slack_mib = slack_mib
        self._scales: list[_Scale] = []

    def add(self, iteration: int, mib: float) -> Growth | None:
        """Takes the next iteration's value; says so where it completes a window that grows beyond all before it."""
        found = None
        block = _Block(iteration, mib)
        for scale in self._scales:
            if scale.half is None:
                scale.half = block
                return found
            block = _Block(scale.half.first, min(scale.half.least_mib, block.least_mib))
            scale.half = None
            found = found or self._push(scale, block, iteration)
        self._scales.append(_Scale(half=block))
        return found

    def _push(self, scale: _Scale, block: _Block, iteration: int) -> Growth | None:
        if len(scale.window) == scale.window.maxlen:
            scale.highest_before_mib = max(scale.highest_before_mib, scale.window[0].least_mib)
        scale.window.append(block)
        scale.block_count += 1
        if len(scale.window) < 4 * QUARTER or scale.block_count % QUARTER:
            return None
        points = [each.least_mib for each in scale.window]
        rise = steady_rise(points)
        is_new = sorted(points[-QUARTER:])[QUARTER // 2] > scale.highest_before_mib
        if rise is None or rise < self._slack_mib or not is_new:
            return None
        since = scale.window[0].first
        return Growth(since, rise / (0.75 * (iteration + 1 - since)))


class FlatMemoryWatch:
    """Says so, once for each row, when memory grows from iteration to iteration: the rollout must be discarded."""

    def __init__(
        self, max_iterations: int | None = None, free_bytes: Callable[[str], float] = lambda tag: math.inf
    ) -> None:
        """`free_bytes`: what can still be taken of the memory that a row, given by its tag, is about."""
        self._max_iterations = max_iterations
        self._free_bytes = free_bytes
        self._trends: dict[str, RowTrend | None] = {}  # by the row's name; None once a warning was given
        self._seen = 0

    def warnings(self, iteration: int, scalars: Mapping[str, float | None]) -> Iterator[str]:
        """Takes the rows of one iteration, counted from 0; yields what is worth saying."""
        self._seen += 1
        if self._seen <= WARM_UP:
            return
        for name, mib in ((name_of(key), value) for key, value in scalars.items()):
            if name not in ROWS or ROWS[name].is_maximum or mib is None or not math.isfinite(mib):
                continue
            if name not in self._trends:
                self._trends[name] = RowTrend(_slack_mib(name))
            trend = self._trends[name]
            growth = trend.add(iteration, mib) if trend else None
            if growth:
                self._trends[name] = None
                yield self._sentence(name, iteration, mib, growth)

    def _sentence(self, name: str, iteration: int, mib: float, growth: Growth) -> str:
        is_of_tensors = ROWS[name].source == "tensors"
        why = "something keeps tensors alive" if is_of_tensors else "something is not given back"
        if name == "device_used":
            why += ", by this or another process on the device"
        rate_mib = growth.mib_per_iteration
        row = tag(name)
        grows = (
            f"memory does not stay flat: {row} grows by {rate_mib:.{2 if rate_mib >= 0.1 else 4}f} MiB an iteration "
            f"since iteration {growth.since}, and is {mib:.0f} MiB"
        )
        left = self._free_bytes(row) / MIB / rate_mib
        if self._max_iterations is None or not math.isfinite(left):
            return f"{grows}; {why}"
        full = iteration + math.ceil(left)
        if full >= self._max_iterations:
            return f"{grows}; {why}; memory would be full in iteration {full} at this rate, after the end of this run"
        return f"{grows}; {why}; memory is full in iteration {full} of {self._max_iterations} at this rate"


def _slack_mib(name: str) -> float:
    return TENSOR_SLACK_MIB if ROWS[name].source == "tensors" else OTHER_SLACK_MIB
