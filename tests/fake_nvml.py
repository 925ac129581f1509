"""A stand-in for the module pynvml, with the cards that `install` is given. Names and units are NVML's."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import ppo_lab.machine.devices

MIB = 2**20
CUDA_SAYS = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")


class NVMLError(Exception):
    """What NVML answers where it cannot."""


@dataclass(eq=False)
class Device:
    """A card, or a part of one."""

    uuid: str
    name: str = "NVIDIA GeForce RTX 4060"
    total_mib: int = 8188
    reserved_mib: int = 252
    free_mib: int = 7000
    capability: tuple[int, int] = (8, 9)
    multiprocessors: int = 24
    parts: list[Device] | None = None
    """In MIG mode; None: not."""
    processes: list[tuple[int, int]] = field(default_factory=list)
    """Number and bytes of each."""


def module(devices: list[Device] | None, has_v2: bool = True) -> ModuleType:
    """pynvml as it answers on a machine with these devices; None: without a driver."""
    known = {device.uuid: device for card in devices or () for device in (card, *(card.parts or ()))}
    nvml: Any = ModuleType("pynvml")

    def init() -> None:
        if devices is None:
            raise NVMLError("Driver Not Loaded")

    def at(index: int) -> Device:
        assert devices is not None
        return devices[index]

    def by_uuid(uuid: str) -> Device:
        if uuid not in known:
            raise NVMLError("Not Found")
        return known[uuid]

    def capability(device: Device) -> tuple[int, int]:
        if device.uuid.startswith("MIG-"):
            raise NVMLError("Not Supported")
        return device.capability

    def mig_mode(device: Device) -> list[int]:
        if device.capability < (8, 0):
            raise NVMLError("Not Supported")
        return [int(device.parts is not None)] * 2

    def part(device: Device, index: int) -> Device:
        if index >= len(device.parts or ()):
            raise NVMLError("Not Found")
        assert device.parts
        return device.parts[index]

    def cores(device: Device) -> int:
        if device.parts is not None or device.uuid.startswith("MIG-"):
            raise NVMLError("Not Supported")
        return device.multiprocessors * (64 if device.capability in ((7, 5), (8, 0)) else 128)

    def attributes(device: Device) -> SimpleNamespace:
        if not device.uuid.startswith("MIG-"):
            raise NVMLError("Not Supported")
        return SimpleNamespace(multiprocessorCount=device.multiprocessors)

    def memory(device: Device, version: int | None = None) -> SimpleNamespace:
        total, free = device.total_mib * MIB, device.free_mib * MIB
        if version is None:
            return SimpleNamespace(total=total, free=free, used=total - free)
        if not has_v2:
            raise NVMLError("Function Not Found")
        reserved = device.reserved_mib * MIB
        return SimpleNamespace(total=total, reserved=reserved, free=free, used=total - reserved - free)

    nvml.NVMLError = NVMLError
    nvml.NVML_DEVICE_MIG_ENABLE = 1
    nvml.nvmlMemory_v2 = 0x02000028
    nvml.nvmlInit = init
    nvml.nvmlSystemGetDriverVersion = lambda: "580.65.06"
    nvml.nvmlDeviceGetCount = lambda: len(devices or ())
    nvml.nvmlDeviceGetHandleByIndex = at
    nvml.nvmlDeviceGetHandleByUUID = by_uuid
    nvml.nvmlDeviceGetUUID = lambda device: device.uuid
    nvml.nvmlDeviceGetName = lambda device: device.name
    nvml.nvmlDeviceGetCudaComputeCapability = capability
    nvml.nvmlDeviceGetMigMode = mig_mode
    nvml.nvmlDeviceGetMaxMigDeviceCount = lambda device: 7
    nvml.nvmlDeviceGetMigDeviceHandleByIndex = part
    nvml.nvmlDeviceGetNumGpuCores = cores
    nvml.nvmlDeviceGetAttributes = attributes
    nvml.nvmlDeviceGetMemoryInfo = memory
    nvml.nvmlDeviceGetComputeRunningProcesses = lambda device: [
        SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in device.processes
    ]
    return nvml


def install(monkeypatch: pytest.MonkeyPatch, devices: list[Device] | None, has_v2: bool = True, **says: str) -> None:
    """Puts the stand-in in pynvml's place, and of CUDA's variables sets exactly those in `says`."""
    monkeypatch.setitem(sys.modules, "pynvml", module(devices, has_v2))
    for name in CUDA_SAYS:
        monkeypatch.setenv(name, "")  # so that what a test leaves there is taken back
        monkeypatch.delenv(name)
    for name, value in says.items():
        monkeypatch.setenv(name, value)
    forget()


def forget() -> None:
    """Lets the cards be looked for anew, as in a new process."""
    ppo_lab.machine.devices.card.cache_clear()
    ppo_lab.machine.devices._cards_by_torch.cache_clear()
