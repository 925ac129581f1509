"""What several scenes and several ranks hold: counts, estimates, what fits, and the plan of a sweep."""

import io
import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ppo_lab.cli import sweep
from ppo_lab.config import ExperimentConfig
from ppo_lab.errors import ConfigError, OverBudgetError
from ppo_lab.memory.measure import measured
from ppo_lab.memory.predict import calibration, estimate, largest, simulator
from ppo_lab.memory.predict.calibration import Calibration, Range, installed_versions
from ppo_lab.memory.predict.hardware import Hardware
from ppo_lab.memory.predict.largest import largest_num_envs, learner_peak_bytes, scaling, smallest_num_mini_batches
from ppo_lab.memory.predict.simulator import SimulatorMemory, simulator_memory
from ppo_lab.memory.rows import MIB
from ppo_lab.memory.show import table
from ppo_lab.probes import learner
from ppo_lab.training import budget

Experiment = Callable[..., ExperimentConfig]

CPU, CARD = Hardware("a CPU", 4096, "cpu", 0), Hardware("a card", 4096, "8.9", 24)
SMALL = (
    *("experiment=smoke", "env=hover", "num_steps_per_env=2", "algorithm.num_learning_epochs=1"),
    *("algorithm.num_mini_batches=2", "network.hidden_dims=[16,8]"),
)


@pytest.fixture(autouse=True)
def _traces_in_this_process_and_no_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trace(cfg: ExperimentConfig, device_type: Any) -> Any:
        return learner.run(cfg, device_type)

    monkeypatch.setattr(estimate, "trace", trace)
    monkeypatch.setattr(largest, "_traces", lambda runs, device_type: [trace(run, device_type) for run in runs])
    monkeypatch.setattr(calibration, "SHIPPED", tmp_path / "none")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def counted(experiment: Experiment, *overrides: str) -> SimulatorMemory:
    found = simulator_memory(experiment("experiment=smoke", *overrides))
    assert found
    return found


@pytest.mark.parametrize(
    ("env", "num_envs", "envs_per_scene", "env_bytes", "step_peak_bytes"),
    [  # counted of real scenes, as `ppo_lab.probes.simulator` counts one
        ("hover", 16, 16, 21_907, 16_064),
        ("hover", 16, 8, 33_842, 8_100),
        ("hover", 16, 6, 44_689, 6_024),
        ("hover", 48, 16, 62_353, 16_296),
        ("hover", 48, 24, 51_506, 24_260),
        ("hover", 64, 16, 82_032, 16_412),
        ("go2", 16, 16, 32_515, 19_328),
        ("go2", 16, 8, 43_602, 9_736),
    ],
)
def test_an_envs_tensors_of_several_scenes_are_those_that_were_counted(
    env: str, num_envs: int, envs_per_scene: int, env_bytes: int, step_peak_bytes: int, experiment: Experiment
) -> None:
    overrides = [
        f"env={env}",
        f"num_envs={num_envs}",
        f"envs_per_scene={envs_per_scene}",
        "algorithm.num_mini_batches=1",
    ]
    found = counted(experiment, *overrides)
    assert found.env_bytes(num_envs) == env_bytes
    assert found.step_peak_bytes(num_envs) == step_peak_bytes
    zeros = learner.ZeroEnv(experiment("experiment=smoke", *overrides))
    held = [*zeros._rest, *zeros.get_observations().values(), zeros.episode_length_buf]
    assert sum(tensor.nbytes for tensor in held) == env_bytes
    within = zeros._blocks(*found.step_peak_parts(num_envs))
    assert sum(tensor.nbytes for tensor in within) == step_peak_bytes


def test_each_scene_holds_the_simulators_constants_once_more(experiment: Experiment) -> None:
    one, three = counted(experiment, "env=hover"), counted(experiment, "env=hover", "envs_per_scene=6")
    assert three.scenes == 3
    assert three.bytes(16, CPU) == one.bytes(16, CPU) + 2 * one.constant_bytes
    once_bytes = simulator.startup_bytes(CARD)
    of_6, of_5 = (counted(experiment, "env=hover").array_bytes(size, CARD) for size in (6, 5))
    assert three.bytes(16, CARD) == of_6 + 2 * of_5 + once_bytes
    assert three.rounding_bytes(CARD) == 3 * 671 * 4096 + 32 * MIB


