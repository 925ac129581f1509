"""Faults in real runs: killed, stopped, broken files, a full disk. Nothing is lost that was saved."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ppo_lab import envs
from ppo_lab.cli.choose_run import _newest, prepare
from ppo_lab.cli.compose import compose
from ppo_lab.errors import ConfigError
from ppo_lab.learning import checkpoint
from ppo_lab.runs.config import read_experiment, to_experiment
from ppo_lab.runs.files import numbered
from ppo_lab.runs.folder import try_lock
from ppo_lab.runs.record import read_metrics
from ppo_lab.training import reproduction
from ppo_lab.training.stopping import AGAIN_AFTER_S
from tests.forked_runs import (
    ITERATIONS,
    OVERRIDES,
    Fault,
    ForkedRun,
    begin,
    dashboard_fails,
    is_complete,
    killed_before_touching,
    killed_with_half_a_file,
    rows_so_far,
    signalled_before_touching,
    until,
)

Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """By env, a run that was never stopped, every state kept."""
    made: dict[str, Path] = {}

    def of(env: str) -> Path:
        if env not in made:
            made[env] = tmp_path_factory.mktemp("straight") / env
            code, printed = ForkedRun(
                begin(env, made[env], "checkpoint.keep_state=1000"), made[env].parent / "out"
            ).ends()
            assert code == 0, printed
        return made[env]

    return of


def run_to_end(overrides: list[str], tmp_path: Path, fault: Fault | None = None) -> tuple[int, str]:
    code, printed = ForkedRun(overrides, tmp_path / "out", fault).ends()
    assert "Traceback" not in printed
    return code, printed


def go_on(folder: Path, tmp_path: Path, *more: str) -> str:
    """Resumes the run in `folder` to its end, and returns what was printed."""
    code, printed = run_to_end([f"resume={folder}", *more], tmp_path)
    assert code == 0, printed
    return printed


def assert_same(straight: Path, other: Path) -> None:
    """`other` ended as `straight` did or was after as many iterations: every bit but of the machine."""
    rows = rows_of(other)
    assert rows == rows_of(straight)[: len(rows)]
    last = len(rows) - 1
    for kind in ("model", "state"):
        name = f"checkpoints/{kind}_{last}.pt"
        assert_equal(checkpoint.load(straight / name), checkpoint.load(other / name), name)
    in_file = read_metrics(other)
    assert [row["iteration"] for row in in_file] == list(range(last + 1))
    board = EventAccumulator(str(other), size_guidance={"scalars": 0}).Reload()
    tags = {tag for tag in board.Tags()["scalars"] if not tag.startswith("Result/")}
    assert tags == {tag for row in in_file for tag in row} - {"iteration"}
    for tag in tags:
        on_board = [(event.step, event.value) for event in board.Scalars(tag)]
        assert on_board == [(step, float32(row[tag])) for step, row in enumerate(in_file) if tag in row], tag
    assert json.loads((other / "summary.json").read_text())["iterations"] == last + 1


def rows_of(run: Path) -> list[dict[str, float]]:
    return [
        {tag: value for tag, value in row.items() if not tag.startswith(reproduction.TIMING_TAGS)}
        for row in read_metrics(run)
    ]


def float32(value: float) -> float:
    return torch.tensor(value, dtype=torch.float32).item()


def assert_equal(one: Any, other: Any, where: str) -> None:
    assert type(one) is type(other), where
    match one:
        case torch.Tensor():
            assert one.dtype == other.dtype, where
            assert torch.equal(
                one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8)
            ), where
        case dict():
            assert list(one) == list(other), where
            for key in one:
                assert_equal(one[key], other[key], f"{where}.{key}")
        case list() | tuple():
            assert len(one) == len(other), where
            for index, pair in enumerate(zip(one, other, strict=True)):
                assert_equal(*pair, f"{where}[{index}]")
        case _:
            assert one == other, where


@pytest.mark.slow
@pytest.mark.parametrize("env", envs.names())
def test_a_forked_run_and_a_process_of_its_own_give_identical_results(
    env: str, straight: Callable[[str], Path], train: Callable[..., Any], tmp_path: Path
) -> None:
    done = train(*begin(env, tmp_path / "run", "max_iterations=3"))
    assert done.returncode == 0, done.stderr
    assert_same(straight(env), tmp_path / "run")


# Killed


ROUNDS = [pytest.param(0, 3), *(pytest.param(number, 6, marks=pytest.mark.slow) for number in range(1, 6))]


@pytest.mark.parametrize("env", envs.names())
@pytest.mark.parametrize(("number", "kills"), ROUNDS)
def test_a_run_killed_at_random_moments_and_resumed_ends_as_an_uninterrupted_run(
    number: int, kills: int, env: str, straight: Callable[[str], Path], tmp_path: Path, record_property: Record
) -> None:
    dice, run, killed = random.Random(f"{env} {number}"), tmp_path / "run", 0
    overrides = begin(env, run)
    for _ in range(kills):
        forked = ForkedRun([*overrides, "resume=auto"], tmp_path / "out")
        rows = rows_so_far(run)
        if dice.random() < 0.2:
            time.sleep(dice.uniform(0, 1))  # before training, mostly
        elif until(lambda: rows_so_far(run) > rows, forked):  # noqa: B023
            time.sleep(dice.uniform(0, 0.05))
        if not forked.is_over():
            os.kill(forked.pid, signal.SIGKILL)
        code, printed = forked.ends()
        assert code in (-signal.SIGKILL, 0), printed
        killed += code != 0
        if code == 0:
            break
    else:
        code, printed = run_to_end([*overrides, "resume=auto"], tmp_path)
        assert code == 0, printed
    assert killed
    assert_same(straight(env), run)
    record_property("fault", "SIGKILL at a random moment")
    record_property("tried", killed)


STAGES: list[str | Fault] = [
    killed_with_half_a_file(6),
    *("os.rename .state_", "open .model_", "os.rename .model_", "os.remove state_"),
    *("os.rename .metrics", "open .config", "os.rename .manifest", "open events", "os.rename .summary"),
]
"""Where a run is killed: writing a checkpoint, and on coming back."""


@pytest.mark.parametrize("env", ["hover", pytest.param("go2", marks=pytest.mark.slow)])
def test_a_run_killed_while_it_writes_a_file_and_resumed_ends_as_an_uninterrupted_run(
    env: str, straight: Callable[[str], Path], tmp_path: Path, record_property: Record
) -> None:
    run = tmp_path / "run"
    for first in ("open .best", "os.rename .best"):  # at the first best, which no seed puts off for long
        code, printed = run_to_end(
            begin(env, run), tmp_path, killed_before_touching(run, first.replace(" .", r" \."), 1)
        )
        assert code == -signal.SIGKILL, f"{first}: {printed}"
        shutil.rmtree(run)
    assert run_to_end(begin(env, run), tmp_path, killed_before_touching(run, "open .model_", 3))[0] == -signal.SIGKILL
    for stage in STAGES:
        fault = killed_before_touching(run, stage.replace(" .", r" \."), 1) if isinstance(stage, str) else stage
        code, printed = run_to_end([f"resume={run}"], tmp_path, fault)
        assert code == -signal.SIGKILL, f"{stage}: {printed}"
    go_on(run, tmp_path)
    assert_same(straight(env), run)
    record_property("fault", "SIGKILL while a file is written")
    record_property("tried", 3 + len(STAGES))


@pytest.mark.slow
def test_a_run_killed_before_each_file_operation_and_resumed_ends_as_an_uninterrupted_run(
    straight: Callable[[str], Path], tmp_path: Path, record_property: Record
) -> None:
    """Killed before its first touch of the folder, its second, ...; and each time once more on coming back."""
    tried = 0
    for nth in itertools.count(1):
        run = tmp_path / f"run_{nth}"
        overrides = [*begin("hover", run, "max_iterations=2"), "resume=auto"]
        code, printed = run_to_end(overrides, tmp_path, killed_before_touching(run, "", nth))
        if code == 0:
            break
        assert code == -signal.SIGKILL, printed
        tried += 1
        if not is_complete(run):
            killed = (
                run_to_end(overrides, tmp_path, killed_before_touching(run, "", nth // 2 + 1))[0] == -signal.SIGKILL
            )
            tried += killed
        if not is_complete(run):
            code, printed = run_to_end(overrides, tmp_path)
            assert code == 0, printed
        assert_same(straight("hover"), run)
        shutil.rmtree(run)
    assert tried > 40
    record_property("fault", "SIGKILL before a given touch of the disk")
    record_property("tried", tried)


def test_a_run_killed_before_its_last_summary_is_completed_by_resume_auto(
    straight: Callable[[str], Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    overrides = [*begin("hover", run, "max_iterations=2"), "resume=auto"]
    assert run_to_end(overrides, tmp_path, killed_before_touching(run, r"os.rename \.summary", 2))[0] == -signal.SIGKILL
    assert run_to_end(overrides, tmp_path)[0] == 0
    assert_same(straight("hover"), run)
    assert is_complete(run)
    code, printed = run_to_end(overrides, tmp_path)
    assert (code, printed.count("\n")) == (0, 1)
    assert f"{run} is complete: all 2 iterations are done. To train on: " in printed
    assert f"train.py resume={run} max_iterations=4" in printed


def test_a_run_killed_before_its_first_checkpoint_starts_over(
    straight: Callable[[str], Path], tmp_path: Path, record_property: Record
) -> None:
    run = tmp_path / "run"
    overrides = begin("hover", run, "save_interval=1000", "checkpoint.every_seconds=null")
    fault = killed_before_touching(run, r"os.rename \.state_0")
    assert run_to_end(overrides, tmp_path, fault)[0] == -signal.SIGKILL
    assert rows_so_far(run) > 0
    assert "nothing was saved yet: the run starts over" in go_on(run, tmp_path)
    assert_same(straight("hover"), run)


def test_a_run_resumed_from_an_older_checkpoint_sets_newer_ones_aside_and_ends_as_an_uninterrupted_run(
    straight: Callable[[str], Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    stop = signalled_before_touching(signal.SIGTERM, run, r"open \.model_", 7)
    assert run_to_end(begin("hover", run, "checkpoint.keep_state=4"), tmp_path, stop)[0] == 75
    older = sorted(numbered(run / "checkpoints", "state"))[1]
    overrides = [f"resume={run}/checkpoints/state_{older}.pt"]
    for moment in (r"os.rename \.manifest", r"open \.state_"):  # its rows are gone by then, or not yet replaced
        assert run_to_end(overrides, tmp_path, killed_before_touching(run, moment))[0] == -signal.SIGKILL
        overrides = [f"resume={run}"]
    assert (run / "checkpoints" / f"model_{older + 1}.pt.old").exists()
    assert rows_so_far(run) <= older + 2
    go_on(run, tmp_path)
    assert_same(straight("hover"), run)


# Stopped


@pytest.mark.parametrize(
    "env", [pytest.param(env, marks=pytest.mark.slow) if env == "go2_walk" else env for env in envs.names()]
)
def test_a_run_stopped_by_four_signals_in_turn_and_resumed_ends_as_an_uninterrupted_run(
    env: str, straight: Callable[[str], Path], tmp_path: Path, record_property: Record
) -> None:
    run = tmp_path / "run"
    overrides = begin(env, run, "save_interval=4")
    stops = [(signal.SIGTERM, 2, 75), (signal.SIGINT, 1, 130), (signal.SIGUSR1, 3, 75), (signal.SIGHUP, 1, 129)]
    for number, new_rows, code in stops:
        rows = rows_so_far(run)
        forked = ForkedRun(overrides, tmp_path / "out")
        assert until(lambda: rows_so_far(run) >= rows + new_rows, forked)  # noqa: B023
        os.kill(forked.pid, number)
        ended, printed = forked.ends()
        assert ended == code, printed
        assert "Traceback" not in printed
        summary = json.loads((run / "summary.json").read_text())
        assert (summary["status"], summary["iterations"]) == ("interrupted", rows_so_far(run))
        assert (run / "checkpoints" / f"state_{rows_so_far(run) - 1}.pt").exists()
        overrides = [f"resume={run}"]
    go_on(run, tmp_path)
    assert_same(straight(env), run)
    record_property("fault", "SIGTERM, SIGINT, SIGUSR1, SIGHUP")
    record_property("tried", len(stops))


def test_a_second_sigterm_stops_within_the_iteration(tmp_path: Path) -> None:
    run = tmp_path / "run"
    forked = ForkedRun(begin("hover", run, "num_steps_per_env=100000"), tmp_path / "out")  # minutes
    assert until((run / "train.log").exists, forked)
    assert until(lambda: "critic" in (run / "train.log").read_text().lower(), forked)
    time.sleep(1)
    os.kill(forked.pid, signal.SIGTERM)
    assert until(lambda: "again stops at once" in (tmp_path / "out").read_text(), forked)
    os.kill(forked.pid, signal.SIGTERM)  # as shells and `timeout` send theirs twice: the first once more
    time.sleep(AGAIN_AFTER_S + 0.5)
    assert not forked.is_over()
    os.kill(forked.pid, signal.SIGHUP)  # nobody asks for haste by it
    time.sleep(0.5)
    assert not forked.is_over()
    os.kill(forked.pid, signal.SIGTERM)
    code, text = forked.ends(60)
    assert code == 75, text
    assert "Traceback" not in text
    assert "interrupted: 0 iterations" in text
    assert not run.exists()


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGTERM, r"os.rename \.manifest"),
        (signal.SIGINT, r"os.rename \.config"),
        (signal.SIGUSR1, r"open train\.log"),
    ],
)
def test_a_signal_before_the_first_iteration_leaves_no_run_folder(
    number: signal.Signals, moment: str, straight: Callable[[str], Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    overrides = [*begin("hover", run, "max_iterations=2"), "resume=auto"]
    code, printed = run_to_end(overrides, tmp_path, signalled_before_touching(number, run, moment))
    assert code == (130 if number == signal.SIGINT else 75), printed
    assert "after a checkpoint" not in printed
    assert not run.exists(), "of a run that never began nothing is kept"
    assert run_to_end(overrides, tmp_path)[0] == 0
    assert_same(straight("hover"), run)


def test_resume_auto_takes_the_newest_unfinished_run_with_the_same_overrides(
    straight: Callable[[str], Path], tmp_path: Path
) -> None:
    overrides = [*OVERRIDES, "env=hover"]
    outputs = tmp_path / "outputs" / "hover"

    def auto(*more: str, fault: Fault | None = None) -> tuple[int, str]:
        return ForkedRun([*overrides, "resume=auto", *more], tmp_path / "out", fault, cwd=tmp_path).ends()

    stop = signalled_before_touching(signal.SIGTERM, outputs, r"open \.model_")
    code, printed = auto(fault=stop)
    assert code == 75
    assert "resume=auto: a new run begins, as there is no run in outputs/hover\n" in printed
    (run,) = outputs.iterdir()
    code, printed = auto("algorithm.gamma=0.5", "run_name=other", fault=stop)
    assert code == 75
    assert (
        f"none in outputs/hover has these settings; the newest, {run.name}, differs in algorithm.gamma, run_name"
        in printed
    )
    assert len(list(outputs.iterdir())) == 2
    held = try_lock(run)
    code, printed = auto(fault=stop)
    assert code == 75
    assert f"a new run begins, as another process trains outputs/hover/{run.name}\n" in printed
    assert len(list(outputs.iterdir())) == 3
    assert held
    held.close()
    newest = outputs / "a name that comes first"
    max(outputs.iterdir()).rename(newest)
    code, printed = auto()
    assert code == 0
    assert (
        f"goes on with outputs/hover/{newest.name}, the unfinished run of these settings that started last" in printed
    )
    assert is_complete(newest)
    assert auto()[0] == 0
    assert is_complete(run)
    assert_same(straight("hover"), run)
    code, printed = auto()
    assert (code, len(printed.splitlines())) == (0, 1), "all of them complete"
    assert f"outputs/hover/{newest.name} is complete: all {ITERATIONS} iterations are done" in printed
    assert len(list(outputs.iterdir())) == 3


# Broken files


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_a_foreign_one(path: Path) -> None:
    torch.save({"model": torch.zeros(3)}, path)


BREAKERS: dict[Callable[[Path], None], str] = {
    cut: "is cut short",
    flip_a_bit: "does not match its checksum",
    empty: "is empty",
    replace_by_a_foreign_one: "is cut short, or was not written by this project",
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after some iterations, with two states."""
    folder = tmp_path_factory.mktemp("stopped")
    stop = signalled_before_touching(signal.SIGTERM, folder / "run", r"open \.model_", 3)
    assert run_to_end(begin("hover", folder / "run"), folder, stop)[0] == 75
    return folder / "run"


