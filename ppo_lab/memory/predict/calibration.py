"""What no formula gives: the process without its tensors, a CUDA context with its kernels, and speed.

A calibration is a file of runs that were measured on one device with one set of versions; the models here are fitted to
them when they are read. `python estimate.py calibrate=true` measures, `run=FOLDER` adds a finished run. The user's own
calibrations are in the configuration folder (XDG_CONFIG_HOME), those that come with the package in `calibrations/`.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from ppo_lab.config import ExperimentConfig
from ppo_lab.errors import MachineError
from ppo_lab.machine import devices
from ppo_lab.machine.preflight import version_of
from ppo_lab.memory.predict.closed_form import parameters, saved_activations
from ppo_lab.memory.predict.host import MMAP_THRESHOLD_BYTES
from ppo_lab.runs.files import from_json, write_json

SHIPPED = Path(__file__).with_name("calibrations")
LEAST_MEMORY_MARGIN = 0.12
"""Of the whole: what malloc's holes and hundreds of iterations make of runs that are alike."""
LEAST_TIME_MARGIN = 0.15
"""Of the wall time: what equal runs on a shared machine differ by."""
MOST_RUNS = 64
"""That a calibration keeps, the newest."""


class Range(NamedTuple):
    """A figure that is not known to the last digit."""

    low: float
    likely: float
    high: float

    def around(self, known: float) -> Range:
        """The same beyond what is known."""
        return Range(*(known + value for value in self))


@dataclass(frozen=True)
class Versions:
    """What a measurement does not carry over from."""

    device: str
    """The card's name; a CPU's."""
    cpu_cores: int
    driver: str | None
    """Of a GPU."""
    python: str
    """Major and minor."""
    torch: str
    genesis: str


@dataclass(frozen=True)
class Workload:
    """What of an experiment decides how long an iteration takes."""

    env: str
    """See `env_of`."""
    num_envs: int
    num_steps_per_env: int
    mini_batches: int
    """In an iteration, of all epochs."""
    learned_transitions: int
    """In an iteration, of all epochs."""
    weights: int
    """Of both networks: multiplications for a transition in the forward pass."""
    units: int
    """Of the hidden layers of both networks."""
    mapped_bytes: int
    """Of activations in blocks that malloc maps anew each time, in an iteration: their pages come one by one."""


@dataclass(frozen=True)
class MeasuredRun(Workload):
    """One run, and what it took."""

    started: str
    """Tells runs apart."""
    known_bytes: int
    """Of the device's memory, by formulas, trace and counts."""
    largest_freed_bytes: int
    """Of the heap's blocks, see `ppo_lab.memory.predict.host`; 0 on a GPU."""
    peak_bytes: int
    """Of the device's memory, of this process; on a CPU its resident memory."""
    host_peak_bytes: int
    """Resident on the host."""
    startup_s: float
    collection_s: float
    """An iteration's, as the median after the first."""
    learning_s: float
    is_cold: bool = False
    """The simulator's kernels were compiled, which is done once on a machine."""


class _Size(NamedTuple):
    """What of a run decides what its process holds beyond the known."""

    env: str
    num_envs: int
    largest_freed_bytes: int


