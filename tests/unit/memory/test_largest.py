"""The largest runs that fit, against traces of those very runs and of every smaller one."""

from __future__ import annotations

import gc
import subprocess
import sys
from itertools import count

import pytest

from ppo_lab.cli.compose import compose
from ppo_lab.config import ExperimentConfig, to_json
from ppo_lab.errors import ConfigError
from ppo_lab.memory.predict import largest
from ppo_lab.memory.predict.calibration import Calibration, Range, installed_versions
from ppo_lab.memory.predict.hardware import Hardware
from ppo_lab.memory.predict.largest import (
    JACOBIAN,
    NOTHING,
    RESERVED,
    TENSORS,
    DeviceNeed,
    Scaling,
    frontier,
    largest_num_envs,
    learner_peak_bytes,
    scaling,
    smallest_num_mini_batches,
)
from ppo_lab.memory.predict.simulator import simulator_memory
from ppo_lab.memory.predict.trace import Allocation, DeviceType, Event, Free, Trace
from ppo_lab.memory.rows import MIB
from ppo_lab.probes import learner
from ppo_lab.runs.config import to_experiment

TWO_EPOCHS = ("num_steps_per_env=4", "algorithm.num_learning_epochs=2")
HUGE = Hardware("huge", 10**9, "9.0", 132)
SMALL_NETWORK = "network.hidden_dims=[16,8]"
FEW_EVENTS = ("num_steps_per_env=2", "algorithm.num_learning_epochs=1", "algorithm.num_mini_batches=2", SMALL_NETWORK)
"""A short iteration: each trace takes a second less."""


def experiment(*overrides: str) -> ExperimentConfig:
    return to_experiment(compose(["experiment=smoke", *overrides]))


TRACES: dict[tuple[str, DeviceType], Trace] = {}


def traced(cfg: ExperimentConfig, device_type: DeviceType) -> Trace:
    """In this process, which takes a tenth of the time that a process of its own does; each run once."""
    key = to_json(cfg), device_type
    if key not in TRACES:
        gc.collect()
        TRACES[key] = learner.run(cfg, device_type)
    return TRACES[key]


@pytest.fixture(autouse=True)
def _traces_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(largest, "_traces", lambda runs, device_type: [traced(run, device_type) for run in runs])


def cpu(memory_mib: int) -> Hardware:
    return Hardware("a CPU", memory_mib, "cpu", 0)


def card(memory_mib: int) -> Hardware:
    return Hardware("a card", memory_mib, "8.9", 1)


def needed(cfg: ExperimentConfig, hardware: Hardware) -> int:
    """By a trace of this very run."""
    found = traced(cfg, "cuda" if hardware.is_gpu else "cpu")
    simulator = simulator_memory(cfg)
    assert simulator is not None
    return learner_peak_bytes(found.events, found.matmul_starts, hardware) + simulator.bytes(cfg.num_envs, hardware)