@pytest.mark.parametrize("kind", ["model", "state"])
@pytest.mark.parametrize("break_it", BREAKERS, ids=lambda breaker: breaker.__name__)
def test_a_broken_checkpoint_is_named_and_the_run_resumes_from_the_one_before(
    break_it: Callable[[Path], None], kind: str, stopped: Path, straight: Callable[[str], Path], tmp_path: Path
) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    newest = max(numbered(run / "checkpoints", "state"))
    broken = run / "checkpoints" / f"{kind}_{newest}.pt"
    break_it(broken)
    found, _ = prepare([f"resume={run}"])
    assert found
    assert found.checkpoint == newest - 1
    (warning,) = found.warnings
    assert warning.startswith(f"{broken} {BREAKERS[break_it]}")
    found.lock.close()

    with pytest.raises(ConfigError) as refused:
        prepare([f"resume={broken}"])
    assert str(broken) in str(refused.value)
    assert f"Allowed: those of iteration {newest - 1}." in str(refused.value)

    if (kind, break_it) in (("model", cut), ("state", flip_a_bit)):  # to the end, two of them
        assert f"warning: {broken} {BREAKERS[break_it]}" in go_on(run, tmp_path)
        assert_same(straight("hover"), run)


def test_a_checkpoint_of_another_iteration_or_network_is_refused_by_name(stopped: Path, tmp_path: Path) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    models = numbered(run / "checkpoints", "model")
    newest = max(models)
    shutil.copy(models[newest - 1], models[newest])
    code, printed = run_to_end([f"resume={run}"], tmp_path)
    assert code == 1
    assert f"{models[newest]} is of iteration {newest - 1}" in printed
    other = checkpoint.load(models[newest - 1])
    other["iter"] = newest
    other["actor_state_dict"] = {"mlp.0.weight": torch.zeros(2, 2)}
    checkpoint.save(models[newest], other)
    code, printed = run_to_end([f"resume={run}"], tmp_path)
    assert code == 1
    assert f"{models[newest]} or its state does not fit this run" in printed


