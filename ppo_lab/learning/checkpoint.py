"""Checkpoints: what is saved, when, and never half.

`model_<iteration>.pt` holds the learner in rsl_rl's own keys: actor_state_dict, critic_state_dict,
optimizer_state_dict, iter, infos; and learning_rate; with `init.kl_coef` also reference_actor_state_dict, the policy
that the run began with. `state_<iteration>.pt` holds what else the coming iterations depend on, so that a run goes on
as if it had never stopped: iteration, best_reward, and env, episodes, random; of a run of several ranks these three
for each of them, in the list `ranks`.

Both are torch files, sealed with a checksum (`ppo_lab.runs.files.seal`), and `torch.load(path, weights_only=True)`
reads them, on a machine without a GPU too: their tensors are on the CPU.
"""

from __future__ import annotations

import copy
import hashlib
import io
import logging
import math
import pickle
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ppo_lab.contracts import State
from ppo_lab.errors import CheckpointError
from ppo_lab.runs.files import damage, numbered, seal, write_atomically
from ppo_lab.runs.folder import BEST, checkpoint_name, resumable

log = logging.getLogger(__name__)


class Evaluations(Protocol):
    """What is to be done with checkpoints while training goes on."""

    def is_due(self, iteration: int) -> bool: ...
    def add(self, iteration: int) -> None:
        """The checkpoint of `iteration` is on the disk."""
        ...


class Checkpoints:
    """The folder `checkpoints/` of a run: model_<iteration>.pt, state_<iteration>.pt of the newest, and best.pt.

    Files are compressed and written by a thread while training goes on: what is saved is serialized at once, the
    state first and the model last, so that an iteration whose model is there has its state too.
    """

    def __init__(
        self,
        folder: Path,
        save_interval: int,
        keep_state: int = 2,
        every_seconds: float | None = None,
        before_saving: Callable[[], None] = lambda: None,
        evaluations: Evaluations | None = None,
    ) -> None:
        """`before_saving` is called before each save, to flush the metrics that the checkpoint refers to.

        `evaluations` are told of each checkpoint that is on the disk, and say for which iterations they need one.
        """
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.save_interval = save_interval
        self.keep_state = keep_state
        self.every_seconds = every_seconds or math.inf
        self.best_reward = -math.inf
        self._before_saving = before_saving
        self._evaluations = evaluations
        self._best: State | None = None  # the model as `_held` has it, until it is on the disk
        self._saved_s = time.monotonic()
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def is_due(self, iteration: int) -> bool:
        is_needed = self._evaluations is not None and self._evaluations.is_due(iteration)
        is_late = time.monotonic() >= self._saved_s + self.every_seconds
        return iteration % self.save_interval == 0 or is_needed or is_late

    def maybe_save(
        self,
        iteration: int,
        model: Callable[[], State],
        state: State | None,
        reward: float | None,
        last: bool = False,
    ) -> None:
        """See `ppo_lab.contracts.CheckpointStore`.

        A new best is copied at once, and written along with the next checkpoint: in most iterations of a run that
        learns the best is new. A reward that is not finite is never the best.
        """
        is_best = reward is not None and self._is_best(reward)
        if reward is not None and is_best:
            self._best = _held(model())
            self.best_reward = reward
        if state is not None:
            self.wait()
            self._before_saving()
            content = _to_bytes(model())
            if last and self._best is None and not (self.folder / BEST).exists():
                self._best, is_best = _held(model()), True
            best = self._best
            files = {checkpoint_name("state", iteration): _to_bytes(state | {"best_reward": self.best_reward})}
            if best is not None:
                files[BEST] = content if is_best else _to_bytes(_released(best))
            files[checkpoint_name("model", iteration)] = content
            self._saved_s = time.monotonic()
            self._writing = self._writer.submit(self._write, iteration, files, best)
        if last:
            self.wait(must_succeed=True)

    def _is_best(self, reward: float) -> bool:
        """A best that is not finite, as there is none yet or an older version took one, is beaten by any that is."""
        return math.isfinite(reward) and (reward > self.best_reward or not math.isfinite(self.best_reward))

    def wait(self, must_succeed: bool = False) -> None:
        """Returns when nothing is being written any more. A write that failed is a warning, or a CheckpointError."""
        writing, self._writing = self._writing, None
        try:
            if writing:
                writing.result()
        except CheckpointError as error:
            if must_succeed:
                raise
            log.warning("%s; training goes on", error)

    def newest(self) -> int | None:
        """The newest iteration from which one can go on, None where there is none. Waits for what is being written."""
        self.wait()
        return max(resumable(self.folder), default=None)

    def write_best(self) -> None:
        """Writes the best so far, where it is not on disk yet and the disk takes it."""
        self.wait()
        if self._best is not None:
            try:
                self._write_file(BEST, _to_bytes(_released(self._best)))
                self._best = None
            except CheckpointError as error:
                log.warning("%s", error)

    def _write(self, iteration: int, files: dict[str, bytes], best: State | None) -> None:
        """`best`: what is in the file of the best."""
        for name, content in files.items():
            self._write_file(name, content)
            if name == BEST and self._best is best:
                self._best = None
        states = [path for number, path in numbered(self.folder, "state").items() if number <= iteration]
        for path in states[: -self.keep_state]:
            path.unlink()
        if self._evaluations:
            self._evaluations.add(iteration)

    def _write_file(self, name: str, content: bytes) -> None:
        try:
            _write_sealed(self.folder / name, content)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint {self.folder / name} was not written: {error.strerror}; those before it are intact"
            ) from error


