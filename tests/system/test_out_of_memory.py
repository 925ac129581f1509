"""A run that is out of memory is told so, whoever says it, with advice that does not count what the dead run held."""

from __future__ import annotations

import errno
import functools
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch

from ppo_lab.config import ExperimentConfig
from ppo_lab.envs import scenes
from ppo_lab.errors import SimulatorError
from ppo_lab.memory.measure.out_of_memory import free_memory_held_by, ran_out_of_memory
from ppo_lab.memory.predict.estimate import Span
from ppo_lab.memory.predict.hardware import Hardware
from ppo_lab.memory.rows import MIB
from ppo_lab.training import budget
from tests.forked_runs import Fault, ForkedRun

Experiment = Callable[..., ExperimentConfig]

CUDA_SAYS = (
    "[cuda_driver.h:operator()@92] CUDA Error CUDA_ERROR_OUT_OF_MEMORY: out of memory while calling malloc_async"
)
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.OutOfMemoryError("of some accelerator"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError(CUDA_SAYS),
    RuntimeError("Out of CUDA pre-allocated memory.\nConsider using ti.init(device_memory_fraction=0.9)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("mmap failed: Cannot allocate memory"),
]
OTHER = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("the saved state has no memory, which the env has"),
]


def raised(error: Exception, by: Exception | None = None) -> Exception:
    """`error` as it is caught, raised because of `by`."""
    try:
        raise error from by
    except Exception as caught:
        return caught


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_out_of_memory_is_recognised_from_every_source_and_every_cause(error: Exception) -> None:
    assert ran_out_of_memory(error)
    assert ran_out_of_memory(raised(SimulatorError("the simulator stopped"), by=raised(error)))
    other = KeyError("on the way out")
    other.__context__, other.__suppress_context__ = error, True  # as `from None` leaves it
    assert ran_out_of_memory(other)


@pytest.mark.parametrize("error", OTHER, ids=str)
def test_no_other_error_is_taken_for_out_of_memory(error: Exception) -> None:
    assert not ran_out_of_memory(raised(SimulatorError("the simulator stopped"), by=error))


@pytest.mark.xdist_group("simulator")
def test_an_error_of_genesis_is_out_of_memory_only_where_it_says_so() -> None:
    from genesis import GenesisException

    test_out_of_memory_is_recognised_from_every_source_and_every_cause(GenesisException("LLVM ERROR: out of memory"))
    test_no_other_error_is_taken_for_out_of_memory(GenesisException("Invalid constraint forces causing 'nan'."))


def test_the_tensors_of_failed_calls_are_freed() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def hold() -> None:
        rollout = torch.zeros(3)
        held.append(weakref.ref(rollout))
        raise RuntimeError("out of memory")

    def simulate() -> None:
        scene = torch.zeros(3)
        held.append(weakref.ref(scene))
        try:
            hold()
        except RuntimeError as error:
            raise SimulatorError("the simulator stopped") from error

    try:
        simulate()
    except SimulatorError as error:
        assert [reference() is None for reference in held] == [False, False]
        free_memory_held_by(error)
        assert [reference() is None for reference in held] == [True, True]


# What to try


CARD = Hardware("A card", 8192, "8.9", 24)


def predicted(needed_mib: int, simulator_mib: int) -> Any:
    return SimpleNamespace(
        hardware=CARD, device_bytes=Span(needed_mib * MIB, None, None), simulator_bytes=simulator_mib * MIB
    )


@pytest.mark.parametrize(
    ("at_start_mib", "now_mib", "available_mib"),
    [
        (8000, 500, 5500),  # another process has taken the rest
        (8000, 7000, 8000),  # the simulator was let go of as well
        (4000, 3900, 4000),
    ],
)
def test_available_is_the_memory_free_at_the_start_less_what_other_processes_took(
    at_start_mib: int, now_mib: int, available_mib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "available_bytes", lambda device: now_mib * MIB)
    found = budget.still_available_bytes("auto", predicted(9000, 5000), at_start_mib * MIB)
    assert found == available_mib * MIB