def test_a_run_whose_states_are_all_broken_is_refused_with_advice(stopped: Path, tmp_path: Path) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    for path in numbered(run / "checkpoints", "state").values():
        flip_a_bit(path)
    code, printed = run_to_end([f"resume={run}"], tmp_path)
    assert code == 2
    (line,) = printed.splitlines()
    assert line.count("does not match its checksum") == 2
    assert "The weights alone cannot go on exactly" in line


def test_a_checkpoint_without_its_state_is_refused(stopped: Path) -> None:
    with pytest.raises(ConfigError, match=r"iteration 0 has weights alone.*Allowed: those of iteration \d+ or \d+\."):
        prepare([f"resume={stopped}/checkpoints/model_0.pt"])


# What may change


@pytest.mark.parametrize(
    "override", ["seed=2", "num_envs=32", "env=go2", "algorithm.gamma=0.9", "algorithm.desired_kl=0.5",
             "network.actor.init_std=2.0", "experiment=hover_small", "deterministic=true", "env.dt=0.02"]
)  # fmt: skip
def test_an_override_that_would_change_a_resumed_run_is_refused_by_name(override: str, stopped: Path) -> None:
    key = {"env=go2": "env", "experiment=hover_small": ""}.get(override, override.partition("=")[0])
    with pytest.raises(
        ConfigError, match=rf"{key}\S*=\S+ would change the run, which has .* Allowed to change: max_it"
    ):
        prepare([f"resume={stopped}", override])


