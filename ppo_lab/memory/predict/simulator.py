"""What the simulator and the env itself hold, as straight lines in the number of envs and of scenes.

Neither can be traced: the simulator allocates outside torch. An env is built on the CPU at two sizes and counted, and
the lines are checked on a third. The counts of the shipped envs come with the package (`simulator.json`), so that a
lookup needs neither torch nor the simulator; any other env is counted once in a subprocess and remembered in the
user's cache folder.

A count holds for one version of Genesis and for given values of `options`. Of the shipped envs' settings these change
the memory: max_collision_pairs (rows of the constraint solver), performance_mode (drops what this scene does not use)
and the terms of randomization. Time steps, substeps, poses, gains, ranges and scales do not.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ppo_lab import envs
from ppo_lab.config import INT32_MAX, ExperimentConfig, flat, split, to_json
from ppo_lab.envs.robots import asset
from ppo_lab.errors import MeasurementError
from ppo_lab.machine.preflight import version_of
from ppo_lab.memory.predict import cache
from ppo_lab.memory.predict.hardware import Hardware
from ppo_lab.memory.rows import MIB
from ppo_lab.runs.files import write_json

STORED = Path(__file__).with_name("simulator.json")
ENVS = Path(__file__).parents[2] / "envs"
SIZES = (64, 256, 100)
"""Numbers of envs: two for the line, one for its check."""
LINES = {
    "simulator_bytes": "",
    "gpu_simulator_bytes": "gpu_",
    "env_bytes": "env_",
    "step_peak_bytes": "step_peak_",
    "step_returned_bytes": "step_returned_",
}
"""Quantity as it is counted -> prefix of its line's fields in `SimulatorMemory`."""
RANDOM_STATE_BYTES = 20
STARTUP_SCRATCH_BYTES = 1 * MIB
PAGE_BYTES = 4096
POOL_GROWTH_BYTES = 32 * MIB
FIXED_BLOCK_BYTES = 2**30
"""What Quadrants takes once for all arrays where the driver has no memory pools, and cannot go beyond."""