class NoCheckpoints:
    """Keeps nothing. `ppo_lab.contracts.CheckpointStore` is the contract."""

    def is_due(self, iteration: int) -> bool:
        return False

    def maybe_save(self, *_: Any, **__: Any) -> None:
        pass


def rename_newer(folder: Path, after: int) -> None:
    """Appends `.old` to what an earlier attempt saved after iteration `after`; removes half-written files."""
    for name in ("model", "state"):
        for iteration, path in numbered(folder, name).items():
            if iteration > after:
                path.replace(path.with_name(f"{path.name}.old"))
    for path in folder.glob(".*.tmp"):
        path.unlink()


def save(path: Path, state: State) -> None:
    """Writes `state` to `path` in one stroke: a reader finds the old file or the new one, whole."""
    _write_sealed(path, _to_bytes(state))


def load(path: Path, sha256: str | None = None) -> State:
    """What was saved at `path`, on the CPU. Raises a CheckpointError, and runs nothing that the file might hold.

    `sha256`: of the file, where only one that is unchanged will do.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    wrong = damage(content)
    if not wrong and sha256 not in (None, hashlib.sha256(content).hexdigest()):
        wrong = "has just been changed"
    if wrong:
        raise CheckpointError(f"{path} {wrong}")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} holds more than tensors and plain data, and was not loaded") from error


def load_both(checkpoints: Path, iteration: int) -> tuple[State, State]:
    """Model and state as they were after `iteration`. Raises a CheckpointError."""
    model = load(checkpoints / checkpoint_name("model", iteration))
    state = load(checkpoints / checkpoint_name("state", iteration))
    for kind, found in (("model", model.get("iter")), ("state", state.get("iteration"))):
        if found != iteration:
            raise CheckpointError(f"{checkpoints / kind}_{iteration}.pt is of iteration {found}")
    return model, state


def _write_sealed(path: Path, archive: bytes) -> None:
    sealed = seal(archive)
    write_atomically(path, lambda file: file.write(sealed))


def _to_bytes(state: State) -> bytes:
    buffer = io.BytesIO()
    torch.save(_on_cpu(state), buffer)
    return buffer.getvalue()


def _on_cpu(state: State) -> State:
    return _mapped(state, Tensor, lambda tensor: tensor.cpu())


def _held(state: State) -> State:
    """A copy that later changes leave alone, and that holds no tensors: the memory log counts those of training."""
    return _mapped(state, Tensor, lambda tensor: tensor.cpu().numpy().copy())


def _released(state: State) -> State:
    """What `_held` was given, on the CPU."""
    return _mapped(state, np.ndarray, torch.from_numpy)


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """`value` with all in it that is of this kind changed. A state_dict keeps an attribute, its modules' versions."""
    match value:
        case dict():
            changed = copy.copy(value)
            changed.update({key: _mapped(item, kind, change) for key, item in value.items()})
            return changed
        case list() | tuple():
            return type(value)(_mapped(item, kind, change) for item in value)
    return change(value) if isinstance(value, kind) else value