def test_overrides_beside_resume_are_checked_against_the_env_of_the_run(stopped: Path) -> None:
    found, _ = prepare([f"resume={stopped}", "env.yaw_lambda=-10.0"])
    assert found
    found.lock.close()
    with pytest.raises(ConfigError, match=r"env\.yaw_lambda=-5 would change the run, which has -10\.0"):
        prepare([f"resume={stopped}", "env.yaw_lambda=-5"])
    with pytest.raises(ConfigError, match=r"unknown key env\.yaw_lamda\. Did you mean env\.yaw_lambda\?"):
        prepare([f"resume={stopped}", "env.yaw_lamda=-5"])
    with pytest.raises(ConfigError, match=r"unknown key env\.robot\.kp\."):
        prepare([f"resume={stopped}", "env.robot.kp=30"])


@pytest.mark.parametrize("start", ["resume", "reproduce"])
def test_a_config_that_was_changed_since_the_run_began_is_refused_with_what_differs(
    start: str, stopped: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["algorithm"]["learning_rate"], config["num_envs"] = 0.01, 32
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError) as refused:
        prepare([f"{start}={run}"])
    message = str(refused.value)
    assert "num_envs was 16 and is 32" in message
    assert "algorithm.learning_rate was 0.0003 and is 0.01" in message
    overrides = shlex.split(message.partition("train a new run: ")[2])[2:]
    new = to_experiment(compose(overrides))
    assert (new.env.name, new.num_envs, new.algorithm.learning_rate) == ("hover", 32, 0.01)


