"""What finished runs held beyond what can be predicted: the CUDA context, kernels, the process itself.

`python estimate.py run=<folder>` adds a line for each run; they stay in the user's cache folder.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from ppo_lab.files import to_json, write_text
from ppo_lab.memory.simulator import cache_folder


@dataclass(frozen=True)
class Overhead:
    """One run's measured bytes on the device less what is predicted to the byte."""

    device: str
    """The card's name; a CPU's."""
    driver: str | None
    torch: str
    genesis: str
    run: str
    """Tells runs apart: when it started."""
    overhead_bytes: int


def measured_overheads(device: str) -> tuple[int, ...]:
    """Of every run that was measured on such a device with the torch and Genesis that are installed."""
    torch, genesis = installed("torch"), installed("genesis-world")
    return tuple(o.overhead_bytes for o in _read() if (o.device, o.torch, o.genesis) == (device, torch, genesis))


def remember(overhead: Overhead) -> None:
    """Adds one; a run counts once."""
    others = [known for known in _read() if known.run != overhead.run]
    _file().parent.mkdir(parents=True, exist_ok=True)
    write_text(_file(), "".join(to_json(asdict(known)) + "\n" for known in [*others, overhead]))


def _read() -> list[Overhead]:
    if not _file().exists():
        return []
    return [Overhead(**json.loads(line)) for line in _file().read_text().splitlines()]


def _file() -> Path:
    return cache_folder() / "overheads.jsonl"


def installed(name: str) -> str:
    """The version of a package, without the suffix that tells builds apart."""
    return metadata.version(name).split("+")[0]