@dataclass(frozen=True)
class Calibration:
    """Runs that were measured on one device."""

    versions: Versions
    measured: str
    """The day of the newest."""
    source: str
    """How, and by whom."""
    runs: tuple[MeasuredRun, ...]

    def __str__(self) -> str:
        return f"{len(self.runs)} runs on {self.versions.device}, {self.measured}"

    def overhead_bytes(self, env: str, num_envs: int, known_bytes: int, largest_freed_bytes: int = 0) -> Range | None:
        """What a run of `env` holds beyond `known_bytes`. None where none of that env was measured."""
        return self._beyond("peak_bytes", "known_bytes", _Size(env, num_envs, largest_freed_bytes), known_bytes)

    def host_bytes(self, env: str, num_envs: int) -> Range | None:
        """What a run of `env` on a GPU holds on the host. None where none was measured."""
        return self._beyond("host_peak_bytes", None, _Size(env, num_envs, 0), 0)

    def wall_s(self, work: Workload, iterations: int) -> Range | None:
        """How long a run takes, start-up included. None where no run of that env was measured."""
        startup, iteration_s = self.startup_s(work.env), self.iteration_s(work)
        if startup is None or iteration_s is None:
            return None
        low_s, likely_s, high_s = (s + iterations * i for s, i in zip(startup, iteration_s, strict=True))
        return Range(low_s, likely_s, max(high_s, likely_s * (1 + LEAST_TIME_MARGIN)))

    def startup_s(self, env: str) -> Range | None:
        """From the command to the first iteration; `high` with the kernels to be compiled, where that was measured."""
        warm = [run.startup_s for run in self._warm() if run.env == env]
        every = [run.startup_s for run in self.runs if run.env == env]
        return Range(min(warm), median(warm), max(every)) if warm else None

    def iteration_s(self, work: Workload) -> Range | None:
        """Of collection and update."""
        runs = self._warm()
        envs = sorted({run.env for run in runs})
        if work.env not in envs:
            return None
        collection_s = _Model([_collection_terms(run, envs) for run in runs], [run.collection_s for run in runs])
        learning_s = _Model([_learning_terms(run) for run in runs], [run.learning_s for run in runs])
        fitted_s = [c + u for c, u in zip(collection_s.fitted, learning_s.fitted, strict=True)]
        off = [abs(fit / (run.collection_s + run.learning_s) - 1) for fit, run in zip(fitted_s, runs, strict=True)]
        margin = max(LEAST_TIME_MARGIN, *off)
        likely_s = collection_s.at(_collection_terms(work, envs)) + learning_s.at(_learning_terms(work))
        return Range(likely_s / (1 + margin), likely_s, likely_s * (1 + margin))

    def _warm(self) -> list[MeasuredRun]:
        return [run for run in self.runs if not run.is_cold]

    def _beyond(self, peak: str, known: str | None, like: _Size, known_bytes: int) -> Range | None:
        """What a process holds beyond the known: so much for its env, for each env, and for the heap's holes."""
        runs = self._warm()
        envs = sorted({run.env for run in runs})
        if like.env not in envs:
            return None

        def terms(size: _Size | MeasuredRun) -> list[float]:
            return [*(float(size.env == one) for one in envs), float(size.num_envs), float(size.largest_freed_bytes)]

        def beyond(run: MeasuredRun) -> int:
            return getattr(run, peak) - (getattr(run, known) if known else 0)

        peaks = [getattr(run, peak) for run in runs]
        model = _Model([terms(run) for run in runs], [beyond(run) for run in runs], peaks)
        off = (abs(fit - beyond(run)) / whole for fit, run, whole in zip(model.fitted, runs, peaks, strict=True))
        likely = model.at(terms(like))
        margin_bytes = max(LEAST_MEMORY_MARGIN, 2 * max(off)) * (known_bytes + likely)
        cold = (run for run in self.runs if run.is_cold and run.env == like.env)
        compiling_bytes = max((beyond(run) - model.at(terms(run)) for run in cold), default=0.0)
        return Range(max(0.0, likely - margin_bytes), likely, likely + margin_bytes + max(0.0, compiling_bytes))


def find(device: str) -> tuple[Calibration | None, list[str]]:
    """The calibration of `device` for the versions that are installed; and what to say of others, not used."""
    wanted = installed_versions(device, _driver_of(device))
    notes: list[str] = []
    for calibration in _all(notes):
        differs = _differences(calibration.versions, wanted)
        if calibration.versions.device == device and not differs:
            return calibration, []
        if calibration.versions.device == device:
            notes.append(f"the calibration of {calibration.measured} is not used: {', '.join(differs)}")
    return None, notes


def of_another_cpu() -> Calibration | None:
    """A CPU's calibration for these versions: what a process takes there is about what it takes on any."""
    for calibration in _all([]):
        versions = calibration.versions
        wanted = replace(installed_versions(versions.device), cpu_cores=versions.cpu_cores)
        if versions.driver is None and not _differences(versions, wanted):
            return calibration
    return None


def remember(versions: Versions, runs: Sequence[MeasuredRun], source: str, measured: str) -> Path:
    """Adds `runs` to the user's calibration; a run counts once. Returns its file."""
    file = folder() / f"{_file_name(versions)}.json"
    known = _read(file) if file.exists() else None
    if known is None:  # what comes with the package is where the user's own begins
        known = next((found for found in _all([]) if found.versions == versions), None)
    again = {run.started for run in runs}
    earlier = [run for run in known.runs if run.started not in again] if known else []
    sources = known.source.split("; ") if known else []
    kept = [*earlier, *runs][-MOST_RUNS:]
    write(file, Calibration(versions, measured, "; ".join(dict.fromkeys([*sources, source])), tuple(kept)))
    return file


def write(file: Path, calibration: Calibration) -> None:
    """As readable JSON; `find` reads it wherever it lies among the calibrations."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, asdict(calibration))


def folder() -> Path:
    """The user's own calibrations."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "ppo-lab" / "calibrations"


def installed(name: str) -> str:
    """The version of a package, without the suffix that tells builds apart."""
    return str(version_of(name)).split("+")[0]


def installed_versions(device: str, driver: str | None = None) -> Versions:
    """Of this machine, for `device`."""
    python = ".".join(platform.python_version_tuple()[:2])
    return Versions(device, os.cpu_count() or 1, driver, python, installed("torch"), installed("genesis-world"))


