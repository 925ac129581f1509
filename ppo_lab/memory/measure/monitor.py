"""What a run holds in memory as it goes: read by phase, reported once an iteration, in MiB."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import psutil
import torch

from ppo_lab.machine import devices
from ppo_lab.memory.measure.live_tensors import LiveTensors
from ppo_lab.memory.rows import MIB, ROWS, name_of, rank_tag, tag


class TensorMemory(Protocol):
    """Says how many bytes the tensors hold."""

    def reset_peak(self) -> None: ...
    def peak_bytes(self) -> int: ...
    def resident_bytes(self) -> int: ...
    def device_bytes(self) -> dict[str, int]:
        """Further rows, of the device rather than of the tensors."""
        ...


class AcceleratorMemory:
    """The counters of torch's caching allocator, and of the device as a whole."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._process_bytes = devices.reader_of_process_bytes(device.index or 0) if device.type == "cuda" else None

    def reset_peak(self) -> None:
        torch.accelerator.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int:
        return torch.accelerator.max_memory_allocated(self.device)

    def resident_bytes(self) -> int:
        return torch.accelerator.memory_allocated(self.device)

    def device_bytes(self) -> dict[str, int]:
        free, total = torch.accelerator.get_memory_info(self.device)
        rows = {"reserved": torch.accelerator.memory_reserved(self.device), "device_used": total - free}
        process = self._process_bytes() if self._process_bytes else None
        return rows if process is None else rows | {"process_device": process}


class CountedMemory:
    """Live tensors counted one by one, where no allocator keeps counters."""

    def __init__(self, live: LiveTensors) -> None:
        self._live = live

    def reset_peak(self) -> None:
        self._live.reset_peak()

    def peak_bytes(self) -> int:
        return self._live.peak_bytes

    def resident_bytes(self) -> int:
        return self._live.current_bytes

    def device_bytes(self) -> dict[str, int]:
        return {}


class MemoryMonitor:
    """Measures the phases of an iteration, and reports them at its end.

    Enter it around the whole run, from before the first tensor to be counted. On a CPU without
    `count_tensors` only the host's rows are known.
    """

    def __init__(self, device: torch.device, count_tensors: bool = False) -> None:
        self._stack = ExitStack()
        self._tensors: TensorMemory | None = None
        self._live: LiveTensors | None = None
        if device.type != "cpu":
            self._tensors = AcceleratorMemory(device)
        elif count_tensors:
            self._live = LiveTensors(device)
            self._tensors = CountedMemory(self._live)
        self._process = psutil.Process()
        self._peaks: dict[str, int] = {}

    def __enter__(self) -> MemoryMonitor:
        if self._live:
            self._stack.enter_context(self._live)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Records the peak of what is allocated within the block."""
        if self._tensors is None:
            yield
            return
        self._tensors.reset_peak()
        yield
        self._peaks[name] = self._tensors.peak_bytes()

    def scalars(self) -> dict[str, float]:
        """The rows of the iteration that ends now, "Memory/..._mib" -> MiB. Costs no device sync."""
        rows = {f"{phase}_peak": peak for phase, peak in self._peaks.items()}
        if self._tensors is not None:
            rows["allocated_peak"] = max(self._peaks.values(), default=0)
            rows["resident"] = self._tensors.resident_bytes()
            rows |= self._tensors.device_bytes()
        rows["host_rss"] = self._process.memory_info().rss
        rows["host_peak_rss"] = max(host_peak_rss_bytes(), rows["host_rss"])
        return {tag(name): size / MIB for name, size in rows.items()}


def of_all_ranks(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The rows of a run of several ranks: their sums, and of what the peaks are made of, by rank."""
    if len(rows) == 1:
        return dict(rows[0])
    sums = {row: sum(of_rank[row] for of_rank in rows) for row in rows[0]}
    peaks = {
        rank_tag(name, rank): of_rank[row]
        for row in rows[0]
        if (name := name_of(row)) and name.endswith(("_peak", "peak_rss"))
        for rank, of_rank in enumerate(rows)
    }
    return sums | peaks


def free_bytes(device: torch.device, row_tag: str = "") -> int:
    """What can still be taken of the memory that a row is about, given by its tag: the device's, or the host's."""
    row = ROWS.get(name_of(row_tag) or "")
    if device.type == "cpu" or (row and row.source == "host"):
        return psutil.virtual_memory().available
    return torch.accelerator.get_memory_info(device)[0]


def host_peak_rss_bytes() -> int:
    """The most resident memory this process ever had. 0 where the system does not say."""
    if sys.platform == "linux":  # getrusage would count the parent's, inherited over exec
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else 0
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