def test_iterations_may_be_added_in_the_config_as_well(stopped: Path, tmp_path: Path) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"max_iterations": 99}))
    found, _ = prepare([f"resume={run}"])
    assert found
    assert found.cfg.max_iterations == 99
    found.lock.close()


def test_fewer_iterations_than_are_done_are_refused(stopped: Path) -> None:
    done = rows_so_far(stopped)
    with pytest.raises(ConfigError, match=rf"{done} iterations are done.* Try max_iterations={2 * done} "):
        prepare([f"resume={stopped}", f"max_iterations={done - 1}"])


def test_settings_that_do_not_change_what_is_learned_may_change_on_resume(
    stopped: Path, straight: Callable[[str], Path], tmp_path: Path
) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    done = rows_so_far(run)
    overrides = [f"max_iterations={done + 3}", "quiet=true", "checkpoint.keep_state=1", "save_interval=100"]
    assert "iteration" not in go_on(run, tmp_path, *overrides)
    assert list(numbered(run / "checkpoints", "state")) == [done + 2]
    assert_same(straight("hover"), run)


# Another kind of device


@pytest.fixture
def on_a_gpu(stopped: Path, tmp_path: Path) -> Path:
    """The run, as if it had been trained on a GPU."""
    run = shutil.copytree(stopped, tmp_path / "run")
    for path in numbered(run / "checkpoints", "state").values():
        state = checkpoint.load(path)
        state["random"]["cuda"] = torch.zeros(16, dtype=torch.uint8)
        checkpoint.save(path, state)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["machine"]["device"] = "cuda:0"
    (run / "manifest.json").write_text(json.dumps(manifest))
    return run


