"""The trace on fake tensors against the same learner on real ones, counted by the memory log itself."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
from contextlib import suppress

import pytest
import torch

from ppo_lab import envs
from ppo_lab.cli.compose import compose
from ppo_lab.config import ACTIVATIONS, ExperimentConfig
from ppo_lab.config import to_json as experiment_to_json
from ppo_lab.errors import ConfigError
from ppo_lab.learning.checkpoint import NoCheckpoints
from ppo_lab.learning.loop import Loop
from ppo_lab.memory.measure.monitor import MemoryMonitor
from ppo_lab.memory.predict.allocator import cublas_workspace_bytes, replay
from ppo_lab.memory.predict.estimate import estimate
from ppo_lab.memory.predict.hardware import Hardware
from ppo_lab.memory.predict.simulator import simulator_memory
from ppo_lab.memory.predict.trace import (
    CATEGORIES,
    FACTORS,
    Allocation,
    DeviceType,
    Event,
    Free,
    Trace,
    _run_tracer,
    from_json,
    summarize,
    to_json,
    trace,
)
from ppo_lab.memory.rows import MIB
from ppo_lab.probes import learner
from ppo_lab.runs.config import from_json as experiment_from_json
from ppo_lab.runs.config import to_experiment


def experiment(*overrides: str) -> ExperimentConfig:
    return to_experiment(compose(["experiment=smoke", *overrides]))


def random_overrides(seed: int) -> list[str]:
    """A small configuration drawn from everything that shapes the learner's memory."""
    draw = random.Random(seed)

    def network(part: str) -> list[str]:
        dims = [draw.choice([1, 7, 32, 100]) for _ in range(draw.randint(1, 3))]
        return [
            f"network.{part}.hidden_dims={dims}".replace(" ", ""),
            f"network.{part}.activation={draw.choice(ACTIVATIONS)}",
            f"network.{part}.obs_normalization={draw.choice(['true', 'false'])}",
        ]

    num_envs, num_steps = draw.randint(1, 60), draw.randint(2, 9)
    divisors = [n for n in range(1, 9) if num_envs * num_steps % n == 0 and num_envs * num_steps > n]
    return [
        f"env={draw.choice(envs.names())}",
        f"num_envs={num_envs}",
        f"num_steps_per_env={num_steps}",
        *network("actor"),
        *network("critic"),
        f"network.actor.std_type={draw.choice(['scalar', 'log'])}",
        f"algorithm.num_mini_batches={draw.choice(divisors)}",
        f"algorithm.num_learning_epochs={draw.randint(1, 3)}",
        f"algorithm.schedule={draw.choice(['adaptive', 'fixed'])}",
        f"algorithm.optimizer={draw.choice(['adam', 'adamw', 'sgd', 'rmsprop'])}",
        f"algorithm.normalize_advantage_per_mini_batch={draw.choice(['true', 'false'])}",
        f"algorithm.use_mixed_precision={draw.choice(['true', 'false'])}",
        f"algorithm.use_clipped_value_loss={draw.choice(['true', 'false'])}",
        *(["init_from=RUN", "init.kl_coef=0.5"] if draw.random() < 0.4 else []),
    ]


def measured(cfg: ExperimentConfig) -> dict[str, int]:
    """What the memory log of a real run on the CPU says of its third iteration."""
    gc.collect()
    rows: dict[str, float] = {}
    with MemoryMonitor(torch.device("cpu"), count_tensors=True) as monitor:
        others_mib = monitor.scalars()["Memory/resident_mib"]
        env = learner.ZeroEnv(cfg)
        loop = Loop(env, cfg, monitor, NoCheckpoints(), lambda _, scalars: rows.update(scalars))
        loop.learn(3, init_at_random_ep_len=True)
    return {
        name: round((rows[f"Memory/{name}_mib"] - others_mib) * MIB)
        for name in ("rollout_peak", "update_peak", "resident")
    }


def traced(cfg: ExperimentConfig, device_type: DeviceType = "cpu") -> Trace:
    gc.collect()
    return learner.run(cfg, device_type)