def test_more_envs_than_one_scene_builds_are_allowed_in_two(experiment: Experiment) -> None:
    overrides = ["num_envs=400000", "num_steps_per_env=1"]
    assert simulator.too_many_envs(experiment(*overrides, "envs_per_scene=200000")) is None
    assert simulator.too_many_envs(experiment(*overrides, "envs_per_scene=400000", "processes=2")) is None
    problem = simulator.too_many_envs(experiment(*overrides, "envs_per_scene=300000", "processes=1"))
    assert problem is None  # two scenes of 200,000
    one = simulator.too_many_envs(experiment(*overrides, "envs_per_scene=400000", "processes=1"))
    assert one
    assert one.endswith("2,147,483,647 elements. Allowed: up to num_envs=245482.")
    each = simulator.too_many_envs(experiment("num_envs=800000", "num_steps_per_env=1", "envs_per_scene=400000"))
    assert each
    assert "in one scene (envs_per_scene=400000)" in each
    assert each.endswith("Allowed: up to envs_per_scene=245482.")


def test_two_ranks_on_a_cpu_hold_twice_what_one_of_them_holds(experiment: Experiment) -> None:
    both = estimate.estimate(experiment(*SMALL, "num_envs=16", "processes=2"), CPU)
    one = estimate.estimate(experiment(*SMALL, "num_envs=8", "processes=1"), CPU)
    assert both.rank == one
    assert both.processes == 2
    assert (both.transitions, both.mini_batch_size) == (2 * one.transitions, 2 * one.mini_batch_size)
    assert one.update_peak_bytes
    assert one.simulator_bytes
    assert (both.update_peak_bytes, both.simulator_bytes) == (2 * one.update_peak_bytes, 2 * one.simulator_bytes)
    assert both.device_bytes.low == 2 * one.device_bytes.low
    assert [row.bytes for row in both.rows[:-1]] == [2 * (row.bytes or 0) for row in one.rows[:-1]]
    assert both.rows[-1].bytes is None
    assert both.largest_freed_bytes == one.largest_freed_bytes


def test_two_ranks_on_gpus_hold_on_each_card_what_one_of_them_holds(experiment: Experiment) -> None:
    each = estimate.estimate(experiment(*SMALL, "num_envs=16", "processes=2"), CARD)
    one = estimate.estimate(experiment(*SMALL, "num_envs=8", "processes=1"), CARD)
    assert (each.device_bytes, each.rows, each.transitions) == (one.device_bytes, one.rows, one.transitions)
    assert (each.processes, each.rank) == (2, None)
    assert table.conclusion(each).startswith("Each of 2 ranks needs at least ")
    assert table.conclusion(each).endswith(" of 4,096 MiB on a card, a card of its own; fits: not known.")


def calibrated(runs_hold_bytes: int) -> Calibration:
    class Fixed(Calibration):
        def overhead_bytes(self, *_: object) -> Range:
            return Range(*[float(runs_hold_bytes)] * 3)

        def wall_s(self, *_: object) -> Range:
            return Range(1.0, 2.0, 3.0)

    return Fixed(installed_versions("a CPU"), "", "", ())


def test_each_rank_has_the_overhead_of_a_process_and_each_further_scene_its_own(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "find", lambda _: (calibrated(1000 * MIB), []))
    overrides = [*SMALL, "num_envs=16"]
    plain, ranks, scenes = (
        estimate.estimate(experiment(*overrides, *more), CPU) for more in ([], ["processes=2"], ["envs_per_scene=6"])
    )
    assert [found.rows[-1].bytes for found in (plain, ranks, scenes)] == [
        1000 * MIB,
        2000 * MIB,
        1000 * MIB + 2 * 22 * MIB,
    ]
    assert plain.wall_s == (1.0, 2.0, 3.0)
    assert (ranks.wall_s, scenes.wall_s) == (None, None)
    assert table.wall_time(ranks) == "How long it takes is unknown: one process with one scene was calibrated."


