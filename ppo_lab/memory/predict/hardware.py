"""The cards that a run may be meant for."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from ppo_lab.config import INT32_MAX, count, setting
from ppo_lab.machine import devices
from ppo_lab.machine.preflight import cpu_name
from ppo_lab.memory.rows import MIB as MIB

BLOCKS_PER_MULTIPROCESSOR = {"7.5": 16, "8.6": 16, "8.7": 16, "8.9": 24}
"""By compute capability, where it is not 32; 24 from 12.0 on (CUDA C++ Programming Guide, technical specifications)."""


@dataclass
class Hardware:
    """What of a device decides how much a run holds there, and whether it fits."""

    name: str = setting(pattern=r".+")
    memory_mib: int = count()
    """What CUDA may use, "total capacity" in torch's messages, which is less than nvidia-smi shows; or the host's."""
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


def this_machine(device: str = "auto") -> Hardware:
    """What `device` (auto, cpu, cuda, cuda:N) is here, without torch. Raises a MachineError where there is none."""
    return _hardware(devices.card(device))


def free_bytes(device: str = "auto") -> int:
    """What can still be taken of the memory that a run on `device` uses: of its card, or of the host's."""
    return _free_bytes(devices.card(device))


def fullest(device: str = "auto") -> tuple[Hardware, int]:
    """Of all that a sweep on `device` (auto, cpu, cuda) spreads over, what has the least free, and how many bytes."""
    cards = [] if device == "cpu" else devices.visible_cards()
    card = min(cards, key=devices.free_bytes, default=None)
    return _hardware(card), _free_bytes(card)


def _free_bytes(card: devices.Card | None) -> int:
    return devices.free_bytes(card) if card else psutil.virtual_memory().available


def _hardware(card: devices.Card | None) -> Hardware:
    if card is None:
        return Hardware(cpu_name(), psutil.virtual_memory().total // MIB, "cpu", 0)
    return Hardware(card.name, card.memory_bytes // MIB, card.compute_capability, card.multiprocessors)
