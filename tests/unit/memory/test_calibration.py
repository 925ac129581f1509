"""What is measured on a machine is found again in what is predicted for it."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ppo_lab.cli import calibrate
from ppo_lab.cli import estimate as estimating
from ppo_lab.config import ExperimentConfig
from ppo_lab.errors import ConfigError
from ppo_lab.memory.measure import measured
from ppo_lab.memory.predict import calibration, hardware
from ppo_lab.memory.predict.calibration import Calibration, MeasuredRun, Workload
from ppo_lab.memory.predict.estimate import estimate
from ppo_lab.memory.predict.hardware import Hardware
from ppo_lab.memory.predict.host import largest_freed_bytes
from ppo_lab.memory.predict.largest import largest_num_envs
from ppo_lab.memory.predict.trace import Allocation, Free
from ppo_lab.memory.rows import MIB
from ppo_lab.training import budget
from tests import fake_nvml
from tests.paths import REPOSITORY

BASE_BYTES = {"go2": 1000 * MIB, "hover": 900 * MIB}
HOLES = 9
"""Of the heap, in multiples of its largest block."""


@pytest.fixture(autouse=True)
def _own_calibrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def run(env: str, num_envs: int, mini_batches: int, weights: int, **changes: Any) -> MeasuredRun:
    """A run that takes what the models can express: so it must be found again."""
    transitions, largest_bytes = 24 * num_envs * 5, num_envs * 24 // mini_batches * 512
    known_bytes = 100 * MIB + num_envs * 10_000
    peak_bytes = known_bytes + BASE_BYTES[env] + num_envs * 9_000 + HOLES * largest_bytes
    made = MeasuredRun(
        env=env,
        num_envs=num_envs,
        num_steps_per_env=24,
        mini_batches=mini_batches * 5,
        learned_transitions=transitions,
        weights=weights,
        units=weights // 100,
        mapped_bytes=0,
        started=f"{env} {num_envs} {mini_batches} {weights}",
        known_bytes=known_bytes,
        largest_freed_bytes=largest_bytes,
        peak_bytes=peak_bytes,
        host_peak_bytes=peak_bytes,
        startup_s=15.0,
        collection_s=24 * (0.004 + num_envs * (6e-5 if env == "go2" else 1e-5)),
        learning_s=mini_batches * 5 * 0.001 + transitions * weights * 1e-11,
    )
    return dataclasses.replace(made, **changes)


RUNS = tuple(
    run(env, *size)
    for env in BASE_BYTES
    for size in ((64, 16, 7_000), (1024, 1, 377_000), (2048, 4, 377_000), (2048, 4, 7_000))
)


def calibrated(runs: Sequence[MeasuredRun] = RUNS, device: str = "a CPU", **versions: Any) -> Calibration:
    there = dataclasses.replace(calibration.installed_versions(device), **versions)
    return Calibration(there, "2026-11-26", "a test", tuple(runs))


def kept(name: str, found: Calibration) -> Path:
    file = calibration.folder() / f"{name}.json"
    calibration.write(file, found)
    return file


def test_largest_freed_bytes_is_the_largest_freed_block_below_the_mmap_threshold() -> None:
    kept, mapped, freed = (Allocation(n, size * MIB, "storage") for n, size in enumerate((30, 40, 10)))
    assert largest_freed_bytes([kept, mapped, Free(1), freed, Free(2)]) == 10 * MIB
    assert largest_freed_bytes([kept, mapped]) == 0


@pytest.mark.parametrize("held_out", [run("go2", 4096, 4, 100_000), run("hover", 512, 1, 50_000)], ids=lambda r: r.env)
def test_the_memory_of_a_run_that_was_not_measured_is_predicted_from_those_that_were(held_out: MeasuredRun) -> None:
    beyond = calibrated().overhead_bytes(
        held_out.env, held_out.num_envs, held_out.known_bytes, held_out.largest_freed_bytes
    )
    assert beyond is not None
    whole = beyond.around(held_out.known_bytes)
    assert whole.likely == pytest.approx(held_out.peak_bytes, rel=1e-3)
    assert whole.low < held_out.peak_bytes < whole.high


def test_runs_that_fit_the_model_badly_widen_the_range() -> None:
    def width(runs: Sequence[MeasuredRun]) -> float:
        found = calibrated(runs).overhead_bytes("go2", 64, 100 * MIB)
        assert found is not None
        return found.high - found.low

    odd = dataclasses.replace(RUNS[0], started="odd", peak_bytes=RUNS[0].peak_bytes + 300 * MIB)
    assert width([*RUNS, odd]) > 1.5 * width(RUNS)


def test_compiling_the_kernels_may_take_more_than_training() -> None:
    cold = run("go2", 64, 16, 7_000, started="cold", is_cold=True, startup_s=60.0, peak_bytes=3000 * MIB)
    found = calibrated([*RUNS, cold])
    beyond = found.overhead_bytes("go2", 64, cold.known_bytes, cold.largest_freed_bytes)
    assert beyond is not None
    margin = calibration.LEAST_MEMORY_MARGIN * beyond.around(cold.known_bytes).likely
    assert beyond.around(cold.known_bytes).high == pytest.approx(3000 * MIB + margin)
    larger = found.overhead_bytes("go2", 64, cold.known_bytes, cold.largest_freed_bytes + 10 * MIB)
    assert larger is not None
    assert larger.high - beyond.high > HOLES * 10 * MIB, "the heap has its holes beside what compiling left"
    assert found.startup_s("go2") == (15.0, 15.0, 60.0)


def test_how_long_a_run_takes_is_its_start_and_its_iterations() -> None:
    held_out = run("go2", 4096, 8, 100_000)
    work = Workload(**{f.name: getattr(held_out, f.name) for f in dataclasses.fields(Workload)})
    wall_s = calibrated().wall_s(work, iterations=100)
    truth_s = 15 + 100 * (held_out.collection_s + held_out.learning_s)
    assert wall_s is not None
    assert wall_s.likely == pytest.approx(truth_s, rel=0.02)
    assert wall_s.low < truth_s < wall_s.high


def test_an_env_that_was_not_measured_is_not_known() -> None:
    assert calibrated().overhead_bytes("backflip", 64, 100 * MIB) is None
    assert calibrated().overhead_bytes("go2 in performance mode", 64, 100 * MIB) is None, "it compiles other kernels"
    assert calibrated().wall_s(dataclasses.replace(RUNS[0], env="backflip"), 10) is None


def test_an_env_in_performance_mode_is_another_to_a_calibration(experiment: Callable[..., ExperimentConfig]) -> None:
    overrides = "env=go2", "env.performance_mode=true"
    assert calibration.workload(experiment(*overrides)).env == calibration.env_of(experiment(*overrides))
    assert calibration.env_of(experiment(*overrides)) == "go2 in performance mode"
    assert calibration.env_of(experiment("env=go2")) == "go2"


def test_an_estimate_uses_the_calibration_of_its_device_and_says_so(
    experiment: Callable[..., ExperimentConfig],
) -> None:
    kept("one", calibrated())
    found = estimate(experiment("experiment=smoke"), Hardware("a CPU", 4096, "cpu", 0))
    assert found.fits is True
    assert found.calibration == "8 runs on a CPU, 2026-11-26"
    assert found.wall_s is not None
    small = estimate(experiment("experiment=smoke"), Hardware("a CPU", 1024, "cpu", 0))
    assert small.fits is False  # by high


@pytest.mark.slow
def test_the_most_envs_that_fit_a_host_leave_room_for_the_process(experiment: Callable[..., ExperimentConfig]) -> None:
    cfg = experiment(
        "env=hover", "network.hidden_dims=[16,8]", "algorithm.num_learning_epochs=1", "num_steps_per_env=4"
    )
    machine = Hardware("a CPU", 1100, "cpu", 0)
    found = largest_num_envs(cfg, machine, calibrated())
    assert found.next_num_envs is not None
    kept("one", calibrated())
    for num_envs, fits in ((found.num_envs, True), (found.next_num_envs, False)):
        assert estimate(dataclasses.replace(cfg, num_envs=num_envs), machine).fits is fits
    assert found.num_envs < largest_num_envs(cfg, machine).num_envs / 5


def test_another_processors_calibration_tells_what_is_likely_and_not_whether_it_fits(
    experiment: Callable[..., ExperimentConfig],
) -> None:
    kept("one", calibrated(device="another CPU"))
    found = estimate(experiment("experiment=smoke"), Hardware("a CPU", 4096, "cpu", 0))
    assert found.fits is None
    assert (found.device_bytes.likely or 0) > 900 * MIB
    assert found.device_bytes.high is None
    assert found.wall_s is None
    assert found.calibration == "8 runs on another CPU, 2026-11-26"


def test_how_long_a_run_takes_names_its_calibration_where_the_memory_is_not_known(
    experiment: Callable[..., ExperimentConfig],
) -> None:
    kept("one", calibrated())
    cfg = experiment("experiment=smoke", "env.max_collision_pairs=33")  # never counted
    found = estimate(cfg, Hardware("a CPU", 4096, "cpu", 0), with_trace=False)
    assert found.device_bytes.likely is None
    assert found.wall_s is not None
    assert found.calibration == "8 runs on a CPU, 2026-11-26"


def test_a_long_run_is_hinted_at_by_the_calibration_of_this_machine(
    experiment: Callable[..., ExperimentConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "this_machine", lambda _: Hardware("a CPU", 4096, "cpu", 0))
    kept("one", calibrated())
    assert " here. " in (budget.hint_at_long_run(experiment("device=cpu", "max_iterations=9999")) or "")


def test_a_calibration_of_other_versions_is_named_and_not_used() -> None:
    kept("one", calibrated(torch="2.11.0"))
    found, notes = calibration.find("a CPU")
    assert found is None
    assert notes == [
        f"the calibration of 2026-11-26 is not used: torch was 2.11.0 and is {calibration.installed('torch')}"
    ]


def test_a_cards_calibration_is_of_its_driver(machine: Callable[..., None]) -> None:
    name = "NVIDIA GeForce RTX 4090"
    kept("one", calibrated(device=name, driver="1.0"))
    assert calibration.find(name)[0] is not None, "where there is no such card, nobody knows its driver"
    machine([fake_nvml.Device("GPU-1", name)])
    found, notes = calibration.find(name)
    assert found is None
    assert "driver was 1.0 and is 580.65.06" in notes[0]


def test_a_calibration_of_another_number_of_cores_is_not_used() -> None:
    kept("one", calibrated(cpu_cores=(os.cpu_count() or 1) + 1))
    assert calibration.find("a CPU")[0] is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"runs": []}', '{"versions": {}, "runs": [{"env": 1}]}'])
def test_a_file_that_is_no_calibration_is_named_and_stops_nothing(text: str) -> None:
    kept("one", calibrated())
    (calibration.folder() / "a file.json").write_text(text)
    assert calibration.find("a CPU")[0] == calibrated()
    assert "a file.json is not a calibration: not used" in calibration.find("another")[1][0]


@pytest.mark.parametrize("value", [-1, float("nan"), "5", None, 10**30])
def test_a_file_with_a_number_that_cannot_be_is_not_used(value: Any) -> None:
    file = kept("one", calibrated())
    content = json.loads(file.read_text())
    content["runs"][0]["peak_bytes"] = value
    file.write_text(json.dumps(content))
    assert calibration.find("a CPU")[0] is None


def test_a_users_own_calibration_begins_with_the_shipped_one_and_comes_first() -> None:
    calibration.write(calibration.SHIPPED / "one.json", calibrated(RUNS[:2]))
    more = [dataclasses.replace(RUNS[2], peak_bytes=1)]
    file = calibration.remember(calibrated().versions, more, "finished runs", "2026-11-27")
    calibration.remember(calibrated().versions, [RUNS[2]], "finished runs", "2026-11-27")  # the same run, read again
    found, _ = calibration.find("a CPU")
    assert found is not None
    assert found.runs == RUNS[:3]
    assert found.source == "a test; finished runs"
    assert file.parent == calibration.folder()


def test_what_the_process_holds_already_is_part_of_what_a_run_may_come_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "free_bytes", lambda _: 1000 * MIB)
    assert budget.available_bytes("cpu") > 1050 * MIB
    monkeypatch.setattr(budget, "this_machine", lambda _: Hardware("a card", 8192, "8.9", 24))
    assert budget.available_bytes("cuda") == 1000 * MIB


def test_both_envs_are_measured_or_the_one_that_is_named() -> None:
    trials = list(calibrate.plan(["device=cpu"]))
    assert {trial.env for trial in trials} == {"go2", "hover"}
    assert [trial.is_cold for trial in trials] == [True, False, False, False] * 2
    assert all("device=cpu" in trial.overrides for trial in trials)
    assert {trial.env for trial in calibrate.plan(["env=hover"])} == {"hover"}
    assert {trial.env for trial in calibrate.plan(["experiment=hover_small"])} == {"hover"}


@pytest.mark.parametrize("override", ["hardware=h100", "hardware.memory_mib=5", "fit=num_envs", "run=a", "plot=a.png"])
def test_calibrate_refuses_overrides_that_ask_something_else(override: str) -> None:
    with pytest.raises(ConfigError, match=rf"{override}: calibrate=true measures the machine that it runs on"):
        estimating.main(["calibrate=true", override])


def test_calibrate_hands_the_experiments_overrides_to_its_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[str]] = []
    monkeypatch.setattr(calibrate, "calibrate", lambda overrides, form: told.append(overrides))
    estimating.main(["calibrate=true", "format=json", "trace=false", "env=hover", "device=cpu"])
    assert told == [["env=hover", "device=cpu"]]


def test_each_env_compiles_its_kernels_into_a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caches: dict[str, set[str]] = {"go2": set(), "hover": set()}

    def run(*_: Any, env: dict[str, str], **__: Any) -> subprocess.CompletedProcess[str]:
        caches[trial.env].add(env["QD_OFFLINE_CACHE_FILE_PATH"])
        return subprocess.CompletedProcess([], 1, stdout="", stderr="enough")

    monkeypatch.setattr(subprocess, "run", run)
    for number, trial in enumerate(calibrate.plan([])):
        with pytest.raises(ConfigError, match="enough"):
            calibrate.measure(trial, tmp_path / str(number))
    assert [len(used) for used in caches.values()] == [1, 1]
    assert caches["go2"] != caches["hover"]


def test_a_run_that_fails_is_named_with_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="warning: one\nerror: no space left\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ConfigError, match=r"the run with go2, num_envs=64, .* failed: no space left"):
        calibrate.measure(next(calibrate.plan(["env=go2"])), tmp_path / "run")


@pytest.mark.slow
def test_a_calibrated_machine_knows_whether_a_run_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experiment: Callable[..., ExperimentConfig]
) -> None:
    monkeypatch.setattr(calibrate, "SIZES", calibrate.SIZES[:1])
    estimating.main(["calibrate=true", "env=hover", "device=cpu", "format=json"])
    found, _ = calibration.find(hardware.this_machine("cpu").name)
    assert found is not None
    cold, warm = found.runs
    assert cold.is_cold
    assert warm.startup_s < cold.startup_s
    overrides = ["env=hover", "num_envs=256", "device=cpu", "max_iterations=3"]
    predicted = estimate(experiment(*overrides), hardware.this_machine("cpu"))
    assert predicted.fits is True
    folder = tmp_path / "run"
    command = [sys.executable, "train.py", *overrides, f"hydra.run.dir={folder}"]
    subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY)
    peak_mib = measured.read_run(folder).peak_mib["Memory/host_peak_rss_mib"]
    assert peak_mib * MIB < (predicted.device_bytes.high or 0)