@dataclass(frozen=True)
class SimulatorMemory:
    """Bytes held with N envs: of each quantity a constant for every scene, and a share of every env.

    The fields are of one scene; the methods are of all `scenes` that N envs are split into.

    On a GPU the simulator's collider keeps scratch for each of the GPU's cores, and less for each env. Those figures
    are the sizes that Genesis' own allocators give for a GPU, called on a CPU; no GPU has confirmed them yet. Left out
    is the stack that the driver reserves for the kernels, which nothing but a measurement tells.
    """

    constant_bytes: int
    per_env_bytes: int
    """The simulator's arrays on a CPU, outside torch."""
    gpu_constant_bytes: int
    gpu_per_env_bytes: int
    """The same on a GPU, without its threads' scratch."""
    gpu_thread_bytes: int
    """Scratch of each thread of the collider's first pass: as many whole times the envs as fill the cores."""
    gpu_core_bytes: int
    """Scratch of each core in the collider's second pass."""
    gpu_arrays: int
    """How many arrays these are; each is an allocation of its own."""
    env_constant_bytes: int
    env_per_env_bytes: int
    """The env's tensors between steps, the newest observations among them."""
    step_peak_constant_bytes: int
    step_peak_per_env_bytes: int
    """The most tensors within a step beyond those between steps, what the step returns included."""
    step_returned_constant_bytes: int
    step_returned_per_env_bytes: int
    """What a step returns beyond the tensors between steps."""
    misfit_bytes: int
    """The largest distance of a count from its line; 0 where the counts are exactly straight."""
    len_constraints: int
    """Rows that the constraint solver keeps for each env; 0 where nothing is simulated."""
    n_dofs: int
    known: str
    """How the figures are known."""
    env_once_bytes: int = 0
    """The part of `env_constant_bytes` that the simulator keeps once in a process, however many scenes there are."""
    observed_bytes: int = 0
    """Of all observation groups of one env, which several scenes hold twice: side by side, for the learner."""
    scenes: int = 1

    def sizes(self, num_envs: int) -> list[int]:
        """Envs in each scene."""
        return split(num_envs, self.scenes)

    def bytes(self, num_envs: int, hardware: Hardware) -> int:
        """What the simulator holds on `hardware`: its arrays, and on a GPU what it takes when it starts."""
        return self.array_bytes(num_envs, hardware) + startup_bytes(hardware)

    def array_bytes(self, num_envs: int, hardware: Hardware) -> int:
        """The simulator's arrays on `hardware`."""
        if not hardware.is_gpu:
            return self.scenes * self.constant_bytes + self.per_env_bytes * num_envs
        threads = sum(size * math.ceil(hardware.cores / size) for size in self.sizes(num_envs))
        core_bytes = self.gpu_constant_bytes + self.gpu_core_bytes * hardware.cores
        return self.scenes * core_bytes + self.gpu_per_env_bytes * num_envs + self.gpu_thread_bytes * threads

    def rounding_bytes(self, hardware: Hardware) -> int:
        """The most that a GPU's driver adds to the arrays: up to a page for each, and what its pool grows by at once.

        A bound, from how Quadrants allocates: each array is one cuMemAllocAsync. Nothing on a CPU, or without arrays.
        """
        arrays = self.scenes * self.gpu_arrays
        return arrays * PAGE_BYTES + POOL_GROWTH_BYTES if hardware.is_gpu and arrays else 0

    def env_bytes(self, num_envs: int) -> int:
        """The env's tensors between steps: of each scene, and the newest observations side by side."""
        of_scenes = self.scenes * (self.env_constant_bytes - self.env_once_bytes) + self.env_per_env_bytes * num_envs
        return self.env_once_bytes + of_scenes + (self.observed_bytes * num_envs if self.scenes > 1 else 0)

    def step_peak_bytes(self, num_envs: int) -> int:
        """What a step adds to `env_bytes` at its peak, while one scene steps and the earlier ones have returned."""
        peak_bytes = returned_bytes = 0
        for size in self.sizes(num_envs):
            within_bytes = self.step_peak_constant_bytes + self.step_peak_per_env_bytes * size
            peak_bytes = max(peak_bytes, returned_bytes + within_bytes)
            returned_bytes += self.step_returned_bytes(size)
        if self.scenes == 1:
            return peak_bytes
        return max(peak_bytes, returned_bytes + self.observed_bytes * num_envs + self.step_returned_bytes(num_envs))

    def step_peak_parts(self, num_envs: int) -> tuple[int, int]:
        """`step_peak_bytes` as a constant and a share of every env; of several scenes it is all in the constant."""
        per_env_bytes = self.step_peak_per_env_bytes if self.scenes == 1 else 0
        return self.step_peak_bytes(num_envs) - per_env_bytes * num_envs, per_env_bytes

    def step_returned_bytes(self, num_envs: int) -> int:
        """What a step leaves with its caller beyond `env_bytes`."""
        return self.step_returned_constant_bytes + self.step_returned_per_env_bytes * num_envs

    def max_num_envs(self) -> int:
        """The most envs that Genesis builds in one scene: its constraint Jacobian may have 2^31 - 1 elements."""
        return INT32_MAX // max(1, self.len_constraints * self.n_dofs)


def startup_bytes(hardware: Hardware) -> int:
    """What Quadrants takes of a GPU when it starts, scene or not: the states of its random generators, and scratch.

    20 B for each of 2 x 1024 threads of as many blocks as can be resident at once, used or not. From its source
    (quadrants/runtime/llvm/llvm_runtime_executor.cpp); no GPU has confirmed it yet. Nothing on a CPU.
    """
    if not hardware.is_gpu:
        return 0
    states = 2 * 1024 * hardware.multiprocessors * hardware.blocks_per_multiprocessor
    return RANDOM_STATE_BYTES * states + STARTUP_SCRATCH_BYTES


def simulator_memory(cfg: ExperimentConfig) -> SimulatorMemory | None:
    """What one rank of `cfg` holds for its env, counted before; None where it never was. Loads no torch, no Genesis."""
    settings = _settings(cfg)
    for found in itertools.chain(json.loads(STORED.read_text()), _remembered(cfg)):
        if found["genesis"] == version_of("genesis-world") and found["options"].items() <= settings.items():
            return _memory(found, cfg)
    return None


def _remembered(cfg: ExperimentConfig) -> Iterator[dict[str, Any]]:
    """The user's own count of `cfg`'s env, where there is one that can be read."""
    with contextlib.suppress(OSError, ValueError):
        yield json.loads(_cache_file(cfg).read_text())


