"""Drives a robot with an exported policy: what it measures goes in, targets of its actuators come out.

Needs numpy and onnxruntime, and manifest.json and policy.onnx beside this file. `python run.py` replays example.npz.

    runner = Runner(folder)
    runner.reset()                      # before the first step, and whenever the robot starts anew
    targets = runner.act(sensors)       # every runner.dt_s seconds; sensors: {source: numbers}, see runner.terms

Nothing is delayed here: latency_steps in the manifest is the delay that the policy was trained with.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

try:
    import numpy as np
    import onnxruntime
    from numpy.typing import NDArray
except ImportError as missing:
    if __name__ != "__main__":
        raise
    sys.exit(f"error: {missing}; run: {sys.executable} -m pip install numpy onnxruntime")

Array = NDArray[np.float32]
Checked = TypeVar("Checked")

FORMAT = 1
"""Of the manifest. A key that is removed or means something else raises it."""
MANIFEST, POLICY, EXAMPLE = "manifest.json", "policy.onnx", "example.npz"
TOLERANCE = 1e-5
"""Largest difference, relative to the largest number of the vector, or absolute where that is below 1."""


class ExportError(ValueError):
    """A folder that cannot be used; the text says why."""


class Term(NamedTuple):
    """A part of the observation: clip((source - offset) * scale, -clip, clip), or the policy's own actions."""

    name: str
    source: str
    unit: str
    meaning: str
    scale: Array
    """(D,); offset too."""
    offset: Array
    clip: float | None
    actions_ago: int
    """1: the actions given last, 2: those before; 0: the term is measured."""


class Runner:
    """A policy with the actions that it has given. Takes one robot's numbers, (D,), or those of many, (N, D)."""

    def __init__(self, folder: Path | str) -> None:
        """Reads the manifest and the policy in `folder`. Raises an ExportError."""
        self.folder = Path(folder)
        self.manifest = content = _read_manifest(self.folder)
        self.dt_s = _at(content, _number, "dt_s")
        self.terms = [_term(content, number) for number in range(len(_at(content, _list, "observations")))]
        self.joints = _at(content, _texts, "actions", "joints")
        self.unit = _at(content, _text, "actions", "unit")
        self.default_pose = _at(content, _numbers(len(self.joints)), "actions", "default_pose")
        self.action_scale = np.float32(_at(content, _number, "actions", "action_scale"))
        self.clip_actions = np.float32(_at(content, _number, "actions", "clip_actions"))
        self.kp, self.kd = (_at(content, _optional(_number), "actions", name) for name in ("kp", "kd"))
        self.latency_steps = _at(content, _count, "actions", "latency_steps")
        self._session = _session(self.folder, content)
        self._check_widths()
        self._given: list[Array] = []
        self.reset()

    def reset(self, which: NDArray[np.bool_] | None = None) -> None:
        """Forgets the actions given. `which`: (N,) bool, of many robots those that start anew; None: all."""
        if which is None:
            self._given = [np.zeros(len(self.joints), np.float32)] * max(term.actions_ago for term in self.terms)
        else:
            self._given = [np.where(which[:, None], np.float32(0), actions) for actions in self._given]

    def act(self, sensors: Mapping[str, Any]) -> Array:
        """Targets of the joints, in their order and `unit`: (A,), or (N, A). Raises a ValueError.

        Numbers that are not finite are refused, as the targets would not be either.
        """
        observations = self.observe(sensors)
        if not np.isfinite(observations).all():
            wrong = [source for source, values in sensors.items() if not np.isfinite(values).all()]
            raise ValueError(f"not finite: {', '.join(wrong) or 'the actions given before'}")
        return self.targets(self.decide(observations))

    def observe(self, sensors: Mapping[str, Any]) -> Array:
        """The observation that the policy was trained on, (W,) or (N, W). Raises a ValueError."""
        parts = [self._part(term, sensors) for term in self.terms]
        lead = np.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return np.concatenate([np.broadcast_to(part, (*lead, part.shape[-1])) for part in parts], axis=-1)

    def decide(self, observations: Array) -> Array:
        """The policy's actions, clipped, (A,) or (N, A); they are remembered as given."""
        rows = observations.reshape(-1, observations.shape[-1])
        (raw,) = self._session.run(None, {self._session.get_inputs()[0].name: rows})
        actions = np.clip(raw, -self.clip_actions, self.clip_actions).reshape(*observations.shape[:-1], -1)
        self._given = [actions, *self._given][: len(self._given)]
        return actions

    def targets(self, actions: Array) -> Array:
        """What the actuators are told for `actions`, in `unit`."""
        return actions * self.action_scale + self.default_pose

    def _part(self, term: Term, sensors: Mapping[str, Any]) -> Array:
        if not term.actions_ago and term.source not in sensors:
            raise ValueError(f"sensors lack {term.source}: {term.meaning} ({term.unit}); {len(term.scale)} numbers")
        raw = self._given[term.actions_ago - 1] if term.actions_ago else np.asarray(sensors[term.source], np.float32)
        if raw.shape[-1:] != term.scale.shape:
            raise ValueError(f"{term.source} has the shape {raw.shape}; {len(term.scale)} numbers are needed")
        scaled = (raw - term.offset) * term.scale
        return scaled if term.clip is None else np.clip(scaled, np.float32(-term.clip), np.float32(term.clip))

    def _check_widths(self) -> None:
        width, count = sum(len(term.scale) for term in self.terms), len(self.joints)
        for term in self.terms:
            if term.actions_ago and len(term.scale) != count:
                raise _damaged(self.folder, f"{term.name} has {len(term.scale)} numbers for {count} actions")
        sides = self._session.get_inputs(), self._session.get_outputs()
        found = [[(side.type, side.shape[1:]) for side in part] for part in sides]
        if found != [[("tensor(float)", [width])], [("tensor(float)", [count])]]:
            raise _damaged(self.folder, f"{POLICY} does not take {width} numbers and give {count} actions")