def test_a_run_predicted_not_to_fit_is_advised_what_fits(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, asked = experiment("env=go2"), []

    def what_fits(cfg: ExperimentConfig, card: Hardware, available_bytes: int) -> list[str]:
        asked.append(available_bytes)
        return ["num_envs=1536", "algorithm.num_mini_batches=32"]

    monkeypatch.setattr(budget, "_what_fits", what_fits)
    say = functools.partial(budget.advice_after, cfg, predicted(6000, 1000), 5000 * MIB)
    assert say(has_begun=True) == "Try num_envs=1536, or algorithm.num_mini_batches=32."
    assert say(has_begun=False) == "Try num_envs=1536."
    assert asked == [5000 * MIB] * 2


def test_a_run_without_a_right_prediction_is_advised_half_of_it(experiment: Experiment) -> None:
    cfg = experiment("env=go2", "num_envs=4096", "algorithm.num_mini_batches=4")
    for foreseen in (predicted(3000, 1000), None):
        assert budget.advice_after(cfg, foreseen, 5000 * MIB, True) == (
            "Try num_envs=2048, or algorithm.num_mini_batches=8."
        )
        assert budget.advice_after(cfg, foreseen, 5000 * MIB, False) == "Try num_envs=2048."
    odd = experiment("env=go2", "num_envs=9", "num_steps_per_env=5", "algorithm.num_mini_batches=3")
    assert budget.advice_after(odd, None, 0, True) == "Try num_envs=3, or algorithm.num_mini_batches=9."
    least = experiment("env=go2", "num_envs=1", "num_steps_per_env=4", "algorithm.num_mini_batches=4")
    assert budget.advice_after(least, None, 0, True) == "Try a smaller num_steps_per_env or network."


# Real runs


def by_the_simulator() -> NoReturn:
    try:
        raise RuntimeError(CUDA_SAYS)
    except RuntimeError as error:
        raise SimulatorError("the simulator stopped") from error


def by_torch() -> NoReturn:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def in_iteration(number: int, run_out: Callable[[], NoReturn]) -> Fault:
    """Calls `run_out` in the rollout of that iteration; then prints which tensors of the learner are alive."""
    return functools.partial(_run_out, number, run_out)


def _run_out(number: int, run_out: Callable[[], NoReturn]) -> None:
    from ppo_lab.learning.loop import Loop

    rollout, held = Loop._rollout, []

    def runs_out(self: Loop, num_steps: int) -> None:
        if self.next_iteration < number:
            return rollout(self, num_steps)
        held.extend([weakref.ref(self), weakref.ref(self.alg.storage.observations["policy"])])
        run_out()

    def available_bytes(device: str) -> int:
        if held:
            print("alive:", [reference() is not None for reference in held])
        return 2**33

    Loop._rollout = runs_out  # type: ignore[method-assign]
    budget.available_bytes = available_bytes


def while_building(text: str) -> Fault:
    return functools.partial(_build_nothing, text)


def _build_nothing(text: str) -> None:
    from genesis import GenesisException

    def make_env(*_: Any) -> Any:
        raise GenesisException(text)

    vars(scenes).update(make_env=make_env)


@pytest.mark.parametrize(("run_out", "says"), [(by_the_simulator, CUDA_SAYS), (by_torch, "Tried to allocate 2.00 GiB")])
def test_out_of_memory_in_an_iteration_ends_in_one_message_with_advice_frees_the_learner_and_keeps_the_checkpoints(
    run_out: Callable[[], NoReturn], says: str, tmp_path: Path
) -> None:
    run, errors = tmp_path / "run", tmp_path / "errors"
    overrides = ["experiment=smoke", "env=hover", "num_steps_per_env=48", "max_iterations=5", f"hydra.run.dir={run}"]
    forked = ForkedRun(overrides, tmp_path / "out", in_iteration(3, run_out), errors=errors)
    code, printed = forked.ends()
    assert code == 1, printed
    assert "alive: [False, False]\n" in printed
    assert len(errors.read_text().splitlines()) == 1, errors.read_text()
    assert (
        "error: out of memory in iteration 3; checkpoints are safe. Try num_envs=8, or algorithm.num"
        in errors.read_text()
    )
    assert says in (run / "train.log").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["iterations"]) == ("failed", 3)
    assert {path.name for path in (run / "checkpoints").iterdir()} >= {"model_2.pt", "state_2.pt", "best.pt"}
    assert ForkedRun([f"resume={run}"], tmp_path / "out").ends()[0] == 0


def test_a_simulator_that_runs_out_while_it_is_built_gets_the_same_advice(tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = ["experiment=smoke", "env=hover", f"hydra.run.dir={run}"]
    code, printed = ForkedRun(overrides, tmp_path / "out", while_building("Out of CUDA pre-allocated memory")).ends()
    assert code == 1, printed
    assert "Traceback" not in printed
    assert "error: out of memory while simulator and learner were built. Try num_envs=8. (more in" in printed
    assert "pre-allocated" in (run / "train.log").read_text()
    assert json.loads((run / "summary.json").read_text())["status"] == "failed"
