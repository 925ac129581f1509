"""Runs the learner, unmodified, on fake tensors, which have shapes and lifetimes but no memory.

A program: reads an experiment as JSON from stdin and prints the trace; its argument is the type of device.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from ppo_lab.config import ExperimentConfig
from ppo_lab.contracts import State, StepResult
from ppo_lab.learning.checkpoint import NoCheckpoints
from ppo_lab.learning.loop import Loop
from ppo_lab.learning.update import LeanUpdate
from ppo_lab.memory.measure.live_tensors import LiveTensors
from ppo_lab.memory.predict import trace
from ppo_lab.memory.predict.simulator import simulator_memory
from ppo_lab.memory.predict.trace import Allocation, DeviceType, Event, Free, Trace
from ppo_lab.runs.config import from_json

aten = torch.ops.aten
HOST_READS = {aten._local_scalar_dense.default, aten.item.default, aten.is_nonzero.default}
MATMULS = {
    *(aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.mv.default),
    *(aten.addmv.default, aten.dot.default, aten.linear.default, aten.matmul.default),
    *(aten.mm.out, aten.addmm.out, aten.addmm_.default),
}
"""What takes a cuBLAS handle. Inference mode dispatches the last two whole, where autograd sees `addmm` or `mm`."""
GATHERS = {aten.index.Tensor, aten.randperm.default}


class ZeroEnv:
    """Keeps the contract of `ppo_lab.contracts.Env`, with zeros: the shapes and lifetimes of an env, and no simulator.

    Where the env's own tensors have been counted, it holds as many bytes, between steps and within.
    """

    def __init__(
        self, cfg: ExperimentConfig, as_env: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    ) -> None:
        """`as_env` is entered around whatever is the env's."""
        self.cfg = cfg.env
        self.spec = cfg.env.spec()
        self.num_envs = cfg.num_envs
        self.device = torch.device("cpu")
        self._as_env = as_env
        with as_env():
            self.episode_length_buf = torch.zeros(cfg.num_envs, dtype=torch.int32)
            self._observations = self._new_observations()
            self._counted = counted = simulator_memory(cfg)
            if counted:
                held_bytes = sum(tensor.nbytes for tensor in (*self._observations.values(), self.episode_length_buf))
                rest_per_env_bytes = counted.env_per_env_bytes - held_bytes // cfg.num_envs
                constant_bytes = counted.env_bytes(cfg.num_envs) - counted.env_per_env_bytes * cfg.num_envs
                self._rest = self._blocks(constant_bytes, rest_per_env_bytes)

    def get_observations(self) -> TensorDict:
        return TensorDict(self._observations, batch_size=[self.num_envs], device=self.device)

    def step(self, actions: Tensor) -> StepResult:
        with self._as_env():
            if self._counted:  # comes and goes
                self._blocks(*self._counted.step_peak_parts(self.num_envs))
            self._observations = self._new_observations()
            return StepResult(
                self.get_observations(),
                rewards=torch.zeros(self.num_envs),
                dones=torch.zeros(self.num_envs, dtype=torch.bool),
                time_outs=torch.zeros(self.num_envs, dtype=torch.bool),
                episode_sums=torch.zeros(len(self.spec.rewards)),
            )

    def check(self) -> dict[str, float]:
        return {}

    def state(self) -> State:
        return {"observations": {group: tensor.clone() for group, tensor in self._observations.items()}}

    def restore(self, state: State) -> None:
        self._observations = dict(state["observations"])

    def _new_observations(self) -> dict[str, Tensor]:
        return {group: torch.zeros(self.num_envs, self.spec.width(group)) for group in self.spec.observations}

    def _blocks(self, constant_bytes: int, per_env_bytes: int) -> list[Tensor]:
        """So many bytes, in tensors as wide as the actions, the widest of an env's own; what is left over in the last.

        An allocator for a GPU serves them from other segments than one large block.
        """
        width_bytes = 4 * len(self.spec.actions)
        count, rest_bytes = divmod(per_env_bytes, width_bytes)
        sizes = [width_bytes * self.num_envs] * count + [constant_bytes + rest_bytes * self.num_envs]
        return [torch.zeros(size, dtype=torch.uint8) for size in sizes]