@pytest.mark.parametrize(
    ("device_type", "overrides", "num_envs"),
    [
        ("cpu", ["env=go2", *TWO_EPOCHS], 4096),
        ("cuda", ["env=hover", *TWO_EPOCHS, "network.obs_normalization=true", "algorithm.num_mini_batches=1"], 1),
        pytest.param(
            "cuda",
            ["env=go2", "num_steps_per_env=24", "algorithm.num_mini_batches=4"],
            4096,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_two_small_traces_give_the_events_of_any_other_to_the_byte(
    device_type: DeviceType, overrides: list[str], num_envs: int
) -> None:
    cfg = experiment(*overrides)
    real = traced(experiment(*overrides, f"num_envs={num_envs}"), device_type)
    scaled = scaling(cfg, device_type)
    assert scaled.events_at(num_envs) == real.events
    assert scaled.matmul_starts == real.matmul_starts


def test_envs_that_leave_a_part_of_a_mini_batch_are_refused() -> None:
    scaled = Scaling(64, 16, (Allocation(0, 640, "storage"), Free(0)), (160, 0), ())
    assert scaled.events_at(16) == (Allocation(0, 160, "storage"), Free(0))
    with pytest.raises(ValueError, match=r"num_envs=24 .* multiples of 16"):
        scaled.events_at(24)


def test_the_peak_on_a_cpu_is_of_tensors_and_on_a_gpu_of_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = [Allocation(0, 3 * MIB, "storage"), Free(0), Allocation(1, 2 * MIB, "storage")]
    assert learner_peak_bytes(events, (1,), cpu(1)) == 3 * MIB
    assert learner_peak_bytes(events, (1,), card(1)) == 20 * MIB  # a workspace of 8.125 in the same segment
    assert learner_peak_bytes(events, (1,), HUGE) == (20 + 32) * MIB
    events.append(Allocation(2, 30 * MIB, "storage"))
    assert learner_peak_bytes(events, (), card(1)) == (20 + 30) * MIB
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    assert learner_peak_bytes(events, (), card(1)) == 40 * MIB
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    assert learner_peak_bytes(events, (), card(1)) == (20 + 30) * MIB


def test_a_run_needs_learner_simulator_and_overhead() -> None:
    simulator = simulator_memory(experiment("env=hover"))
    assert simulator is not None
    held = 39_304 + 62_728 + 2_350_297 + 352_100 + 2_877_796  # simulator.json
    assert simulator.bytes(64, cpu(1)) == held
    found = DeviceNeed(1000, held, 7)
    assert (found.device_low_bytes, found.total_bytes) == (1000 + held, 1000 + held + 7)


@pytest.mark.parametrize("hardware", [cpu(5), card(32)], ids=lambda hardware: hardware.name)
def test_the_most_envs_that_fit_are_those_before_the_first_that_does_not(hardware: Hardware) -> None:
    overrides = ["env=hover", *FEW_EVENTS]
    found = largest_num_envs(experiment(*overrides), hardware)
    assert 1 < found.num_envs < 500
    assert found.next_num_envs == found.num_envs + 1
    assert found.need_bytes == needed(experiment(*overrides, f"num_envs={found.num_envs}"), hardware)
    assert found.next_need_bytes == needed(experiment(*overrides, f"num_envs={found.next_num_envs}"), hardware)
    assert found.need_bytes <= found.memory_bytes == hardware.memory_bytes < found.next_need_bytes
    assert found.binding == (RESERVED if hardware.is_gpu else TENSORS)


def test_on_a_huge_card_the_jacobian_caps_go2_at_245_482_envs() -> None:
    found = largest_num_envs(experiment("env=go2", *FEW_EVENTS), HUGE)
    assert (found.num_envs, found.next_num_envs, found.binding) == (245_482, 245_483, JACOBIAN)


@pytest.mark.slow
def test_the_fewest_mini_batches_are_the_first_that_fit() -> None:
    hardware = cpu(7)
    overrides = ["env=hover", "num_envs=64", "num_steps_per_env=24", "algorithm.num_learning_epochs=2"]
    divisors = (m for m in count(1) if 64 * 24 % m == 0)
    runs = ((m, experiment(*overrides, f"algorithm.num_mini_batches={m}")) for m in divisors)
    first, need_bytes = next((m, n) for m, run in runs if (n := needed(run, hardware)) <= hardware.memory_bytes)
    found = smallest_num_mini_batches(experiment(*overrides), hardware)
    assert (found.num_envs, found.num_mini_batches, found.need_bytes) == (64, first, need_bytes)
    assert found.num_mini_batches == 6


@pytest.mark.slow
def test_an_answer_counts_what_only_later_epochs_reserve() -> None:
    overrides = ["env=go2", "num_envs=8192"]
    hardware = card(4096)
    in_2 = needed(experiment(*overrides, "algorithm.num_mini_batches=2"), hardware)
    in_2_of_one_epoch = needed(
        experiment(*overrides, "algorithm.num_mini_batches=2", "algorithm.num_learning_epochs=1"), hardware
    )
    assert in_2 - in_2_of_one_epoch == 2 * MIB

    class OneByteShort(Calibration):
        def overhead_bytes(self, *_: object) -> Range:
            return Range(*[hardware.memory_bytes - in_2 + 1] * 3)

    one_byte_short = OneByteShort(installed_versions("a card"), "", "", ())
    found = smallest_num_mini_batches(experiment(*overrides), hardware, one_byte_short)
    assert (found.num_mini_batches, found.next_num_mini_batches) == (4, 2)
    assert found.next_need_bytes == hardware.memory_bytes + 1


def test_where_all_fits_one_mini_batch_is_the_fewest() -> None:
    found = smallest_num_mini_batches(experiment("env=hover", *FEW_EVENTS), HUGE)
    assert (found.num_mini_batches, found.binding, found.next_num_mini_batches) == (1, NOTHING, None)


@pytest.mark.slow
def test_more_mini_batches_leave_room_for_more_envs() -> None:
    cfg = experiment("env=hover")
    one, four = frontier(cfg, cpu(40), num_mini_batches=(1, 4))
    assert (one.num_mini_batches, four.num_mini_batches) == (1, 4)
    assert one.num_envs < four.num_envs


@pytest.mark.slow
def test_a_device_too_small_for_any_run_is_refused() -> None:
    cfg = experiment("env=hover", "num_envs=2", "num_steps_per_env=1", "algorithm.num_mini_batches=1")
    with pytest.raises(ConfigError, match=r"has 2\.0 MiB, and num_envs=2 .* the smallest candidate, needs"):
        largest_num_envs(cfg, cpu(2))
    with pytest.raises(ConfigError, match="mini-batches do not change that"):
        smallest_num_mini_batches(cfg, cpu(2))


def test_more_envs_than_can_be_built_are_refused_in_any_mini_batches() -> None:
    cfg = experiment("env=go2", *FEW_EVENTS, "num_envs=245483")
    with pytest.raises(ConfigError, match=r"too many for the simulator's constraint Jacobian .* 245482 envs"):
        smallest_num_mini_batches(cfg, HUGE)


def test_asking_what_fits_does_not_load_torch() -> None:
    program = "import sys, ppo_lab.memory.predict.largest; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