def too_many_envs(cfg: ExperimentConfig) -> str | None:
    """Says so when Genesis would not build that many envs, however much memory there is."""
    counted = simulator_memory(cfg)
    if counted is None or max(cfg.scene_sizes) <= (most := counted.max_num_envs()):
        return None
    is_one_scene = cfg.processes == 1 and len(cfg.scene_sizes) == 1
    return (
        f"num_envs={cfg.num_envs} is more than the simulator builds of this env"
        f"{'' if is_one_scene else f' in one scene (envs_per_scene={cfg.envs_per_scene})'}, whose constraint Jacobian "
        f"may have {INT32_MAX:,} elements. Allowed: up to {'num_envs' if is_one_scene else 'envs_per_scene'}={most}."
    )


def measure(cfg: ExperimentConfig) -> SimulatorMemory:
    """Counts the memory of `cfg`'s env in a subprocess, and remembers it. Takes half a minute to several.

    Raises:
        MeasurementError: the env cannot be built.
    """
    counted = record(cfg, _settings(cfg), SIZES)
    file = _cache_file(cfg)
    with contextlib.suppress(OSError):  # it is counted again next time
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, counted)
    return _memory(counted, cfg)


def record(cfg: ExperimentConfig, options: Iterable[str], sizes: Sequence[int]) -> dict[str, Any]:
    """Counts the memory of `cfg`'s env; holds for every env with the same values of `options`, dotted keys."""
    settings = _settings(cfg)
    return {
        "genesis": version_of("genesis-world"),
        "options": {name: settings[name] for name in options},
        "count": count_in_subprocess(cfg, sizes),
    }


def _settings(cfg: ExperimentConfig) -> dict[str, Any]:
    """Of the env, by dotted keys; "randomization" are the terms."""
    return flat(asdict(cfg.env)) | {"randomization": list(cfg.env.randomization)}


def interpolate(counted: dict[str, Any], known: str) -> SimulatorMemory:
    """The straight lines through the first two sizes of what `count_in_subprocess` returns."""
    n0, n1, *_ = sizes = counted["num_envs"]
    lines: dict[str, int] = {}
    misfit_bytes = 0
    for name, prefix in LINES.items():
        totals = [sum(size.values()) if isinstance(size, dict) else size for size in counted[name]]
        slope = round((totals[1] - totals[0]) / (n1 - n0))
        constant = totals[0] - slope * n0
        lines |= {f"{prefix}constant_bytes": constant, f"{prefix}per_env_bytes": slope}
        misfits = (abs(total - constant - slope * n) for n, total in zip(sizes, totals, strict=True))
        misfit_bytes = max(misfit_bytes, *misfits)
    names = ("gpu_thread_bytes", "gpu_core_bytes", "gpu_arrays", "len_constraints", "n_dofs", "env_once_bytes")
    once = {name: counted[name] for name in names}
    return SimulatorMemory(**lines, **once, misfit_bytes=misfit_bytes, known=known)


def count_in_subprocess(cfg: ExperimentConfig, sizes: Sequence[int]) -> dict[str, Any]:
    """What `ppo_lab.probes.simulator` counts at `sizes`, in a subprocess. Raises a MeasurementError."""
    path = os.pathsep.join(filter(None, (str(ENVS.parent.parent), os.environ.get("PYTHONPATH"))))
    child = subprocess.run(
        [sys.executable, "-m", "ppo_lab.probes.simulator", *map(str, sizes)],
        input=to_json(cfg).encode(),
        capture_output=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    if child.returncode:
        said = child.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {child.returncode}"]
        raise MeasurementError(f"cannot count the memory of env.name={cfg.env.name}: {said[-1]}")
    return json.loads(child.stdout.splitlines()[-1])


def _memory(counted: dict[str, Any], cfg: ExperimentConfig) -> SimulatorMemory:
    found = interpolate(counted["count"], f"measured (arrays of an env built on a CPU, genesis {counted['genesis']})")
    spec = cfg.env.spec()
    observed_bytes = 4 * sum(spec.width(group) for group in spec.observations)
    return replace(found, observed_bytes=observed_bytes, scenes=len(cfg.scene_sizes))


def _cache_file(cfg: ExperimentConfig) -> Path:
    """Where the count of `cfg`'s env is remembered, by all its settings, the envs' code and the robot's asset."""
    digest = hashlib.sha256(json.dumps([version_of("genesis-world"), asdict(cfg.env)], sort_keys=True).encode())
    robot = getattr(cfg.env, "robot", None)
    assets = [asset(robot.urdf)] if robot else []
    for source in (*sorted(ENVS.rglob("*.py")), *envs.sources(cfg.env.name), *assets):
        if source.is_file():
            digest.update(source.read_bytes())
    return cache.folder() / f"simulator-{cfg.env.name}-{digest.hexdigest()[:16]}.json"