def test_the_table_of_two_ranks_has_each_and_the_sum_in_80_columns(experiment: Experiment) -> None:
    both = estimate.estimate(experiment(*SMALL, "num_envs=16", "processes=2", "envs_per_scene=4"), CPU)
    console = Console(width=80, file=io.StringIO())
    console.print(table.table(both))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    assert "2 ranks, each with 16 transitions in mini-batches of 8" in text
    assert both.rank
    assert both.rank.simulator_bytes
    simulator_row = next(line for line in text.splitlines() if line.startswith(" simulator "))
    one_mib, both_mib = both.rank.simulator_bytes / MIB, (both.simulator_bytes or 0) / MIB
    assert f"{one_mib:,.1f}" in simulator_row
    assert f"{both_mib:,.1f}" in simulator_row
    assert "2 scenes x" in text


def test_json_has_the_sum_and_one_rank_in_the_same_keys(experiment: Experiment) -> None:
    both = estimate.estimate(experiment(*SMALL, "num_envs=16", "processes=2"), CPU)
    answer = json.loads(json.dumps(table.as_json(both)))
    assert (answer["version"], answer["processes"], answer["scenes"]) == (2, 2, 1)
    assert answer["rank"].keys() == answer.keys()
    assert answer["rank"]["rank"] is None
    assert answer["device_bytes"]["low"] == 2 * answer["rank"]["device_bytes"]["low"]


def done(found: estimate.Estimate) -> Future[estimate.Estimate]:
    future: Future[estimate.Estimate] = Future()
    future.set_result(found)
    return future


def test_the_budget_of_two_ranks_is_their_sum_and_the_advice_keeps_both(experiment: Experiment) -> None:
    cfg = experiment(*SMALL, "num_envs=64", "processes=2")
    found = estimate.estimate(cfg, CPU)
    assert budget.check_budget(cfg, done(found), found.device_bytes.low) is found
    with pytest.raises(OverBudgetError) as stopped:
        budget.check_budget(cfg, done(found), found.device_bytes.low - MIB)
    assert "fits: no. Try num_envs=" in str(stopped.value)
    fewer = int(str(stopped.value).partition("Try num_envs=")[2].partition(",")[0])
    assert fewer % 2 == 0
    assert 2 <= fewer < 64


@pytest.mark.parametrize(
    ("hardware", "of_one", "share"),
    [
        (Hardware("a CPU", 10, "cpu", 0), Hardware("a CPU", 5, "cpu", 0), 2),
        (Hardware("a card", 32, "8.9", 1), Hardware("a card", 32, "8.9", 1), 1),
    ],
    ids=["a CPU for both", "a card each"],
)
def test_what_fits_is_a_multiple_of_the_ranks_and_two_more_do_not_fit(
    hardware: Hardware, of_one: Hardware, share: int, experiment: Experiment
) -> None:
    found = largest_num_envs(experiment(*SMALL, "processes=2"), hardware)
    assert found.next_num_envs == found.num_envs + 2
    alone = largest_num_envs(experiment(*SMALL), of_one)
    assert found.num_envs == 2 * alone.num_envs
    assert found.need_bytes == share * alone.need_bytes
    assert found.need_bytes <= hardware.memory_bytes < (found.next_need_bytes or 0)


def test_fewer_mini_batches_fit_where_one_of_the_ranks_has_a_cpu_of_half_the_memory(experiment: Experiment) -> None:
    overrides = ["experiment=smoke", "env=hover", "num_steps_per_env=8", "algorithm.num_learning_epochs=1"]
    both = smallest_num_mini_batches(
        experiment(*overrides, "num_envs=128", "processes=2"), Hardware("a CPU", 14, "cpu", 0)
    )
    alone = smallest_num_mini_batches(experiment(*overrides, "num_envs=64"), Hardware("a CPU", 7, "cpu", 0))
    assert alone.num_mini_batches > 1
    assert (both.num_mini_batches, both.need_bytes) == (alone.num_mini_batches, 2 * alone.need_bytes)