class Recorder(LiveTensors):
    """Writes down every storage that comes and goes, and answers what fake tensors cannot."""

    def __init__(self, device: torch.device, device_type: DeviceType = "cpu") -> None:
        """`device`: of the fake tensors. `device_type`: what is traced for."""
        super().__init__(device)
        self._device_type = device_type
        self._first_matmul: int | None = None  # events before
        self._events: list[int] = []  # a block that comes alive, or ~block when it goes
        self._sizes: list[int] = []
        self._categories: list[str] = []
        self._blocks: dict[int, int] = {}  # storage's key -> block
        self._category = "temporary"
        self._operation: Any = None

    def see_what_is_alive(self) -> None:
        """Nothing: what is not the learner's is not traced."""

    def perform(self, func: Any, args: Any, kwargs: Any) -> Any:
        self._operation = func
        if func in HOST_READS:
            return _answer(func, args[0])
        if func is aten.index.Tensor and args[1][0].dtype == torch.bool:  # the episodes that ended: none
            return args[0].new_empty(0)
        result = func(*args, **kwargs)
        if func in MATMULS and self._first_matmul is None:
            self._first_matmul = len(self._events)
        return result

    def allocated(self, key: int, size: int) -> None:
        block = len(self._sizes)
        self._blocks[key] = block
        self._sizes.append(size)
        self._categories.append("mini_batch" if self._operation in GATHERS else self._category)
        self._events.append(block)
        if self._operation is aten.randperm.default and self._device_type == "cuda":
            self._come_and_go(randperm_on_cuda_bytes(size))

    def _come_and_go(self, sizes: list[int]) -> None:
        """What an operation allocates and frees inside itself."""
        blocks = range(len(self._sizes), len(self._sizes) + len(sizes))
        self._sizes += sizes
        self._categories += ["temporary"] * len(sizes)
        self._events += [*blocks, *(~block for block in blocks)]

    def freed(self, key: int) -> None:
        self._events.append(~self._blocks.pop(key))

    @contextmanager
    def labelling(self, category: str) -> Iterator[None]:
        """What comes alive within is of this category."""
        before, self._category = self._category, category
        yield
        self._category = before

    def label(self, category: str, things: Any) -> None:
        """The tensors among `things`, whatever holds them, turn out to be of this category."""
        for block in self._blocks_of(things):
            self._categories[block] = category

    def label_saved(self, tensor: Tensor) -> Tensor:
        """Autograd saves `tensor` for the backward pass."""
        for block in self._blocks_of(tensor):
            if self._categories[block] == "temporary":
                self._categories[block] = "activations"
        return tensor

    def leave_out(self, things: Any) -> None:
        """The tensors among `things` would not be on the device."""
        for block in self._blocks_of(things):
            self._sizes[block] = 0

    def event_count(self) -> int:
        return len(self._events)

    def matmul_starts(self) -> list[int]:
        """Of the one thread that multiplies matrices: autograd's has none."""
        return [] if self._first_matmul is None else [self._first_matmul]

    def events(self) -> list[Event]:
        return [
            Allocation(number, self._sizes[number], self._categories[number]) if number >= 0 else Free(~number)
            for number in self._events
        ]

    def _blocks_of(self, things: Any) -> Iterator[int]:
        for tensor in tree_leaves(things):
            if isinstance(tensor, Tensor):
                block = self._blocks.get(tensor.untyped_storage()._cdata)
                if block is not None:
                    yield block