@pytest.mark.parametrize("seed", range(12))
def test_a_random_learner_holds_on_real_tensors_what_the_trace_says_to_the_byte(seed: int) -> None:
    cfg = experiment(*random_overrides(seed))
    found = traced(cfg)
    assert measured(cfg) == {
        "rollout_peak": found.rollout_peak_bytes,
        "update_peak": found.update_peak_bytes,
        "resident": found.resident_bytes,
    }
    with suppress(ConfigError):  # softplus in mixed precision has no closed form
        untraced = estimate(cfg, Hardware("a CPU", 1024, "cpu", 0), with_trace=False)
        assert untraced.least_learner_bytes <= found.update_peak_bytes, "a lower bound"


@pytest.mark.parametrize("mixed", ["false", "true"])
def test_a_run_that_holds_to_its_initial_policy_has_one_more_actor_and_what_it_would_do(mixed: str) -> None:
    overrides = ["env=go2", f"algorithm.use_mixed_precision={mixed}", "network.obs_normalization=true", "init_from=RUN"]
    plain, held = (experiment(*overrides, f"init.kl_coef={coef}") for coef in (0, 0.5))
    without, found = traced(plain), traced(held)
    assert measured(held) == {
        "rollout_peak": found.rollout_peak_bytes,
        "update_peak": found.update_peak_bytes,
        "resident": found.resident_bytes,
    }
    rows = estimate(held, Hardware("a CPU", 1024, "cpu", 0), with_trace=False).rows
    (reference_bytes,) = (row.bytes or 0 for row in rows if row.name == "reference actor")
    # and an empty mean, (1, A), that the deviations are computed with; one more loss, reduced and summed
    assert found.resident_bytes - without.resident_bytes == reference_bytes + 12 * 4 + 4 + 8


def test_go2_at_its_peaks_holds_what_one_counts_by_hand() -> None:
    found = trace(experiment("env=go2", "num_steps_per_env=32"))  # 16 envs x 32 steps
    rollout, update = found.alive_at_rollout_peak, found.alive_at_update_peak
    assert sum(rollout.values()) == found.rollout_peak_bytes
    assert sum(update.values()) == found.update_peak_bytes
    parameter_bytes = 4 * (189_324 + 187_905 + 12)
    assert update["parameters"] == parameter_bytes
    assert update["gradients"] == parameter_bytes + 4 * 4  # and the KL divergence and three losses
    assert update["optimizer"] == 2 * parameter_bytes + 17 * 4  # and a counter for each parameter
    # obs 45, actions 12, mean 12, deviation 12, reward, value, log-probability, return, advantage; a byte for done
    assert update["storage"] == 512 * (4 * (45 + 12 + 12 + 12 + 5) + 1)
    # all of it without deviation, reward and done
    assert update["mini_batch"] == 512 * 4 * (45 + 12 + 12 + 4)
    env = simulator_memory(experiment("env=go2"))
    assert env
    assert update["env"] == env.env_bytes(16)
    # a step at its peak, beside the observations before and the last step's reward, done, time-out and 6 sums
    _, step_per_env_bytes = env.step_peak_parts(16)
    assert rollout["env"] == env.env_bytes(16) + 16 * step_per_env_bytes + 16 * (45 * 4 + 4 + 1 + 1) + 6 * 4
    # (T, N) returns, lengths, ended; (N,) return and length; the sums
    assert update["episodes"] == 512 * (4 + 4 + 1) + 2 * 16 * 4 + 6 * 4


def test_gelu_holds_each_hidden_layer_twice_and_elu_once() -> None:
    gelu, elu = (traced(experiment("env=go2", f"network.activation={name}")) for name in ("gelu", "elu"))
    by_hand = 32 * 4 * 2 * (512 + 256 + 128 + 512 + 256)  # outputs and gradients
    assert elu.saved_activation_bytes == by_hand
    assert gelu.update_peak_bytes - elu.update_peak_bytes >= 32 * 4 * 2 * (512 + 256 + 128)


