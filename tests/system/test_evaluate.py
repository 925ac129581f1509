"""`ppo-lab evaluate`: what envs tell of a step, and evaluations of real runs, beside a training too."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ppo_lab import envs, report
from ppo_lab.cli.evaluate import main
from ppo_lab.config import ExperimentConfig
from ppo_lab.contracts import StepDetails
from ppo_lab.deploy.episodes import play
from ppo_lab.envs import make_env
from ppo_lab.errors import ConfigError
from tests.lab import SIZES, Lab, curve_of, weights_of

N = 4


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("a lab"))


@pytest.fixture(scope="module")
def run(lab: Lab) -> Path:
    code, _, errors = lab.train(*SIZES, "max_iterations=11", "hydra.run.dir=a run")
    assert code == 0, errors
    return lab.site.parent / "a run"


@pytest.fixture
def evaluate(lab: Lab, run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """The command, in this process, in which the lab's package is installed."""
    monkeypatch.syspath_prepend(lab.site)
    monkeypatch.chdir(lab.site.parent)
    envs.registered.cache_clear()
    yield lambda *arguments: main(list(arguments))
    envs.registered.cache_clear()


@pytest.mark.parametrize("name", ["go2", "hover"])
def test_what_an_env_tells_of_a_step_adds_up_and_changes_nothing(
    simulator: torch.device, experiment: Callable[..., ExperimentConfig], name: str
) -> None:
    """Large random actions: episodes end in several ways."""
    cfg = experiment(f"env={name}").env
    seen: list[StepDetails] = []
    env: Any = make_env(cfg, N, simulator, seed=1)
    start, keys = env.state(), env.state()["own"].keys()
    actions = torch.randn(150, N, len(env.spec.actions), generator=torch.Generator().manual_seed(1)) * 4
    unwatched = [env.step(action) for action in actions]
    with torch.inference_mode(False):
        env.restore(start)
    env.watch(seen.append)
    watched = [env.step(action) for action in actions]
    assert env.state()["own"].keys() == keys
    ended = torch.zeros(())
    for before, result, details in zip(unwatched, watched, seen, strict=True):
        assert torch.equal(before.rewards, result.rewards)
        assert torch.equal(before.observations["policy"], result.observations["policy"])
        assert torch.allclose(torch.stack(list(details.rewards.values())).sum(dim=0), result.rewards, atol=1e-6)
        assert torch.equal(torch.stack(list(details.terminations.values())).any(dim=0), result.dones)
        assert torch.equal(details.terminations["time_out"], result.time_outs)
        assert all(measured.values.shape == (N,) for measured in details.measurements.values())
        ended = ended + result.dones.sum()
    assert ended > 0


def test_go2_is_measured_in_its_own_units(simulator: torch.device, experiment: Callable[..., ExperimentConfig]) -> None:
    """Standing still: no speed, the whole command as error, the robot's weight on its joints, no slip."""
    cfg = experiment("env=go2", "env.episode_length_s=2", "env.lin_vel_y_range=[0.3,0.3]").env
    env: Any = make_env(cfg, 2, simulator, seed=1)
    measured = play(env, lambda _: torch.zeros(2, 12)).measured
    means = {name: values.mean().item() for name, values in measured.items()}
    assert means["speed_m_s"] < 0.1
    assert means["velocity_error_m_s"] == pytest.approx((0.5**2 + 0.3**2) ** 0.5, abs=0.05)
    assert means["distance_m"] == pytest.approx(means["speed_m_s"] * 101 * 0.02, rel=1e-3)
    assert 0.5 < means["joint_torque_n_m"] < means["peak_torque_n_m"] < 30
    assert means["foot_slip_m_s"] < 0.2


def test_held_commands_stay_until_they_are_let_go(
    simulator: torch.device, experiment: Callable[..., ExperimentConfig]
) -> None:
    env: Any = make_env(experiment("env=go2", "env.resampling_time_s=0.04").env, 2, simulator, seed=1)
    assert env.commands["lin_vel_x_m_s"] == (0.5, 0.5)
    env.hold_commands([1.0, -0.2, 0.4])
    for _ in range(5):
        env.step(torch.zeros(2, 12))
    assert env.get_commands() == pytest.approx(torch.tensor([[1.0, -0.2, 0.4]] * 2))
    assert env.get_observations()["policy"][:, 6:9] == pytest.approx(torch.tensor([[2.0, -0.4, 0.1]] * 2))
    env.hold_commands(None)
    assert env.get_commands()[:, 0].tolist() == [0.5, 0.5]