def _driver_of(device: str) -> str | None:
    """The driver of the card called `device`, where this machine has one."""
    try:
        is_here = any(card.name == device for card in devices.visible_cards())
    except MachineError:  # which of several cards is meant is not clear, and matters to a run alone
        return None
    return devices.driver_version() if is_here else None


def _differences(there: Versions, here: Versions) -> list[str]:
    """In what two sets of versions differ, in words. A driver that is not known here does not count."""
    return [
        f"{f.name.replace('_', ' ')} was {getattr(there, f.name)} and is {getattr(here, f.name)}"
        for f in fields(Versions)
        if getattr(there, f.name) != getattr(here, f.name) and not (f.name == "driver" and here.driver is None)
    ]


def _all(notes: list[str]) -> Iterator[Calibration]:
    """The user's own first. What cannot be read is noted."""
    for place in (folder(), SHIPPED):
        for file in sorted(place.glob("*.json")):
            if found := _read(file):
                yield found
            else:
                notes.append(f"{file} is not a calibration: not used")


def _read(file: Path) -> Calibration | None:
    try:
        content: dict[str, Any] = from_json(file.read_bytes())
        runs = tuple(MeasuredRun(**run) for run in content["runs"])
        numbers = [getattr(run, f.name) for run in runs for f in fields(run) if f.name not in ("started", "env")]
        if not runs or not all(isinstance(number, int | float) and 0 <= number < 2**63 for number in numbers):
            return None
        return Calibration(Versions(**content["versions"]), str(content["measured"]), str(content["source"]), runs)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _file_name(versions: Versions) -> str:
    words = (versions.device, f"{versions.cpu_cores} cores", versions.driver, "torch", versions.torch, versions.genesis)
    return re.sub(r"[^a-z0-9.]+", "_", " ".join(filter(None, words)).lower())


class _Model:
    """A sum of terms with non-negative factors, fitted by least squares of the relative errors."""

    def __init__(self, terms: list[list[float]], values: Sequence[float], scales: Sequence[float] = ()) -> None:
        """`terms`: of each run. `scales`: what each run's error is relative to; the values themselves by default."""
        import numpy as np
        from scipy.optimize import nnls

        matrix, target = np.array(terms, dtype=float), np.array(values, dtype=float)
        weight = 1 / np.maximum(np.array(scales or values, dtype=float), 1e-9)
        size = np.maximum(np.abs(matrix).max(axis=0), 1e-9)  # or nnls would meet numbers of very different sizes
        factors, _ = nnls(matrix / size * weight[:, None], target * weight)
        self._factors: list[float] = (factors / size).tolist()
        self.fitted: list[float] = [self.at(row) for row in terms]

    def at(self, terms: Sequence[float]) -> float:
        return sum(factor * term for factor, term in zip(self._factors, terms, strict=True))


def _collection_terms(work: Workload, envs: Sequence[str]) -> list[float]:
    steps, env_steps = work.num_steps_per_env, work.num_steps_per_env * work.num_envs
    of_env = [value for one in envs for value in ((steps, env_steps) if work.env == one else (0, 0))]
    return [*map(float, of_env), float(env_steps * work.weights)]


def _learning_terms(work: Workload) -> list[float]:
    transitions = work.learned_transitions
    terms = (work.mini_batches, transitions, transitions * work.weights, transitions * work.units, work.mapped_bytes)
    return [*map(float, terms)]


def env_of(cfg: ExperimentConfig) -> str:
    """What runs have in common that hold the same code: the env, and how the simulator compiles it."""
    return cfg.env.name + " in performance mode" * cfg.env.performance_mode


def is_of_such_runs(cfg: ExperimentConfig) -> bool:
    """Whether calibrations tell how long `cfg` takes, and learn from it: they are of one process with one scene."""
    return cfg.processes == 1 and len(cfg.scene_sizes) == 1


def workload(cfg: ExperimentConfig) -> Workload:
    """What of `cfg` decides how long an iteration takes."""
    mini_batches = cfg.algorithm.num_learning_epochs * cfg.algorithm.num_mini_batches
    saved = saved_activations(cfg)
    networks = (cfg.network.actor, cfg.network.critic)
    return Workload(
        env=env_of(cfg),
        num_envs=cfg.num_envs,
        num_steps_per_env=cfg.num_steps_per_env,
        mini_batches=mini_batches,
        learned_transitions=cfg.algorithm.num_learning_epochs * cfg.transitions,
        weights=sum(spec.elements for spec in parameters(cfg) if len(spec.shape) > 1),
        mapped_bytes=mini_batches * sum(spec.bytes for spec in saved if spec.bytes >= MMAP_THRESHOLD_BYTES),
        units=sum(sum(network.hidden_dims) for network in networks),
    )
