"""A driver without memory pools, as a fake libcuda has it: the simulator then has one block, and not every run fits."""

import ctypes
import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from ppo_lab.config import ExperimentConfig
from ppo_lab.errors import ConfigError, OverBudgetError
from ppo_lab.memory.predict import driver
from ppo_lab.memory.predict.estimate import Estimate
from ppo_lab.memory.predict.hardware import Hardware
from ppo_lab.memory.predict.simulator import simulator_memory
from ppo_lab.training import budget

Experiment = Callable[..., ExperimentConfig]
VGPU = Hardware("GRID A100-40C", 40 * 1024, "8.0", 108)


class Libcuda:
    """Answers as the driver API does: 0 for success, and what was asked through the pointer."""

    def __init__(self, memory_pools: int, status: int = 0) -> None:
        self.memory_pools, self.status = memory_pools, status
        self.asked: list[int] = []

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        device._obj.value = 7
        return 0 if ordinal == 0 else 101

    def cuDeviceGetAttribute(self, answer: Any, attribute: int, device: ctypes.c_int) -> int:
        self.asked.append(attribute)
        answer._obj.value = self.memory_pools
        return 0 if device.value == 7 else 101


def install(monkeypatch: pytest.MonkeyPatch, libcuda: Libcuda) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: {"libcuda.so.1": libcuda}[name])


@pytest.mark.parametrize(("answer", "has"), [(1, True), (0, False)])
def test_the_driver_is_asked_for_memory_pools(answer: int, has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    libcuda = Libcuda(answer)
    install(monkeypatch, libcuda)
    assert driver.has_memory_pools() is has
    assert libcuda.asked == [115]


def test_a_driver_that_is_missing_or_fails_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Libcuda(0, status=100))  # CUDA_ERROR_NO_DEVICE
    assert driver.has_memory_pools() is None

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert driver.has_memory_pools() is None


@pytest.fixture
def unpredicted(monkeypatch: pytest.MonkeyPatch) -> Future[Estimate]:
    """An estimate that fails, on such a card: what is left is the check of the simulator's block."""
    monkeypatch.setattr(budget, "this_machine", lambda device: VGPU)
    estimated: Future[Estimate] = Future()
    estimated.set_exception(ConfigError("not asked for"))
    return estimated


def test_a_simulator_larger_than_the_one_block_is_refused_with_the_most_envs_that_it_holds(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, unpredicted: Future[Estimate]
) -> None:
    install(monkeypatch, Libcuda(memory_pools=0))
    cfg = experiment("env=go2")
    with pytest.raises(OverBudgetError, match="one block of 1,024 MiB") as refused:
        budget.check_budget(cfg, unpredicted, free_bytes=2**40, on_gpu=True)
    most = int(str(refused.value).partition("Try num_envs=")[2].partition(",")[0])
    counted = simulator_memory(cfg)
    assert counted
    assert counted.array_bytes(most, VGPU) <= 2**30 < counted.array_bytes(most + 1, VGPU)
    budget.check_budget(experiment("env=go2", f"num_envs={most}"), unpredicted, free_bytes=2**40, on_gpu=True)


def test_the_most_envs_leave_whole_mini_batches(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, unpredicted: Future[Estimate]
) -> None:
    install(monkeypatch, Libcuda(memory_pools=0))
    cfg = experiment("env=go2", "num_steps_per_env=3", "algorithm.num_mini_batches=1024")
    with pytest.raises(OverBudgetError, match="Try num_envs=3072,"):
        budget.check_budget(cfg, unpredicted, free_bytes=2**40, on_gpu=True)


@pytest.mark.parametrize(("memory_pools", "on_gpu"), [(1, True), (0, False)])
def test_with_memory_pools_or_on_a_cpu_there_is_no_such_block(
    memory_pools: int,
    on_gpu: bool,
    experiment: Experiment,
    monkeypatch: pytest.MonkeyPatch,
    unpredicted: Future[Estimate],
) -> None:
    install(monkeypatch, Libcuda(memory_pools))
    assert budget.check_budget(experiment("env=go2"), unpredicted, free_bytes=2**40, on_gpu=on_gpu) is None


def test_over_budget_warn_starts_a_run_without_memory_pools(
    experiment: Experiment,
    monkeypatch: pytest.MonkeyPatch,
    unpredicted: Future[Estimate],
    caplog: pytest.LogCaptureFixture,
) -> None:
    install(monkeypatch, Libcuda(memory_pools=0))
    budget.check_budget(experiment("env=go2", "memory.over_budget=warn"), unpredicted, free_bytes=2**40, on_gpu=True)
    (warning,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert "has no memory pools" in warning.getMessage()