def test_a_run_of_a_gpu_resumed_with_device_cpu_warns_and_trains_on_there(on_a_gpu: Path, tmp_path: Path) -> None:
    done = rows_so_far(on_a_gpu)
    printed = go_on(on_a_gpu, tmp_path, "device=cpu", f"max_iterations={done + 1}")
    assert "warning: device was cuda:0 and is cpu: the result may differ" in printed
    assert "warning: saved on cuda, the run goes on on cpu, whose random numbers begin anew" in printed
    manifest = json.loads((on_a_gpu / "manifest.json").read_text())
    assert manifest["exact"] == f"not claimed: trained on cuda:0, from iteration {done} on cpu"
    assert manifest["continued"][-1]["exact"] == manifest["exact"]
    assert read_experiment(on_a_gpu / "config.yaml").device == "cpu"
    printed = go_on(on_a_gpu, tmp_path, f"max_iterations={done + 2}")
    assert "begin anew" not in printed
    assert rows_so_far(on_a_gpu) == done + 2


def test_a_state_that_does_not_fit_the_other_kind_of_device_is_refused_and_no_file_changes(
    on_a_gpu: Path, tmp_path: Path
) -> None:
    newest = max(numbered(on_a_gpu / "checkpoints", "state").values(), key=lambda path: path.stat().st_mtime)
    state = checkpoint.load(newest)
    state["env"]["simulator"]["rigid_solver.of_a_gpu"] = torch.zeros(3)
    checkpoint.save(newest, state)
    kept = {path.name: path.read_bytes() for path in (on_a_gpu / "checkpoints").iterdir()}
    for _ in range(2):
        code, printed = run_to_end([f"resume={on_a_gpu}", "device=cpu"], tmp_path)
        assert code == 1
        error = printed.splitlines()[-1]
        assert error.startswith("error: ")
        assert "the simulator has no rigid_solver.of_a_gpu, which the saved state has. It was saved on cuda" in error
        assert "it can go on with device=cuda alone" in error
        assert read_experiment(on_a_gpu / "config.yaml").device == "auto"
        assert {path.name: path.read_bytes() for path in (on_a_gpu / "checkpoints").iterdir()} == kept