class Differences(NamedTuple):
    """How far a replay is from what was recorded, see `difference`."""

    steps: int
    observations: float
    actions: float
    targets: float

    @property
    def agree(self) -> bool:
        return max(self.observations, self.actions, self.targets) <= TOLERANCE

    def __str__(self) -> str:
        return (
            f"{self.steps} recorded steps replayed: observations differ by {self.observations:.1e}, actions by "
            f"{self.actions:.1e}, targets by {self.targets:.1e} (allowed: {TOLERANCE:.0e})"
        )


def replay(folder: Path | str) -> Differences:
    """Gives a runner the sensors of example.npz, step by step, and compares. Raises an ExportError."""
    runner = Runner(folder)
    with np.load(io.BytesIO(_read(runner.folder, EXAMPLE, runner.manifest)), allow_pickle=False) as file:
        recorded = {name: file[name] for name in file.files}
    starts, sign = recorded["starts"], "sensors/"
    sensors = {name[len(sign) :]: values for name, values in recorded.items() if name.startswith(sign)}
    made: dict[str, list[Array]] = {"observations": [], "actions": [], "targets": []}
    for step, is_start in enumerate(starts):
        if is_start:
            runner.reset()
        made["observations"].append(runner.observe({name: values[step] for name, values in sensors.items()}))
        made["actions"].append(runner.decide(made["observations"][-1]))
        made["targets"].append(runner.targets(made["actions"][-1]))
    return Differences(len(starts), **{name: difference(made[name], recorded[name]) for name in made})


def difference(found: Any, expected: Any) -> float:
    """The largest |found - expected| of (N, D), each relative to the largest |expected| of its row, if that is above 1.

    A row's largest, not each number's own: a sum of large numbers that comes near 0 keeps their rounding errors.
    """
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    distance = np.abs(found - expected) / np.maximum(1.0, np.abs(expected).max(axis=-1, keepdims=True))
    return float(distance.max()) if np.isfinite(distance).all() else math.inf


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ExportError(f"{folder} is no exported folder: {MANIFEST}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, f"{MANIFEST} is no JSON: {error}") from None
    if not isinstance(content, dict) or "format" not in content:
        raise ExportError(f"{folder} is no exported folder: its {MANIFEST} has no format")
    if content["format"] != FORMAT:
        raise ExportError(
            f"{folder} is of another version: its format is {content['format']!r:.20}, this program reads {FORMAT}; "
            "export the run again"
        )
    return content


def _term(content: Mapping[str, Any], number: int) -> Term:
    where = "observations", number
    scale = _at(content, _numbers(), *where, "scale")
    return Term(
        name=_at(content, _text, *where, "name"),
        source=_at(content, _text, *where, "source"),
        unit=_at(content, _text, *where, "unit"),
        meaning=_at(content, _text, *where, "meaning"),
        scale=scale,
        offset=_at(content, _numbers(len(scale)), *where, "offset"),
        clip=_at(content, _optional(_number), *where, "clip"),
        actions_ago=_at(content, _count, *where, "actions_ago"),
    )


def _session(folder: Path, content: Mapping[str, Any]) -> onnxruntime.InferenceSession:
    """The policy, on one thread of the CPU."""
    model = _read(folder, POLICY, content)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own have no common class
        raise _damaged(folder, f"{POLICY} cannot be loaded: {error}") from None


def _read(folder: Path, name: str, content: Mapping[str, Any]) -> bytes:
    """The file that the manifest describes. Raises an ExportError where it is another, or damaged."""
    try:
        found = (folder / name).read_bytes()
    except OSError as error:
        raise _damaged(folder, f"{name}: {error.strerror}") from None
    if hashlib.sha256(found).hexdigest() != _at(content, _text, "files", name):
        raise _damaged(folder, f"{name} is not the file that {MANIFEST} describes")
    return found


def _damaged(folder: Path, why: str) -> ExportError:
    return ExportError(f"{folder}: {why}; export the run again, or copy the whole folder again")


def _at(content: Any, check: Callable[[Any], Checked], *keys: Any) -> Checked:
    """What the manifest has under `keys`, checked. Raises an ExportError."""
    where = ".".join(map(str, keys))
    for key in keys:
        try:
            content = content[key]
        except (KeyError, TypeError):
            raise ExportError(f"{MANIFEST} has no {where}; export the run again") from None
    try:
        return check(content)
    except ValueError as error:
        raise ExportError(f"{MANIFEST}: {where} is {content!r:.40}; needed: {error}") from None


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError("a list")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text")
    return value


def _texts(value: Any) -> list[str]:
    return [_text(item) for item in _list(value)]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:
        raise ValueError("a finite number")
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1000:
        raise ValueError("a whole number from 0 to 1000")
    return value


def _numbers(count: int | None = None) -> Callable[[Any], Array]:
    def check(value: Any) -> Array:
        numbers = np.array([_number(item) for item in _list(value)], np.float32)
        if count is not None and len(numbers) != count:
            raise ValueError(f"{count} numbers")
        return numbers

    return check


def _optional(check: Callable[[Any], Checked]) -> Callable[[Any], Checked | None]:
    return lambda value: None if value is None else check(value)


if __name__ == "__main__":
    try:
        replayed = replay(Path(__file__).resolve().parent)
    except ExportError as wrong:
        sys.exit(f"error: {wrong}")
    print(replayed, "agrees" if replayed.agree else "DIFFERS", sep=": ")
    sys.exit(0 if replayed.agree else 1)
