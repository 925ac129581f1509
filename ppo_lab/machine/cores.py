"""The processor: how many cores this process may use, and what they can do. Standard library only."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = CGROUP) -> int:
    """The cores that this process may use: by its affinity, and by the CPU quota of its container, rounded down.

    Args:
        cgroup: where the control group of this process is mounted, of version 2 or 1.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(allowed, _quota(cgroup))))


def threads_per_rank(ranks: int, cores: int | None = None) -> int:
    """Threads for each of so many ranks on this machine, so that no two share a core."""
    return max(1, (cores or usable_cores()) // ranks)


def has_bfloat16() -> bool:
    """Whether the cores multiply matrices of bfloat16 in hardware (AVX512-BF16 or AMX), by what Linux says of them."""
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags.split())


def _quota(cgroup: Path) -> float:
    """Cores' worth of time that the container may use; infinite where there is no limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return math.inf
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else math.inf