def test_resume_auto_takes_no_run_with_another_device_setting(stopped: Path, tmp_path: Path) -> None:
    run = shutil.copytree(stopped, tmp_path / "outputs" / "hover" / "run")
    asked = to_experiment(compose([*OVERRIDES, "env=hover", "device=cpu"]))
    found, why = _newest(asked, run, is_folder_named=False)
    assert found is None
    assert "differs in device" in why
    asked.device = "auto"
    assert _newest(asked, run, is_folder_named=False)[0] == run


# One folder, one process


def test_a_second_process_on_a_run_folder_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = ForkedRun(begin("hover", run, "max_iterations=100000"), tmp_path / "first")
    assert until(lambda: rows_so_far(run) > 1, first)
    code, printed = run_to_end([f"resume={run}"], tmp_path)
    assert code == 2
    assert printed == (
        f"error: {run} is in use: process {first.pid} trains in it. Wait for it, or stop it with: kill {first.pid}\n"
    )
    os.kill(first.pid, signal.SIGKILL)
    assert first.ends()[0] == -signal.SIGKILL
    assert json.loads((run / "summary.json").read_text())["status"] == "running"
    go_on(run, tmp_path, f"max_iterations={rows_so_far(run) + 1}")


# The disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system in memory, by its options, in a namespace that ends with the test. No root needed."""
    place = tmp_path / "disk"
    place.mkdir()
    holder = subprocess.Popen(
        ["unshare", "--map-root-user", "--mount", "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert holder.stdin
    assert holder.stdout

    def tell(command: str) -> str:
        assert holder.stdin
        assert holder.stdout
        with contextlib.suppress(BrokenPipeError):
            print(f"{command} 2>&1 && echo done", file=holder.stdin, flush=True)
        return holder.stdout.readline().strip()

    def mount(options: str) -> Path:
        answer = tell(f"mount -t tmpfs -o {options} none {place}")
        if answer != "done":
            pytest.skip(f"this machine lets no test mount a file system: {answer}")
        return Path(f"/proc/{holder.pid}/root{place}")

    yield mount
    holder.kill()
    holder.communicate()


def fill(disk: Path) -> Path:
    """Leaves no byte free on `disk`; removing the file that is returned frees them."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**16, 2**12):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    return ballast


def run_out_of_disk(disk: Path, tmp_path: Path) -> tuple[Path, ForkedRun, Path]:
    """A run that goes on, on a disk that has been filled meanwhile; and the file that fills it."""
    run = disk / "run"
    forked = ForkedRun(begin("hover", run), tmp_path / "out")
    assert until(lambda: rows_so_far(run) > 2, forked)
    return run, forked, fill(disk)


def test_while_the_disk_is_full_training_goes_on_and_what_was_saved_stays(
    straight: Callable[[str], Path], small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    run, forked, ballast = run_out_of_disk(small_disk("size=8m"), tmp_path)
    assert until(lambda: (tmp_path / "out").read_text().count("was not written: No space left") >= 2, forked)
    newest = max(numbered(run / "checkpoints", "model"))
    assert checkpoint.load(run / "checkpoints" / f"model_{newest}.pt")["iter"] == newest
    ballast.unlink()
    code, printed = forked.ends()
    assert code == 0, printed
    assert "training goes on" in printed
    assert "Traceback" not in printed
    assert "Logging error" not in printed
    assert_same(straight("hover"), run)


def test_a_run_that_ends_on_a_full_disk_says_so_and_goes_on_when_there_is_space(
    straight: Callable[[str], Path], small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    run, forked, ballast = run_out_of_disk(small_disk("size=8m"), tmp_path)
    code, printed = forked.ends()
    assert code == 1, printed
    assert "Traceback" not in printed
    assert "Logging error" not in printed
    error = printed.splitlines()[-1]
    assert error.startswith("error: ")
    assert "No space left on device" in error
    assert "those before it are intact" in error
    ballast.unlink()
    go_on(run, tmp_path)
    assert_same(straight("hover"), run)


@pytest.mark.parametrize("free_kib", [0, 8, 16, 24, 32, 48, 64])
def test_a_run_that_begins_on_a_full_disk_is_told_so_in_one_message(
    free_kib: int, small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    disk = small_disk("size=1m")
    ballast = fill(disk)
    with ballast.open("r+b") as file:
        file.truncate(ballast.stat().st_size - free_kib * 1024)
    code, printed = run_to_end(begin("hover", disk / "run", "max_iterations=2"), tmp_path)
    assert code in (1, 2), printed
    assert "No space left on device" in printed.splitlines()[-1]
    assert "Logging error" not in printed
    assert sum(line.startswith("error: ") for line in printed.splitlines()) == 1, printed


def test_a_folder_that_cannot_be_written_to_is_refused_at_the_start(
    stopped: Path, small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    disk = small_disk("ro")
    code, printed = run_to_end(begin("hover", disk / "run"), tmp_path)
    assert (code, len(printed.splitlines())) == (2, 1)
    assert f"cannot make the run folder {disk / 'run'}: Read-only file system; choose another" in printed


def test_tensorboards_writer_may_fail_and_the_run_goes_on(straight: Callable[[str], Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, printed = run_to_end(begin("hover", run), tmp_path, dashboard_fails(after=9))
    assert code == 0, printed
    assert printed.count("TensorBoard's event file cannot be written: Input/output error") == 1
    assert rows_of(run) == rows_of(straight("hover"))


# Repeated


def test_reproduce_reports_a_difference_of_one_bit_in_curve_or_weights(stopped: Path, tmp_path: Path) -> None:
    original = tmp_path / "original"
    assert run_to_end(begin("hover", original, "max_iterations=3"), tmp_path)[0] == 0

    def repeat(name: str) -> tuple[int, str, dict[str, Any]]:
        code, printed = run_to_end([f"reproduce={original}", f"hydra.run.dir={tmp_path / name}"], tmp_path)
        return code, printed, json.loads((tmp_path / name / "reproduction.json").read_text())

    code, printed, found = repeat("equal")
    assert (code, found["equal"], found["first_difference"]) == (0, True, None)
    assert "reproduced: the weights after iteration 2 are equal" in printed

    rows = read_metrics(original)
    kept = (original / "metrics.jsonl").read_text()
    rows[1]["Loss/value"] = float(
        torch.nextafter(torch.tensor(rows[1]["Loss/value"]).double(), torch.tensor(9.0).double())
    )
    (original / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, printed, found = repeat("another_curve")
    assert (code, found["equal"], found["first_difference"]) == (1, False, 1)
    assert "error: not reproduced: " in printed
    assert "the curve differs from iteration 1 on (Loss/value:" in printed
    (original / "metrics.jsonl").write_text(kept)

    path = original / "checkpoints" / "model_2.pt"
    model = checkpoint.load(path)
    model["actor_state_dict"]["mlp.0.weight"].view(torch.int32)[0, 0] ^= 1
    checkpoint.save(path, model)
    code, printed, found = repeat("other_weights")
    assert (code, found["equal"], found["first_difference"]) == (1, False, None)
    assert "not reproduced: the weights after iteration 2 differ" in printed
