"""The estimate as a whole: what it says, what it refuses, and what it learns from finished runs."""

import dataclasses
import io
import json
import logging
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from importlib import metadata
from pathlib import Path

import pytest

from ppo_lab.cli import estimate as estimating
from ppo_lab.cli import sweep
from ppo_lab.config import ExperimentConfig
from ppo_lab.errors import ConfigError, OverBudgetError
from ppo_lab.memory.measure import measured
from ppo_lab.memory.predict import calibration, largest, simulator
from ppo_lab.memory.predict.estimate import FITS, Estimate, Span, Verdict, estimate, need, verdict
from ppo_lab.memory.predict.hardware import Hardware
from ppo_lab.memory.predict.trace import trace
from ppo_lab.memory.rows import MIB
from ppo_lab.memory.show import table
from ppo_lab.training import budget
from tests.paths import REPOSITORY

Experiment = Callable[..., ExperimentConfig]

CARD = Hardware("a card", 8 * 1024, "8.9", 24)


@pytest.fixture(autouse=True)
def _no_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SHIPPED", tmp_path / "none")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def ask(*overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "estimate.py", *overrides]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)


def test_go2_in_json_has_the_promised_keys_and_the_figures_worked_by_hand() -> None:
    done = ask("format=json", "hardware=h100")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)  # nothing else on stdout
    assert answer["transitions"] == 98_304
    assert answer["rollout_bytes"] == 98_304 * (4 * (45 + 3 * 12 + 5) + 1)
    assert answer["mini_batch_bytes"] == 98_304 * 4 * (45 + 2 * 12 + 4)
    assert answer["parameters"] == 189_324 + 187_905 + 12
    assert answer["parameter_bytes"] == answer["gradient_bytes"] - 16 == answer["optimizer_bytes"] // 2 == 1_508_964
    networks_bytes = 24_576 * 4 * 2 * (512 + 256 + 128 + 512 + 256)  # outputs and gradients
    assert networks_bytes <= answer["saved_activation_bytes"] < 1.02 * networks_bytes
    assert answer["rollout_peak_bytes"] < answer["update_peak_bytes"] < answer["allocated_peak_bytes"]
    assert answer["allocated_peak_bytes"] - answer["update_peak_bytes"] >= 32 * MIB  # a workspace, sm_90
    assert answer["allocated_peak_bytes"] < answer["reserved_peak_bytes"]
    assert answer["device_bytes"]["low"] >= answer["reserved_peak_bytes"] + answer["simulator_bytes"]
    assert answer["fits"] is None  # what the context takes was never measured
    assert answer["device_bytes"]["high"] is None
    assert sum(answer["alive_at_update_peak"].values()) == answer["update_peak_bytes"]


def test_without_a_trace_the_closed_forms_stand_alone(experiment: Experiment) -> None:
    found = estimate(experiment(), CARD, with_trace=False)
    assert found.rollout_bytes == 33_914_880
    assert found.saved_activation_bytes == 327_155_712
    assert (found.update_peak_bytes, found.reserved_peak_bytes, found.fits) == (None,) * 3
    assert {row.known for row in found.rows} == {"exact", "derived", "measured", "unknown"}
    # rollout, four copies of 377,241 parameters (weights, gradients, Adam's two moments), activations
    closed_forms_bytes = 33_914_880 + 28_704_768 + 4 * 1_508_964 + 16 + 327_155_712
    counted = simulator.simulator_memory(experiment())
    assert counted
    assert found.least_learner_bytes == closed_forms_bytes + counted.env_bytes(4096)
    assert found.device_bytes == Span(found.least_learner_bytes + counted.bytes(4096, CARD), None, None)


def test_without_a_trace_too_small_a_card_is_still_told(experiment: Experiment) -> None:
    small = Hardware("a small card", 400, "8.9", 24)  # the closed forms alone come to 382.5 MiB, the simulator to more
    assert estimate(experiment(), small, with_trace=False).fits is False