def test_a_run_is_evaluated_from_its_folder_alone(
    evaluate: Callable[..., None], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate("a run", "checkpoint=all", "episodes=32", "name=whole")
    assert "written: a run/evaluation/whole.json" in capsys.readouterr().out
    document = json.loads((run / "evaluation" / "whole.json").read_text())
    assert [result["iteration"] for result in document["results"]] == [0, 5, 10]
    for result in document["results"]:
        assert result["return"]["mean"] == pytest.approx(sum(of["mean"] for of in result["rewards"].values()))
        assert result["return"]["ci95"][0] < result["return"]["mean"] < result["return"]["ci95"][1]
        assert {name: of["n"] for name, of in result["endings"].items()} == {"time_out": 32, "terminated": 32}
    events = EventAccumulator(str(run / "evaluation" / "whole")).Reload()
    assert [event.step for event in events.Scalars("Evaluation/return")] == [0, 5, 10]
    assert [event.value for event in events.Scalars("Evaluation/return")] == pytest.approx(
        [result["return"]["mean"] for result in document["results"]]
    )


def test_an_evaluation_repeats_exactly_and_adds_to_one_of_the_same_settings(
    evaluate: Callable[..., None], run: Path
) -> None:
    for checkpoint in ("0", "5,10"):
        evaluate("a run", f"checkpoint={checkpoint}", "episodes=32", "name=again")
    evaluate("a run", "checkpoint=all", "episodes=32", "name=at_once")
    again, at_once = (json.loads((run / "evaluation" / f"{name}.json").read_text()) for name in ("again", "at_once"))
    assert again["results"] == at_once["results"]


def test_one_episode_and_many_agree(evaluate: Callable[..., None], run: Path) -> None:
    found = {}
    for episodes in (1, 16, 256):
        evaluate("a run", f"episodes={episodes}", "seed=3", f"name=n{episodes}")
        (found[episodes],) = json.loads((run / "evaluation" / f"n{episodes}.json").read_text())["results"]
    many = found[256]["return"]
    assert found[1]["return"]["ci95"] is None
    assert many["min"] <= found[1]["return"]["mean"] <= many["max"]
    low, high = found[16]["return"]["ci95"]
    assert low <= many["ci95"][1]
    assert many["ci95"][0] <= high


def test_conditions_change_what_the_env_gives(
    evaluate: Callable[..., None], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("pushes.yaml").write_text("as trained: {}\nweak: {env.push: 0.1}\n")
    evaluate("a run", "conditions=pushes.yaml", "episodes=16", "name=pushes")
    strong, weak = json.loads((run / "evaluation" / "pushes.json").read_text())["results"]
    assert (strong["condition"], weak["condition"]) == ("as trained", "weak")
    assert strong["return"]["mean"] != weak["return"]["mean"]
    assert "weak" in capsys.readouterr().out


def test_evaluating_while_training_changes_nothing_of_what_is_learned(lab: Lab, run: Path) -> None:
    code, _, errors = lab.train(*SIZES, "max_iterations=11", "evaluate_every=4", "hydra.run.dir=watched")
    assert code == 0, errors
    watched = lab.site.parent / "watched"
    assert weights_of(watched, 10) == weights_of(run, 10)
    assert curve_of(watched) == curve_of(run)
    document = json.loads((watched / "evaluation" / "training.json").read_text())
    assert [result["iteration"] for result in document["results"]] == [0, 4, 8, 10]


def test_ctrl_c_leaves_out_the_last_evaluations_of_a_run_that_is_complete(lab: Lab) -> None:
    process = lab.start(*SIZES, "max_iterations=3", "evaluate_every=1", "hydra.run.dir=left_out")
    assert process.stdout is not None
    while "evaluating what is left" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    summary = json.loads((lab.site.parent / "left_out" / "summary.json").read_text())
    assert (summary["status"], summary["iterations"]) == ("completed", 3)


def test_the_report_shows_the_evaluation_of_the_latest_iteration(
    evaluate: Callable[..., None], run: Path, tmp_path: Path
) -> None:
    evaluate("a run", "checkpoint=last", "episodes=16")
    (result,) = json.loads((run / "evaluation" / "last.json").read_text())["results"]
    report.write_into(tmp_path, report.job_results.read_runs([run]))
    (row,) = json.loads((tmp_path / "sweep.json").read_text())["jobs"]
    assert row["evaluated_iteration"] == 10
    assert isinstance(row["evaluated_return"], float)
    assert result["iteration"] == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no such folder"),
        (["."], "is no run folder"),
        (["a run", "a run"], "name one run folder; got 2"),
        (["a run", "--all"], "unknown option --all"),
        (["a run", "checkpoint=7"], "has no checkpoint 7. Allowed: last, best, 0, 5, 10"),
        (["a run", "episods=3"], r"Did you mean episodes\?"),
        (["a run", "episodes=0"], "episodes=0 is out of range"),
        (["a run", "env.push=-1"], "env.push=-1.0 is out of range"),
        (
            [
                "a run",
                "env.push=[",
            ],
            "is no YAML",
        ),
        (["a run", "num_envs=3"], "unknown setting num_envs"),
        (["a run", "name=../x"], "name=../x is out of range"),
        (["a run", "conditions=nothing.yaml"], "conditions=nothing.yaml is missing"),
    ],
)
def test_wrong_arguments_are_refused(evaluate: Callable[..., None], arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(*arguments)


def test_a_process_that_is_asked_nonsense_ends_with_one_line_and_exit_code_2(lab: Lab) -> None:
    command = [sys.executable, "-m", "ppo_lab", "evaluate", "nowhere"]
    done = subprocess.run(command, env=lab.environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: nowhere: there is no such folder. Name a run; ppo-lab runs lists them.\n"