def needed(cfg: ExperimentConfig, hardware: Hardware) -> int:
    """By a trace of this very run."""
    found, counted = learner.run(cfg, "cpu"), simulator_memory(cfg)
    assert counted
    return learner_peak_bytes(found.events, found.matmul_starts, hardware) + counted.bytes(cfg.num_envs, hardware)


@pytest.mark.parametrize("scenes", [2, 3])
def test_the_largest_run_in_scenes_of_50_envs_is_confirmed_by_its_own_trace(
    scenes: int, experiment: Experiment
) -> None:
    size_mib = {2: 8, 3: 14}[scenes]
    hardware = Hardware("a CPU", size_mib, "cpu", 0)
    found = largest_num_envs(experiment(*SMALL, "envs_per_scene=50"), hardware)
    cfg = experiment(*SMALL, "envs_per_scene=50", f"num_envs={found.num_envs}")
    assert len(cfg.scene_sizes) == scenes
    assert found.need_bytes == needed(cfg, hardware) <= hardware.memory_bytes
    following = experiment(*SMALL, "envs_per_scene=50", f"num_envs={found.next_num_envs}")
    assert found.next_need_bytes == needed(following, hardware) > hardware.memory_bytes


def test_two_traces_of_two_scenes_give_the_events_of_any_other_two(experiment: Experiment) -> None:
    real = learner.run(experiment(*SMALL, "num_envs=400", "envs_per_scene=200"), "cpu")
    assert scaling(experiment(*SMALL), "cpu", scenes=2).events_at(400) == real.events


def test_a_sweep_over_processes_plans_by_the_sum(
    experiment: Experiment, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    overrides = [*SMALL, "device=cpu", "num_envs=512"]
    sweep.prepare(["-m", *overrides, "processes=1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}"])
    planned = json.loads((tmp_path / "sweep" / "jobs.json").read_text())["jobs"]
    expected = [estimate.estimate(experiment(*overrides, f"processes={n}"), CPU).device_bytes.low for n in (1, 2)]
    assert [job["predicted_bytes"] for job in planned] == expected
    assert expected[0] < expected[1] < 2 * expected[0]


def test_half_the_ranks_are_advised_where_only_each_ranks_overhead_is_too_much(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "find", lambda _: (calibrated(100 * MIB), []))
    cfg = experiment(*SMALL, "num_envs=16", "processes=4")
    assert budget._fewer_processes(cfg, Hardware("a CPU", 300, "cpu", 0)) == 2
    assert budget._fewer_processes(cfg, Hardware("a CPU", 150, "cpu", 0)) == 1
    assert budget._fewer_processes(cfg, Hardware("a CPU", 50, "cpu", 0)) is None


def test_a_run_of_several_ranks_or_scenes_teaches_a_calibration_nothing(experiment: Experiment) -> None:
    for overrides, learns in (((), True), (("processes=2",), False), (("envs_per_scene=8",), False)):
        assert calibration.is_of_such_runs(experiment("experiment=smoke", *overrides)) is learns


def test_the_figures_of_one_card_are_compared_times_the_ranks_and_those_of_a_cpu_as_they_are(
    experiment: Experiment,
) -> None:
    cfg = experiment(*SMALL, "num_envs=16", "processes=2")
    both = estimate.estimate(cfg, CPU)
    assert measured.predicted_bytes(table.as_json(both))["update_peak"] == both.update_peak_bytes
    on_cards = table.as_json(both) | {"reserved_peak_bytes": 5, "hardware": {"compute_capability": "8.9"}}
    assert measured.predicted_bytes(on_cards)["reserved"] == 10


def test_ranks_that_do_not_divide_the_envs_are_refused_before_an_estimate(experiment: Experiment) -> None:
    with pytest.raises(ConfigError, match="processes=3 does not divide num_envs=16"):
        experiment(*SMALL, "num_envs=16", "processes=3")
