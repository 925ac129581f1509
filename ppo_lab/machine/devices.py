"""Which cards there are, and which one a run takes. NVML says it, or else torch in a process of its own.

A card's number is the one that nvidia-smi gives it. The simulator's engine takes CUDA's first device whatever it is
told, so CUDA is made to show a run only its card. CUDA reads its variables once, when it is first asked.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppo_lab.errors import MachineError

if TYPE_CHECKING:
    import torch

VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
BY_BUS = "PCI_BUS_ID"
"""The order of nvidia-smi's numbers. CUDA's own default is the fastest card first."""
DRIVER_FILES = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/dxg")
"""One of them is there where a driver is: of a PC or server, of a Jetson, of Windows under WSL."""
ASK_TORCH = """
import json, torch
rows = []
for index in range(torch.cuda.device_count()):
    card = torch.cuda.get_device_properties(index)
    rows.append({
        "uuid": f"GPU-{card.uuid}" if hasattr(card, "uuid") else None,
        "name": card.name,
        "memory_bytes": card.total_memory,
        "free_bytes": torch.cuda.mem_get_info(index)[0],
        "compute_capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
    })
print(json.dumps(rows))
"""


@dataclass(frozen=True)
class Card:
    """A card, or one part of a card in MIG mode, that CUDA may show a process."""

    identifier: str
    """What leaves it alone visible as CUDA_VISIBLE_DEVICES: its UUID, or what stood there where NVML is silent."""
    number: str
    """As nvidia-smi has it: 0, and 0:1 for a part."""
    uuid: str | None
    name: str
    memory_bytes: int
    """What CUDA may use: less than nvidia-smi's total, of which the driver keeps some."""
    free_bytes: int
    """When it was asked for."""
    compute_capability: str
    multiprocessors: int

    def __str__(self) -> str:
        return f"{self.name} ({self.uuid or self.number})"


def visible_cards() -> list[Card]:
    """The cards that a process of this environment may use, in the order of cuda:0, cuda:1, ...

    Raises:
        MachineError: numbers could mean other cards than nvidia-smi's.
    """
    visible, order = os.environ.get(VISIBLE), os.environ.get(ORDER)
    if visible is not None and not visible.strip():
        return []
    cards = _cards_by_nvml()
    if cards is None:
        has_driver = any(Path(name).exists() for name in DRIVER_FILES)
        return list(_cards_by_torch(visible, order or BY_BUS)) if has_driver else []
    names = {part.name for parts in cards for part in parts}
    has_numbers = visible is None or any(entry.strip().isdecimal() for entry in visible.split(","))
    if order == "FASTEST_FIRST" and has_numbers and len(cards) > 1 and len(names) > 1:
        raise MachineError(
            f"{ORDER}={order} with different cards ({', '.join(sorted(names))}): a number may mean another card than "
            f"nvidia-smi's; unset {ORDER}, or name cards by the UUIDs that nvidia-smi -L prints: {VISIBLE}=GPU-..."
        )
    return [part for parts in cards for part in parts] if visible is None else _named(visible, cards)


@functools.cache
def card(device: str) -> Card | None:
    """The card that `device` (auto, cpu, cuda, cuda:N) means; None: the CPU.

    Asked once, as taking one hides the others. Raises a MachineError where there is no such card.
    """
    cards = [] if device == "cpu" else visible_cards()
    index = int(device.partition(":")[2] or 0)
    if index < len(cards):
        return cards[index]
    if not device.startswith("cuda"):
        return None
    allowed = ", ".join(["auto", "cpu", *(f"cuda:{i}" for i in range(len(cards)))])
    left = f"with {VISIBLE}={os.environ[VISIBLE]} " if VISIBLE in os.environ else ""
    raise MachineError(f"device={device}: this machine has {len(cards)} CUDA GPUs {left}to take; allowed: {allowed}.")


def take(device: str) -> Card | None:
    """Hides all cards but the one that `device` means, which is cuda:0 from then on; for a CPU, all.

    To be called before anything asks CUDA. Raises a MachineError where there is no such card.
    """
    taken = card(device)
    if taken or device == "cpu":
        os.environ.update(alone(taken))
    return taken


def environments(device: str, ranks: int) -> list[dict[str, str]]:
    """What shows each of so many ranks of this machine a card of its own; nothing where they compute on the CPU.

    To be asked before a card is taken; it may be asked again then. Raises a MachineError where there are too few cards.
    """
    if card(device) is None:
        return [{} for _ in range(ranks)]
    try:
        cards = [card(f"cuda:{index}") for index in range(ranks)] if ":" not in device else []
    except MachineError as error:
        raise MachineError(f"processes={ranks}: each rank takes a GPU of its own. {error}") from None
    if not cards and ranks > 1:
        raise MachineError(
            f"processes={ranks}: each rank takes a GPU of its own, and device={device} is one. Try device=cuda."
        )
    return [alone(one) for one in cards] or [{}]


def of_rank(device: str, index: int) -> str:
    """The device of a rank for which auto and cuda mean the card of number `index` among the visible ones."""
    return f"cuda:{index}" if index and device in ("auto", "cuda") and visible_cards() else device


def alone(card: Card | None) -> dict[str, str]:
    """The variables by which CUDA shows a process this card alone; None: no card."""
    return {VISIBLE: card.identifier, ORDER: os.environ.get(ORDER, BY_BUS)} if card else {VISIBLE: ""}