def test_an_env_that_was_never_counted_is_unknown_not_zero(experiment: Experiment) -> None:
    cfg = experiment("experiment=smoke", "env.max_collision_pairs=33")
    found = estimate(cfg, CARD, count_new_envs=False)
    assert found.simulator_bytes is None
    assert found.reserved_peak_bytes
    assert found.device_bytes == Span(found.reserved_peak_bytes, None, None)
    assert [row.known for row in found.rows if row.name == "simulator"] == ["unknown"]


@pytest.mark.parametrize(
    ("device", "words", "answer"),
    [
        (Span(5, 6, 7), "yes", True),
        (Span(5, 6, 8), "no", False),  # by the high figure
        (Span(5, None, None), "not known", None),
        (Span(5, 8, None), "not known", None),
        (Span(8, None, None), "no", False),
    ],
)
def test_the_verdict_goes_by_the_high_figure(device: Span, words: Verdict, answer: bool | None) -> None:
    assert verdict(device, available_bytes=7) == words
    assert FITS[words] is answer


def test_what_does_not_fit_by_a_byte_is_not_the_same_number() -> None:
    assert need(Span(7 * MIB, None, None), 7 * MIB) == "needs at least 7 MiB of 7 MiB"
    assert need(Span(1, 2 * MIB, 7 * MIB + 1), 7 * MIB) == "needs about 2 MiB (1 to 8) of 7 MiB"
    assert need(Span(7 * MIB, None, None), 7 * MIB - 1) == "needs at least 7 MiB of 6 MiB"