def test_on_a_gpu_rmsprop_works_on_all_parameters_at_once_and_counts_on_the_host() -> None:
    cfg = experiment("env=go2", "algorithm.optimizer=rmsprop")
    cpu, cuda = traced(cfg, "cpu").alive_at_update_peak, traced(cfg, "cuda").alive_at_update_peak
    parameter_bytes = 4 * 377_241
    assert cuda["optimizer"] == parameter_bytes
    assert cpu["temporary"] < parameter_bytes < cuda["temporary"]


def test_the_events_add_up_to_what_is_resident() -> None:
    alive = 0
    sizes: dict[int, int] = {}
    found = traced(experiment("env=hover"))
    for event in found.events:
        if isinstance(event, Allocation):
            sizes[event.block] = event.size_bytes
            alive += event.size_bytes
        else:
            alive -= sizes.pop(event.block)
    assert alive == found.resident_bytes
    assert {event.category for event in found.events if isinstance(event, Allocation)} == set(CATEGORIES)
    (first,) = found.matmul_starts
    assert 0 < first < found.rollout[0] < found.rollout[1] == found.update[0] < found.update[1]


def test_a_peak_counts_what_is_alive_when_its_phase_starts() -> None:
    events: list[Event] = [Allocation(0, 100, "storage"), Allocation(1, 50, "temporary"), Free(1)]
    events.append(Allocation(2, 10, "activations"))
    found = from_json(to_json(summarize(events, rollout=(2, 3), update=(3, 4), matmul_starts=[1])))
    assert (found.rollout_peak_bytes, found.alive_at_rollout_peak) == (150, {"storage": 100, "temporary": 50})
    assert (found.update_peak_bytes, found.alive_at_update_peak) == (110, {"storage": 100, "activations": 10})
    assert (found.resident_bytes, found.saved_activation_bytes, found.matmul_starts) == (110, 10, (1,))
    assert found.events == tuple(events)


def test_a_storage_that_grows_goes_and_comes_again() -> None:
    with learner.Recorder(torch.device("cpu")) as recorder:
        before = recorder.event_count()
        tensor = torch.zeros(10)
        tensor.resize_(20)
        del tensor
    first, gone, second, gone_too = recorder.events()[before:]
    assert isinstance(first, Allocation)
    assert isinstance(second, Allocation)
    assert (first.size_bytes, second.size_bytes) == (40, 80)
    assert (gone, gone_too) == (Free(first.block), Free(second.block))


@pytest.mark.parametrize("schedule", ["adaptive", "fixed"])
def test_factors_of_the_loss_change_no_event(schedule: str) -> None:
    """They are not among what a stored trace depends on."""
    other = [f"algorithm.{name}=0.123" for name in FACTORS] + ["network.actor.init_std=0.123", "seed=9"]
    overrides = ["env=hover", f"algorithm.schedule={schedule}"]
    assert traced(experiment(*overrides, *other)) == traced(experiment(*overrides))


def test_torch_is_as_it_was_after_a_trace() -> None:
    move = torch.nn.Module.to
    traced(experiment("env=hover"))
    assert torch.nn.Module.to is move
    assert type(torch.zeros(1)) is torch.Tensor


def test_an_experiment_survives_the_way_to_the_tracer() -> None:
    cfg = experiment("env=go2", "algorithm.num_mini_batches=2")
    assert experiment_from_json(experiment_to_json(cfg)) == cfg


def test_a_process_of_its_own_traces_what_this_one_does() -> None:
    """`_run_tracer`, imported before conftest.py puts tracing in the tests' process in its place."""
    cfg = experiment("env=go2", "algorithm.num_mini_batches=2")
    assert from_json(_run_tracer(cfg, "cuda")) == traced(cfg, "cuda")


def test_mixed_precision_holds_on_a_gpu_what_it_holds_on_a_cpu() -> None:
    """Nothing of it is left to torch's autocast, which takes other operations on a GPU."""
    cfg = experiment("env=go2", "algorithm.use_mixed_precision=true")
    cpu, cuda = traced(cfg, "cpu"), traced(cfg, "cuda")
    assert cuda.saved_activation_bytes == cpu.saved_activation_bytes
    assert cuda.alive_at_update_peak == cpu.alive_at_update_peak


