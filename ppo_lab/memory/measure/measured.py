"""Predicted beside measured."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ppo_lab.config import ExperimentConfig
from ppo_lab.errors import ConfigError
from ppo_lab.memory.predict import calibration
from ppo_lab.memory.predict.calibration import MeasuredRun, Versions
from ppo_lab.memory.predict.hardware import Hardware
from ppo_lab.memory.rows import MIB, STANDS_FOR_A_RUN, tag
from ppo_lab.runs.config import read_experiment
from ppo_lab.runs.folder import RunFolder
from ppo_lab.runs.record import number, read


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
    """The figures of an estimate, as `table.as_json` gives it, by the names of the memory rows that measure them.

    Of all ranks together, as the rows are.
    """
    on_gpu = estimate["hardware"]["compute_capability"] != "cpu"
    device = estimate["device_bytes"]
    figures = {"allocated_peak": estimate["allocated_peak_bytes"]}
    if on_gpu:
        figures["reserved"] = estimate["reserved_peak_bytes"]
    else:  # a GPU's counters round up and know workspaces; a CPU's count is of the very same bytes
        figures |= {"rollout_peak": estimate["rollout_peak_bytes"], "update_peak": estimate["update_peak_bytes"]}
    if on_gpu and device and device["likely"] is not None:
        figures["process_device"] = device["likely"]
    host = estimate.get("host_bytes")
    if host and host["likely"] is not None:
        figures["host_peak_rss"] = host["likely"]
    return {name: _estimates_in(estimate) * size for name, size in figures.items() if size is not None}


def _estimates_in(estimate: Mapping[str, Any]) -> int:
    """How often the figures of an estimate are in those of the run: on GPUs they are of one rank."""
    on_gpu = estimate["hardware"]["compute_capability"] != "cpu"
    return estimate.get("processes", 1) if on_gpu else 1


def peak_row(predicted: Collection[str], measured: Collection[str]) -> str | None:
    """The first of STANDS_FOR_A_RUN that was both predicted and measured, or else measured; None where none was."""
    both = set(predicted) & set(measured)
    return next((name for names in (both, measured) for name in STANDS_FOR_A_RUN if name in names), None)


def as_json(comparison: Comparison) -> dict[str, Any]:
    return {**asdict(comparison), "error_percent": round(comparison.error_percent, 3)}


def compare(estimate: Mapping[str, Any], peak_mib: Mapping[str, float]) -> list[Comparison]:
    """The figures that were both predicted and measured. `peak_mib`: "Memory/..._mib" -> highest value."""
    return [
        Comparison(name, size, round(peak_mib[tag(name)] * MIB))
        for name, size in predicted_bytes(estimate).items()
        if tag(name) in peak_mib
    ]


@dataclass(frozen=True)
class FinishedRun:
    """What a run folder says of its memory."""

    cfg: ExperimentConfig
    hardware: Hardware
    manifest: Mapping[str, Any]
    peak_mib: dict[str, float]
    rows: list[dict[str, Any]]
    """One an iteration."""
    startup_s: float | None
    estimate: Mapping[str, Any] | None
    """The prediction that was made before the run."""


def read_run(folder: Path) -> FinishedRun:
    """Reads a run folder. Raises a ConfigError where it is none, or has measured nothing."""
    files = RunFolder(folder)
    cfg = read_experiment(files.config)
    for path in (files.manifest, files.metrics):
        if not path.is_file():
            raise ConfigError(f"run={folder} is not a run folder of train.py: {path.name} is missing.")
    record = read(folder)
    try:
        hardware = _hardware(record.manifest["machine"])
    except (LookupError, TypeError, ValueError, OverflowError):
        raise ConfigError(
            f"run={folder}: its manifest.json does not say on which machine it ran. Try a folder that train.py made."
        ) from None
    if not record.metrics:
        raise ConfigError(f"run={folder} has no iteration to compare with. Try a run that has finished one.")
    return FinishedRun(
        cfg,
        hardware,
        record.manifest,
        highest_mib(record.metrics),
        record.metrics,
        record.summary.get("startup_s"),
        record.estimate or None,
    )


def highest_mib(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The highest value of each "Memory/..._mib" in `rows`; what is no finite number does not count."""
    highest: dict[str, float] = {}
    for key, value in (item for row in rows for item in row.items() if item[0].startswith("Memory/")):
        if (mib := number(value)) is not None:
            highest[key] = max(mib, highest.get(key, mib))
    return highest