def test_train_estimate_and_the_plan_of_a_sweep_say_the_same(
    experiment: Experiment, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = smoke_estimate(experiment)
    assert found.device_bytes.high is None
    need_mib = f"needs at least {found.device_bytes.low / MIB:,.0f} MiB of "
    with caplog.at_level(logging.INFO):
        budget.check_budget(experiment("experiment=smoke"), done(found), 2**30)
    assert f"the run {need_mib}1,024 MiB free on a CPU; fits: not known (" in caplog.text
    assert table.conclusion(found) == f"The run {need_mib}1,024 MiB on a CPU; fits: not known."
    sweep.prepare(["-m", "experiment=smoke", "device=cpu", "seed=1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}"])
    said = capsys.readouterr().out.splitlines()[1]
    assert re.fullmatch(rf".* \| {need_mib}[\d,]+ MiB free; fits: not known", said)


WRONG = {
    "hardware=rtx4090": "Did you mean rtx_4090?",
    "hardware.name=": "hardware.name= is out of range.",
    "format=xml": "format=xml is out of range. Allowed: one of table, json, png.",
    "fit=largest": "fit=largest is out of range. Allowed: one of num_envs, num_mini_batches, frontier.",
    "num_envs=0": "num_envs=0 is out of range.",
    "run=nowhere": "nowhere/config.yaml: is missing",
    "plot=picture.jpg": "plot=picture.jpg is out of range.",
    "plot=no/such/folder.png": "plot=no/such/folder.png: there is no folder no/such.",
}


@pytest.mark.parametrize(("override", "message"), WRONG.items(), ids=WRONG)
def test_a_wrong_override_is_refused_in_one_line(override: str, message: str) -> None:
    done = ask("experiment=smoke", override)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_help_lists_the_cards_explains_every_key_of_its_own_and_has_examples_that_are_accepted() -> None:
    done = ask("--help")
    assert done.returncode == 0
    assert "hardware: a100_80gb" in done.stdout
    for key in dataclasses.fields(estimating.Question):
        assert re.search(rf"^  {key.name}[=.]", done.stdout, re.MULTILINE), key.name
    examples = re.findall(r"^  python estimate\.py ([a-z]\S*(?: [^\s|]+)*)", done.stdout, re.MULTILINE)
    assert "env=hover hardware=rtx_4090" in examples
    for example in examples:
        estimating.ask(example.split())


def test_a_card_of_ones_own_is_given_by_overrides_and_what_is_left_out_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    overrides = ["trace=false", "format=json", "hardware.name=RTX 5070", "hardware.memory_mib=12227"]
    assert estimating.main(overrides) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["hardware"] == {
        "name": "RTX 5070",
        "memory_bytes": 12_227 * MIB,
        "compute_capability": "8.9",
        "multiprocessors": 24,
    }
    assert said.err.splitlines() == [
        "note: hardware.compute_capability=8.9 and hardware.multiprocessors=24 are those of hardware=rtx_4060. "
        "Give those of RTX 5070, from its data sheet."
    ]
    assert estimating.main([*overrides, "hardware.compute_capability=12.0"]) == 0
    assert capsys.readouterr().err.startswith("note: hardware.multiprocessors=24 is that of hardware=rtx_4060")
    assert estimating.main([*overrides, "hardware.compute_capability=12.0", "hardware.multiprocessors=48"]) == 0
    assert capsys.readouterr().err == ""


def test_the_map_has_the_card_that_was_asked_for_and_leaves_out_a_file_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hardware").mkdir()
    for name, text in {
        "big": "memory_mib: 24576",
        "empty": "",
        "text": "- a",
        "odd": "memory_mib: 8 GB",
        "bad": "\t{",
    }.items():
        (tmp_path / "hardware" / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(estimating, "CONF", tmp_path)
    assert estimating._cards(Hardware("a card", 12288, "8.9", 24)) == {
        "big (24 GB)": 24_576 * MIB,
        "this card (12 GB)": 12_288 * MIB,
    }
    assert estimating._cards(Hardware("the big one", 24576, "8.9", 24)) == {"big (24 GB)": 24_576 * MIB}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stderr", [Terminal(), io.StringIO()], ids=["terminal", "file"])
def test_a_long_answer_shows_how_far_it_is_on_a_terminal_alone(
    stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # it is for colours, and makes no terminal of a file
    monkeypatch.setattr(sys, "stderr", stderr)
    answer = largest.LargestRun(7, 1, 1, 1, largest.TENSORS, 8, 1, 2)
    monkeypatch.setattr(largest, "largest_num_envs", lambda *_: answer)
    assert estimating.main(["experiment=smoke", "fit=frontier", "format=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["num_envs"] for one in found["fits"]] == [7] * 6
    shown = stderr.getvalue()
    assert shown == "" or isinstance(stderr, Terminal)
    steps = [f"{n} of 6: the largest num_envs with num_mini_batches={m}" for n, m in enumerate((1, 2, 4, 8, 16, 32), 1)]
    assert [step for step in steps if step in shown] == (steps if isinstance(stderr, Terminal) else [])


def test_this_machine_without_a_gpu_is_its_processor_and_memory(experiment: Experiment) -> None:
    done = ask("experiment=smoke", "hardware=this", "device=cpu", "format=json")
    answer = json.loads(done.stdout)
    if answer["hardware"]["compute_capability"] == "cpu":
        assert answer["reserved_peak_bytes"] is None
        assert answer["allocated_peak_bytes"] == max(answer["update_peak_bytes"], answer["rollout_peak_bytes"])


def smoke_estimate(experiment: Experiment) -> Estimate:
    return estimate(experiment("experiment=smoke"), Hardware("a CPU", 1024, "cpu", 0))


def done(found: Estimate) -> Future[Estimate]:
    future: Future[Estimate] = Future()
    future.set_result(found)
    return future


@pytest.mark.slow
def test_a_run_that_will_not_fit_is_stopped_with_what_would(experiment: Experiment) -> None:
    overrides = ["experiment=smoke", "num_steps_per_env=2"]
    found = estimate(experiment(*overrides), Hardware("a CPU", 1024, "cpu", 0))
    with pytest.raises(OverBudgetError) as stopped:
        budget.check_budget(experiment(*overrides), done(found), found.device_bytes.low - 1)
    assert "fits: no. Try num_envs=" in str(stopped.value)
    largest = int(str(stopped.value).partition("Try num_envs=")[2].partition(",")[0])
    assert 1 <= largest < 16
    smaller = estimate(experiment(*overrides, f"num_envs={largest}"), found.hardware)
    assert smaller.device_bytes.low < found.device_bytes.low - 1


def test_the_run_starts_all_the_same_if_it_is_told_to(experiment: Experiment, caplog: pytest.LogCaptureFixture) -> None:
    found = smoke_estimate(experiment)
    cfg = experiment("experiment=smoke", "memory.over_budget=warn")
    assert budget.check_budget(cfg, done(found), free_bytes=0) is found
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_the_high_figure_decides_where_it_is_known(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "advice", lambda *_: "")  # the test before waits for it
    cfg = experiment("experiment=smoke")
    found = dataclasses.replace(smoke_estimate(experiment), device_bytes=Span(10 * MIB, 20 * MIB, 30 * MIB))
    budget.check_budget(cfg, done(found), 30 * MIB)
    with pytest.raises(OverBudgetError, match=r"needs about 20 MiB \(10 to 30\) of 29 MiB free"):
        budget.check_budget(cfg, done(found), 30 * MIB - 1)


def test_what_cannot_be_predicted_does_not_stop_a_run(experiment: Experiment, caplog: pytest.LogCaptureFixture) -> None:
    failed: Future[Estimate] = Future()
    failed.set_exception(ConfigError("this cannot be traced"))
    with caplog.at_level(logging.INFO):
        assert budget.check_budget(experiment("device=cpu"), failed, free_bytes=2**31) is None
    # the closed forms of Go2 come to 382.5 MiB; the simulator is beyond that
    with pytest.raises(OverBudgetError, match=r"the run needs at least [\d,]+ MiB of 382 MiB free; fits: no\. Try"):
        budget.check_budget(experiment("device=cpu"), failed, free_bytes=382 * MIB)
    assert "this cannot be traced" in caplog.text


@pytest.mark.parametrize(
    ("predicted_for", "on_gpu", "said"),
    [
        (Hardware("RTX 4060", 7936, "8.9", 24), False, "it was made for RTX 4060, and torch uses the CPU"),
        (Hardware("a CPU", 1024, "cpu", 0), True, "it was made for a CPU, and torch uses a GPU"),
    ],
)
def test_a_prediction_for_what_torch_does_not_use_is_none(
    predicted_for: Hardware, on_gpu: bool, said: str, experiment: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    found = dataclasses.replace(smoke_estimate(experiment), hardware=predicted_for)
    with caplog.at_level(logging.INFO):
        assert budget.check_budget(experiment("experiment=smoke"), done(found), 0, on_gpu) is None
    assert said in caplog.text


def test_a_run_whose_simulator_was_never_counted_is_held_to_what_is_known(
    experiment: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = experiment("experiment=smoke", "memory.over_budget=warn")
    found = dataclasses.replace(
        smoke_estimate(experiment), simulator_bytes=None, device_bytes=Span(9 * MIB, None, None)
    )
    with caplog.at_level(logging.INFO):
        budget.check_budget(cfg, done(found), 9 * MIB)
        budget.check_budget(cfg, done(found), 9 * MIB - 1)
    assert "estimate.py with the same overrides counts it once" in caplog.text
    assert [record.levelno for record in caplog.records if "the run needs" in record.message] == [
        logging.INFO,
        logging.WARNING,
    ]


def test_more_envs_than_the_simulator_builds_are_refused_whatever_the_memory(experiment: Experiment) -> None:
    # Go2: 486 rows x 18 degrees of freedom x 245,482 envs is the last product below 2^31
    assert simulator.too_many_envs(experiment("num_envs=245482", "num_steps_per_env=2")) is None
    with pytest.raises(OverBudgetError, match="Allowed: up to num_envs=245482"):
        budget.check_budget(experiment("num_envs=245484", "num_steps_per_env=2"), Future(), free_bytes=2**60)


def test_an_iteration_too_long_to_trace_is_not_traced(experiment: Experiment) -> None:
    with pytest.raises(ConfigError, match=r"an iteration of 100,020 steps and mini-batches is too long to trace"):
        trace(experiment("num_steps_per_env=100000"))  # and 5 epochs x 4 mini-batches


def finished_run(folder: Path, peak_rss_mib: float) -> Path:
    from ppo_lab import config
    from ppo_lab.cli.compose import compose
    from ppo_lab.runs.config import to_experiment

    folder.mkdir()
    (folder / "config.yaml").write_text(config.to_json(to_experiment(compose(["experiment=smoke"]))))
    packages = {name: metadata.version(name) for name in ("torch", "genesis-world")}
    packages["python"] = platform.python_version()
    machine = {"cpu": "a CPU", "cpu_cores": os.cpu_count(), "memory_gib": 1.0}
    manifest = {"machine": machine, "packages": packages, "started": str(folder)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "summary.json").write_text('{"startup_s": 20.0}')
    times = {"Perf/collection_time": 2.0, "Perf/learning_time": 1.0}
    lines = [{"iteration": n, "Memory/host_peak_rss_mib": peak_rss_mib - 1 + n} | times for n in range(2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_finished_run_teaches_the_overhead_of_its_device(experiment: Experiment, tmp_path: Path) -> None:
    before = smoke_estimate(experiment)
    prediction = table.as_json(before)
    for name, peak_rss_mib in (("one", 500), ("two", 520)):
        run = measured.read_run(finished_run(tmp_path / name, peak_rss_mib))
        assert measured.overhead_bytes(run, prediction) == peak_rss_mib * MIB - before.device_bytes.low
        learned = measured.measured_run(run, prediction)
        assert learned is not None
        for _ in range(2):  # the same run counts once
            calibration.remember(measured.versions(run), [learned], "finished runs", "2026-11-26")
    after = smoke_estimate(experiment)
    assert after.device_bytes.likely == pytest.approx(510 * MIB, rel=0.001)
    assert after.device_bytes.low < 500 * MIB
    assert (after.device_bytes.high or 0) > 520 * MIB
    assert after.host_bytes == after.device_bytes
    assert after.fits is True
    assert after.calibration == "2 runs on a CPU, 2026-11-26"
    [overhead] = [row.bytes for row in after.rows if row.name == "overhead"]
    assert overhead == (after.device_bytes.likely or 0) - before.device_bytes.low
    comparison = measured.compare(table.as_json(after), run.peak_mib)
    assert [(one.name, round(one.error_percent, 1)) for one in comparison] == [("host_peak_rss", -2.0)]
    # start-up and 2 iterations of 3 s each
    assert after.wall_s is not None
    assert after.wall_s.likely == pytest.approx(20 + experiment("experiment=smoke").max_iterations * 3)


def test_a_folder_without_iterations_cannot_be_compared(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", 500)
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match="has no iteration to compare with"):
        measured.read_run(run)


def test_a_killed_runs_half_line_and_its_nulls_do_not_hide_its_peaks(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", 500)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 2, "Memory/host_peak_rss_mib": null, "Memory/host_rss_mib": 7.0}\n')
        file.write('{"iteration": 3, "Memory/host_peak_rss_mib": 90')
    assert measured.read_run(run).peak_mib == {"Memory/host_peak_rss_mib": 500.0, "Memory/host_rss_mib": 7.0}


@pytest.mark.parametrize("manifest", ['{"mach', "null", "{}", '{"machine": {"cpu": "one"}}', '{"machine": null}'])
def test_a_manifest_without_its_machine_is_refused_by_name(tmp_path: Path, manifest: str) -> None:
    run = finished_run(tmp_path / "run", 500)
    (run / "manifest.json").write_text(manifest)
    with pytest.raises(ConfigError, match=r"manifest\.json does not say on which machine it ran"):
        measured.read_run(run)