def test_asking_for_a_trace_or_a_replay_does_not_load_torch() -> None:
    program = (
        "import sys, ppo_lab.memory.predict.trace, ppo_lab.memory.predict.allocator; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_replay_of_go2_reserves_what_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept from the simulation itself: changes are to be seen."""
    monkeypatch.setattr(learner, "simulator_memory", lambda cfg: None)
    found = traced(to_experiment(compose([])))  # 4096 envs x 24 steps
    workspace = 32 * 2**20
    assert replay(found.events).reserved_bytes == 419_430_400
    assert replay(found.events, None, workspace, found.matmul_starts[:1]).reserved_bytes == 452_984_832


@pytest.mark.parametrize(
    ("compute_capability_major", "deterministic", "allocated_bytes", "reserved_bytes"),
    [  # kept from the simulation itself; a larger workspace, in one handle, makes the difference
        (8, False, 425_988_608, 448_790_528),
        (9, False, 451_023_360, 461_373_440),
        (8, True, 451_023_360, 461_373_440),
    ],
)
def test_go2_at_full_size_takes_of_a_gpu_what_it_did(
    compute_capability_major: int,
    deterministic: bool,
    allocated_bytes: int,
    reserved_bytes: int,
    go2_on_cuda: Trace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    workspace_bytes = cublas_workspace_bytes(compute_capability_major, deterministic)
    found = replay(go2_on_cuda.events, None, workspace_bytes, go2_on_cuda.matmul_starts)
    assert (found.allocated_peak_bytes, found.reserved_peak_bytes) == (allocated_bytes, reserved_bytes)


@pytest.fixture(scope="module")
def go2_on_cuda() -> Trace:
    return trace(to_experiment(compose([])), "cuda")  # 4096 envs x 24 steps


def test_the_one_workspace_is_taken_by_the_first_act(go2_on_cuda: Trace) -> None:
    """The backward pass through the networks is in the same thread."""
    (first,) = go2_on_cuda.matmul_starts
    before = [event for event in go2_on_cuda.events[:first] if isinstance(event, Allocation)]
    assert before[-1].size_bytes == 12 * 4, "the deviations; the layers' outputs have their buffers already"
    assert "mini_batch" not in {event.category for event in before}


@pytest.mark.parametrize(
    ("env", "width", "blocks", "rest"),
    [
        ("go2", 48, 23, 1312 - 184 - 23 * 48),  # of 1312 B per env 184 are observations and the episode's length
        ("hover", 16, 25, 484 - 72 - 25 * 16),
    ],
)
def test_an_envs_tensors_are_as_wide_as_its_actions_whatever_the_number_of_envs(
    env: str, width: int, blocks: int, rest: int
) -> None:
    for num_envs in (3, 4096):
        cfg = experiment(f"env={env}", f"num_envs={num_envs}")
        counted = simulator_memory(cfg)
        assert counted
        sizes = [tensor.nbytes for tensor in learner.ZeroEnv(cfg)._rest]
        assert sizes == [num_envs * width] * blocks + [counted.env_constant_bytes + num_envs * rest]


def test_a_permutation_on_a_gpu_takes_three_more_tensors_and_the_sorts_storage() -> None:
    def permuted(device_type: DeviceType) -> list[Event]:
        with learner.Recorder(torch.device("cpu"), device_type) as recorder:
            before = recorder.event_count()
            permutation = torch.randperm(1000)
            events = recorder.events()[before:]
            del permutation
        return events

    [result] = permuted("cpu")
    assert result == Allocation(result.block, 8000, "mini_batch")
    first = permuted("cuda")
    taken, freed = first[1:5], first[5:]
    assert [event.size_bytes for event in taken if isinstance(event, Allocation)] == [8000, 8000, 8000, 16000]
    assert {event.category for event in taken if isinstance(event, Allocation)} == {"temporary"}
    assert freed == [Free(event.block) for event in taken]