def overhead_bytes(run: FinishedRun, estimate: Mapping[str, Any]) -> int | None:
    """What the run held on its device beyond learner and simulator; None where that is not known.

    On a GPU, only what the driver counts for this very process: the device as a whole may have others' memory.
    """
    peak_bytes, known_bytes = _process_bytes(run), _known_bytes(estimate)
    return None if peak_bytes is None or known_bytes is None else peak_bytes - known_bytes


def measured_run(run: FinishedRun, estimate: Mapping[str, Any], is_cold: bool = False) -> MeasuredRun | None:
    """The run as a calibration keeps it. None where it lacks something: two iterations, or the process's memory.

    None of several ranks or scenes, either: calibrations are of one process with one scene.
    """
    if not calibration.is_of_such_runs(run.cfg):
        return None
    peak_bytes, known_bytes = _process_bytes(run), _known_bytes(estimate)
    times_s = [
        (row["Perf/collection_time"], row["Perf/learning_time"])
        for row in run.rows[1:]
        if row.get("Perf/collection_time") and row.get("Perf/learning_time")
    ]
    host_peak_mib = run.peak_mib.get(tag("host_peak_rss"))
    if peak_bytes is None or known_bytes is None or not times_s or host_peak_mib is None or run.startup_s is None:
        return None
    collection_s, learning_s = map(statistics.median, zip(*times_s, strict=True))
    return MeasuredRun(
        **asdict(calibration.workload(run.cfg)),
        started=run.manifest["started"],
        known_bytes=known_bytes,
        largest_freed_bytes=estimate.get("largest_freed_bytes") or 0,
        peak_bytes=peak_bytes,
        host_peak_bytes=round(host_peak_mib * MIB),
        startup_s=run.startup_s,
        collection_s=collection_s,
        learning_s=learning_s,
        is_cold=is_cold,
    )


def versions(run: FinishedRun) -> Versions:
    """Where the run was measured."""
    machine, packages = run.manifest["machine"], run.manifest["packages"]
    return Versions(
        device=run.hardware.name,
        cpu_cores=machine["cpu_cores"],
        driver=machine.get("driver"),
        python=".".join(packages["python"].split(".")[:2]),
        torch=packages["torch"].split("+")[0],
        genesis=packages["genesis-world"],
    )


def _process_bytes(run: FinishedRun) -> int | None:
    """The most that the run's process held of its device."""
    mib = run.peak_mib.get(tag("process_device" if run.hardware.is_gpu else "host_peak_rss"))
    return None if mib is None else round(mib * MIB)


def _known_bytes(estimate: Mapping[str, Any]) -> int | None:
    """Of learner and simulator, as predicted."""
    learner_bytes = estimate["reserved_peak_bytes"] or estimate["allocated_peak_bytes"]
    if learner_bytes is None or estimate["simulator_bytes"] is None:
        return None
    return _estimates_in(estimate) * (learner_bytes + estimate["simulator_bytes"])


def _hardware(machine: Mapping[str, Any]) -> Hardware:
    if "gpu" not in machine:
        return Hardware(machine["cpu"], round(machine["memory_gib"] * 1024), "cpu", 0)
    return Hardware(
        machine["gpu"],
        round(machine["gpu_memory_gib"] * 1024),
        machine["compute_capability"],
        machine["multiprocessors"],
    )