class Phases:
    """Notes between which events each phase lies, and where the iteration ends."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.marks: dict[str, tuple[int, int]] = {}
        self.end = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = self._recorder.event_count()
        yield
        self.marks[name] = (start, self._recorder.event_count())

    def scalars(self) -> dict[str, float]:
        self.end = self._recorder.event_count()
        return {}


def run(cfg: ExperimentConfig, device_type: DeviceType) -> Trace:
    """Traces in this process: the second iteration, when the optimizer has its state and the first has left its mark.

    The first makes do with one step and one epoch. What is changed in torch is put back.
    """
    recorder = Recorder(torch.device("cpu"), device_type)
    saving = saved_tensors_hooks(recorder.label_saved, lambda saved: saved)
    with _modules_stay(), FakeTensorMode(), recorder, saving:
        env = ZeroEnv(cfg, as_env=lambda: recorder.labelling("env"))
        phases = Phases(recorder)
        loop = Loop(env, cfg, phases, NoCheckpoints(), report=lambda *_: None)
        alg, update = loop.alg, loop.update
        assert isinstance(update, LeanUpdate)
        is_fused = "fused" in alg.optimizer.defaults

        def label(*_: Any) -> None:
            recorder.label("env", env.episode_length_buf)
            recorder.label("storage", vars(alg.storage))
            recorder.label("episodes", vars(loop.episodes))
            for model in (alg.actor, alg.critic):
                recorder.label("parameters", [*model.parameters(), *model.buffers()])
                recorder.label("gradients", [parameter.grad for parameter in model.parameters()])
            if loop.reference:
                actor = loop.reference.actor
                recorder.label("parameters", [*actor.parameters(), *actor.buffers()])
                recorder.label("activations", loop.reference.perceptron.buffers)
            recorder.label("optimizer", dict(alg.optimizer.state))
            recorder.label("activations", loop.networks.buffers)
            if device_type == "cuda" and not is_fused:
                recorder.leave_out([state.get("step") for state in alg.optimizer.state.values()])

        alg.optimizer.register_step_pre_hook(label)
        alg.optimizer.register_step_post_hook(label)
        if device_type == "cuda" and not is_fused:
            for group in alg.optimizer.param_groups:
                group["foreach"] = True
        alg.train_mode()
        update.num_learning_epochs = 1
        loop.iterate(1, update)
        update.num_learning_epochs = cfg.algorithm.num_learning_epochs
        loop.iterate(cfg.num_steps_per_env, update)
        label()
        events = recorder.events()[: phases.end]
    return trace.summarize(events, phases.marks["rollout"], phases.marks["update"], recorder.matmul_starts())


def randperm_on_cuda_bytes(result_bytes: int) -> list[int]:
    """What torch.randperm holds on a GPU beside its result, of int64 (ATen/native/cuda/Randperm.cu).

    A range, random keys and sorted keys, and what CUB's radix sort takes, which is keys and values once more; its
    counters, some kilobytes, are left out. Keys are of 64 bits here whatever their number, so that sizes grow along
    straight lines: torch takes 32 bits for up to 30,083 transitions, and a third less.
    """
    return [result_bytes, result_bytes, result_bytes, 2 * result_bytes]


@contextmanager
def _modules_stay() -> Iterator[None]:
    """Keeps modules from moving to a device: fake parameters refuse to be swapped, and are there already."""
    move = nn.Module.to
    nn.Module.to = lambda module, *_, **__: module  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.to = move  # type: ignore[method-assign]


def _answer(read: Any, tensor: Tensor) -> bool | int | float:
    """A number for the host where a fake tensor has none: losses are finite, an episode has ended, nothing is true."""
    if tensor.dtype == torch.bool or read is aten.is_nonzero.default:
        return False
    return 0.1 if tensor.is_floating_point() else 1


if __name__ == "__main__":
    gc.disable()  # a tenth of the time; what is traced goes by reference counts
    print(trace.to_json(run(from_json(sys.stdin.read()), "cuda" if sys.argv[1] == "cuda" else "cpu")))
