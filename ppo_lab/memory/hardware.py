"""The cards that a run may be meant for."""

from __future__ import annotations

from dataclasses import dataclass

from ppo_lab.config import setting

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
