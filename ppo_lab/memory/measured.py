"""Predicted beside measured."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ppo_lab import command_line
from ppo_lab.config import ConfigError, ExperimentConfig
from ppo_lab.files import read_json, read_rows
from ppo_lab.memory.calibration import Overhead, remember
from ppo_lab.memory.hardware import MIB, Hardware

PEAKS = ("reserved", "device_used", "allocated_peak", "host_peak_rss")
"""The memory rows of which one stands for a run.

What the process itself reserved comes before the device as a whole, which jobs beside it share.
"""


@dataclass(frozen=True)
class Comparison:
    """One figure of a run."""

    name: str
    predicted_bytes: int
    measured_bytes: int

    @property
    def error_percent(self) -> float:
        """Positive where more was predicted than measured."""
        return 100 * (self.predicted_bytes / self.measured_bytes - 1)


def predicted_bytes(estimate: Mapping[str, Any]) -> dict[str, int]:
    """The figures of an estimate, as `render.as_json` gives it, by the names of the memory rows that measure them."""
    on_gpu = estimate["hardware"]["compute_capability"] != "cpu"
    device = estimate["device_bytes"]
    figures = {"allocated_peak": estimate["allocated_peak_bytes"]}
    if on_gpu:
        figures["reserved"] = estimate["reserved_peak_bytes"]
    else:  # a GPU's counters round up and know workspaces; a CPU's count is of the very same bytes
        figures |= {"rollout_peak": estimate["rollout_peak_bytes"], "update_peak": estimate["update_peak_bytes"]}
    if device and device["likely"] is not None:
        figures["device_used" if on_gpu else "host_peak_rss"] = device["likely"]
    return {name: size for name, size in figures.items() if size is not None}


def peak_row(predicted: Collection[str], measured: Collection[str]) -> str | None:
    """The first of PEAKS that was both predicted and measured, or else measured; None where none was."""
    both = set(predicted) & set(measured)
    return next((name for names in (both, measured) for name in PEAKS if name in names), None)


def as_json(comparison: Comparison) -> dict[str, Any]:
    return {**asdict(comparison), "error_percent": round(comparison.error_percent, 3)}


def compare(estimate: Mapping[str, Any], peak_mib: Mapping[str, float]) -> list[Comparison]:
    """The figures that were both predicted and measured. `peak_mib`: "Memory/..._mib" -> highest value."""
    return [
        Comparison(name, size, round(peak_mib[tag] * MIB))
        for name, size in predicted_bytes(estimate).items()
        if (tag := f"Memory/{name}_mib") in peak_mib
    ]


@dataclass(frozen=True)
class FinishedRun:
    """What a run folder says of its memory."""

    cfg: ExperimentConfig
    hardware: Hardware
    manifest: dict[str, Any]
    peak_mib: dict[str, float]
    estimate: dict[str, Any] | None
    """The prediction that was made before the run."""


def read_run(folder: Path) -> FinishedRun:
    """Reads a run folder. Raises a ConfigError where it is none, or has measured nothing."""
    cfg = command_line.read_experiment(folder / "config.yaml")
    for name in ("manifest.json", "metrics.jsonl"):
        if not (folder / name).is_file():
            raise ConfigError(f"run={folder} is not a run folder of train.py: {name} is missing.")
    manifest = read_json(folder / "manifest.json")
    try:
        hardware = _hardware(manifest["machine"])
    except (LookupError, TypeError, ValueError, OverflowError):
        raise ConfigError(
            f"run={folder}: its manifest.json does not say on which machine it ran. Try a folder that train.py made."
        ) from None
    rows = read_rows(folder)
    if not rows:
        raise ConfigError(f"run={folder} has no iteration to compare with. Try a run that has finished one.")
    return FinishedRun(cfg, hardware, manifest, highest_mib(rows), read_json(folder / "estimate.json") or None)


def highest_mib(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The highest value of each "Memory/..._mib" in `rows`; what is no finite number does not count."""
    highest: dict[str, float] = {}
    for tag, value in (item for row in rows for item in row.items() if item[0].startswith("Memory/")):
        if isinstance(value, int | float) and math.isfinite(value):
            highest[tag] = max(value, highest.get(tag, value))
    return highest


def learn_overhead(run: FinishedRun, estimate: Mapping[str, Any]) -> int | None:
    """Remembers what the run held on the device beyond the prediction, and returns it; None where that is not known."""
    known_bytes = estimate["reserved_peak_bytes"] or estimate["allocated_peak_bytes"]
    rows = ("process_device", "device_used") if run.hardware.is_gpu else ("host_peak_rss",)
    measured = [run.peak_mib[f"Memory/{row}_mib"] for row in rows if f"Memory/{row}_mib" in run.peak_mib]
    if known_bytes is None or estimate["simulator_bytes"] is None or not measured:
        return None
    overhead_bytes = round(measured[0] * MIB) - known_bytes - estimate["simulator_bytes"]
    packages = run.manifest["packages"]
    if overhead_bytes > 0:
        remember(
            Overhead(
                device=run.hardware.name,
                driver=run.manifest["machine"].get("driver"),
                torch=packages["torch"].split("+")[0],
                genesis=packages["genesis-world"],
                run=run.manifest["started"],
                overhead_bytes=overhead_bytes,
            )
        )
    return overhead_bytes


def _hardware(machine: Mapping[str, Any]) -> Hardware:
    if "gpu" not in machine:
        return Hardware(machine["cpu"], round(machine["memory_gib"] * 1024), "cpu", 0)
    return Hardware(
        machine["gpu"],
        round(machine["gpu_memory_gib"] * 1024),
        machine["compute_capability"],
        machine["multiprocessors"],
    )
