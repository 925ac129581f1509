"""The cards that a run may be meant for."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

import psutil

from ppo_lab.config import setting
from ppo_lab.preflight import cpu_name

MIB = 2**20


@dataclass
class Hardware:
    """What of a device decides how much a run holds there, and whether it fits."""

    name: str = setting()
    memory_mib: int = setting(at_least=1)
    """The whole device, as nvidia-smi reports it; of a CPU, the host's memory."""
    compute_capability: str = setting(pattern=r"\d+\.\d|cpu")
    """Decides the size of cuBLAS workspaces."""
    multiprocessors: int = setting(at_least=0)
    """Decide how much scratch the simulator keeps."""

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


def _gpu(index: int) -> Hardware | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        chosen = visible.split(",")[index].strip() if visible else str(index)
        by_index = chosen.isdecimal()
        handle = (
            pynvml.nvmlDeviceGetHandleByIndex(int(chosen)) if by_index else pynvml.nvmlDeviceGetHandleByUUID(chosen)
        )
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