def resolve_device(name: str) -> torch.device:
    """Takes the device called `name` (auto, cpu, cuda or cuda:N), as torch then calls it: cpu or cuda:0.

    Raises a MachineError where there is none that torch can use.
    """
    taken = take(name)
    import torch

    if name != "cpu" and torch.cuda.is_available():
        return torch.device("cuda:0")
    if name.startswith("cuda"):
        raise MachineError(
            f"device={name}: torch {torch.__version__} cannot use {taken}; needed: torch's CUDA build, and a driver "
            f'as new; to see what is wrong: {sys.executable} -c "import torch; torch.cuda.init()"; allowed: auto, cpu.'
        )
    return torch.device("cpu")


def free_bytes(card: Card) -> int:
    """What is free of it now, in the terms of `memory_bytes`, without a CUDA context; where NVML is silent, before."""
    nvml = _nvml()
    if nvml is None:
        return card.free_bytes
    try:
        return int(_memory(nvml, nvml.nvmlDeviceGetHandleByUUID(card.identifier)).free)
    except nvml.NVMLError:
        return card.free_bytes


def reader_of_process_bytes(index: int) -> Callable[[], int | None] | None:
    """A function that asks NVML what this process holds on cuda:`index`; None where NVML does not answer.

    The function gives None where NVML does not know the process: in a container it has the host's process numbers.
    """
    nvml = _nvml()
    if nvml is None:
        return None
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(visible_cards()[index].identifier)
    except (IndexError, MachineError, nvml.NVMLError):
        return None

    def process_bytes() -> int | None:
        try:
            processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except nvml.NVMLError:
            return None
        return next((process.usedGpuMemory for process in processes if process.pid == os.getpid()), None)

    return process_bytes


def driver_version() -> str | None:
    """The NVIDIA driver's; None where NVML does not answer."""
    nvml = _nvml()
    return nvml.nvmlSystemGetDriverVersion() if nvml else None


def _nvml() -> Any | None:
    """NVML's functions, ready to be called; None where it does not answer."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no module, no library, no driver
        return None
    return pynvml


def _cards_by_nvml() -> list[list[Card]] | None:
    """Every card by nvidia-smi's number, in parts where it is in MIG mode; None where NVML does not tell."""
    nvml = _nvml()
    if nvml is None:
        return None
    try:
        return [_parts(nvml, number) for number in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return None


def _parts(nvml: Any, number: int) -> list[Card]:
    handle = nvml.nvmlDeviceGetHandleByIndex(number)
    capability = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    try:
        is_in_parts = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError:  # a card without such a mode
        is_in_parts = False
    if not is_in_parts:
        cores = nvml.nvmlDeviceGetNumGpuCores(handle)
        return [_card(nvml, handle, str(number), capability, cores // _cores_per_multiprocessor(*capability))]
    parts = []
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        except nvml.NVMLError:  # the card is in fewer parts than it could be
            continue
        multiprocessors = nvml.nvmlDeviceGetAttributes(part).multiprocessorCount
        parts.append(_card(nvml, part, f"{number}:{index}", capability, multiprocessors))
    return parts


def _card(nvml: Any, handle: Any, number: str, capability: tuple[int, int], multiprocessors: int) -> Card:
    uuid, memory = nvml.nvmlDeviceGetUUID(handle), _memory(nvml, handle)
    return Card(
        identifier=uuid,
        number=number,
        uuid=uuid,
        name=nvml.nvmlDeviceGetName(handle),
        memory_bytes=memory.total - getattr(memory, "reserved", 0),
        free_bytes=memory.free,
        compute_capability=".".join(map(str, capability)),
        multiprocessors=multiprocessors,
    )


def _memory(nvml: Any, handle: Any) -> Any:
    """total, free and, where the driver is not too old to tell, reserved: what nobody can have. In bytes."""
    try:
        return nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2)
    except nvml.NVMLError:
        return nvml.nvmlDeviceGetMemoryInfo(handle)


def _cores_per_multiprocessor(major: int, minor: int) -> int:
    return 64 if (major, minor) in ((7, 0), (7, 2), (7, 5), (8, 0)) else 128


def _named(visible: str, cards: Sequence[Sequence[Card]]) -> list[Card]:
    """The cards that CUDA_VISIBLE_DEVICES=`visible` leaves, as CUDA reads it: it ends at an entry that names none.

    An entry is a number, which of a card in MIG mode means the first part, or as much of a UUID as one card alone has.
    Of a list that names a card twice nothing is left.
    """
    found: list[Card] = []
    for entry in map(str.strip, visible.split(",")):
        if entry.isdecimal():
            named = list(cards[int(entry)][:1]) if int(entry) < len(cards) else []
        else:
            is_uuid = entry.startswith(("GPU-", "MIG-"))
            named = [part for parts in cards for part in parts if is_uuid and part.identifier.startswith(entry)]
        if len(named) != 1:
            break
        if named[0] in found:
            return []
        found += named
    return found


@functools.cache
def _cards_by_torch(visible: str | None, order: str) -> tuple[Card, ...]:
    """The cards that CUDA shows with these variables, by their visible or, where there are none, by their numbers.

    What is free is without the context of the process that asked.
    """
    try:
        answer = subprocess.run(
            [sys.executable, "-c", ASK_TORCH],
            capture_output=True,
            check=True,
            text=True,
            timeout=120,
            env=os.environ | {ORDER: order},
        ).stdout
        rows = json.loads(answer)
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()
    names = [str(number) for number in range(len(rows))] if visible is None else visible.split(",")
    return tuple(
        Card(identifier=name, number=name, **row) for name, row in zip(map(str.strip, names), rows, strict=False)
    )
