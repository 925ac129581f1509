"""The cards that a run may be meant for."""

from __future__ import annotations

import functools
import itertools
import os
from dataclasses import dataclass
from typing import Any

import psutil

from ppo_lab.config import INT32_MAX, count, setting
from ppo_lab.preflight import cpu_name

MIB = 2**20
BLOCKS_PER_MULTIPROCESSOR = {"7.5": 16, "8.6": 16, "8.7": 16, "8.9": 24}
"""By compute capability, where it is not 32; 24 from 12.0 on (CUDA C++ Programming Guide, technical specifications)."""


@dataclass
class Hardware:
    """What of a device decides how much a run holds there, and whether it fits."""

    name: str = setting(pattern=r".+")
    memory_mib: int = count()
    """The whole device, as nvidia-smi reports it; of a CPU, the host's memory."""
    compute_capability: str = setting(pattern=r"[0-9]{1,3}\.[0-9]|cpu")
    """Decides the size of cuBLAS workspaces and of the simulator's random states."""
    multiprocessors: int = setting(at_least=0, at_most=INT32_MAX)
    """Decide how much scratch and how many random states the simulator keeps."""

    @property
    def is_gpu(self) -> bool:
        return self.compute_capability != "cpu"

    @property
    def memory_bytes(self) -> int:
        return self.memory_mib * MIB

    @property
    def compute_capability_major(self) -> int:
        return int(self.compute_capability.partition(".")[0])

    @property
    def blocks_per_multiprocessor(self) -> int:
        """The most that are resident at once; 32 for a compute capability that is not in the table."""
        return BLOCKS_PER_MULTIPROCESSOR.get(self.compute_capability, 24 if self.compute_capability_major == 12 else 32)

    @property
    def cores(self) -> int:
        """As Genesis counts them: 128 in each multiprocessor (genesis.utils.misc.get_gpu_core_count)."""
        return 128 * self.multiprocessors


@functools.cache
def this_machine(device: str = "auto") -> Hardware:
    """What `device` (auto, cpu, cuda, cuda:N) is here, without torch: by NVML, and else the host."""
    return (device != "cpu" and _gpu(int(device.partition(":")[2] or 0))) or Hardware(
        name=cpu_name(),
        memory_mib=psutil.virtual_memory().total // MIB,
        compute_capability="cpu",
        multiprocessors=0,
    )


def visible_gpus() -> list[str]:
    """The GPUs that a process here may use, as CUDA_VISIBLE_DEVICES names them; by NVML, without torch."""
    try:
        import pynvml

        pynvml.nvmlInit()
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
        if chosen is None:
            return [str(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # no library, no driver
        return []
    return list(itertools.takewhile(_exists, map(str.strip, chosen.split(","))))  # as CUDA does


def free_bytes(device: str = "auto") -> int:
    """What can still be taken: of the host's memory, or of the GPU that has the least, of those that are visible."""
    gpus = [] if device == "cpu" else visible_gpus()
    if not gpus:
        return psutil.virtual_memory().available
    import pynvml

    return min(pynvml.nvmlDeviceGetMemoryInfo(_handle(gpu)).free for gpu in gpus)


def _handle(gpu: str) -> Any:
    import pynvml

    return pynvml.nvmlDeviceGetHandleByIndex(int(gpu)) if gpu.isdecimal() else pynvml.nvmlDeviceGetHandleByUUID(gpu)


def _exists(gpu: str) -> bool:
    try:
        _handle(gpu)
    except Exception:
        return False
    return True


def _gpu(index: int) -> Hardware | None:
    try:
        import pynvml

        handle = _handle(visible_gpus()[index])
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        return Hardware(
            name=pynvml.nvmlDeviceGetName(handle),
            memory_mib=pynvml.nvmlDeviceGetMemoryInfo(handle).total // MIB,
            compute_capability=f"{major}.{minor}",
            multiprocessors=pynvml.nvmlDeviceGetNumGpuCores(handle) // _cores_per_multiprocessor(major, minor),
        )
    except Exception:  # no library, no driver, no such device
        return None


def _cores_per_multiprocessor(major: int, minor: int) -> int:
    return 64 if (major, minor) in ((7, 0), (7, 2), (7, 5), (8, 0)) else 128
