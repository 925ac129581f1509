"""Runs and checkpoints made before envs had generators of their own still open, resume, report and act."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from ppo_lab import report
from ppo_lab.learning.policy import load_policy
from ppo_lab.memory.measure import measured
from ppo_lab.report.job_results import read_runs
from ppo_lab.runs.config import read_experiment
from ppo_lab.runs.record import read_metrics
from tests.forked_runs import ForkedRun
from tests.paths import REPOSITORY

OLDER = REPOSITORY / "tests" / "fixtures" / "runs_before_generators"


@pytest.fixture(params=["go2", "hover"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLDER / request.param, tmp_path / request.param))


def test_it_resumes_and_says_what_is_not_identical(run: Path, tmp_path: Path) -> None:
    code, printed = ForkedRun([f"resume={run}", "max_iterations=5"], tmp_path / "out").ends()
    assert code == 0, printed
    assert "the env's draws begin anew, so the run goes on, but not identically" in printed
    assert "goes on after iteration 3" in printed
    assert [row["iteration"] for row in read_metrics(run)] == [0, 1, 2, 3, 4]
    assert json.loads((run / "summary.json").read_text())["status"] == "completed"
    assert read_experiment(run / "config.yaml").env.robot.urdf  # type: ignore[attr-defined]


def test_its_settings_are_read_as_they_are_called_now(run: Path) -> None:
    cfg = read_experiment(run / "config.yaml")
    robot = cfg.env.robot  # type: ignore[attr-defined]
    if cfg.env.name == "go2":
        assert (robot.kp, robot.kd, robot.base_init_pos) == (20.0, 0.5, [0.0, 0.0, 0.42])
        assert list(robot.default_joint_angles)[:2] == ["FR_hip_joint", "FR_thigh_joint"]
    else:
        assert (robot.hover_rpm, robot.base_init_pos) == (14468.429183500699, [0.0, 0.0, 1.0])
    assert measured.read_run(run).cfg == cfg


def test_it_is_reported(run: Path, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    page = report.write_into(tmp_path / "report", read_runs([run]))
    assert run.name in page.read_text()


def test_its_policy_acts(run: Path) -> None:
    cfg = read_experiment(run / "config.yaml")
    policy = load_policy(cfg, run / "checkpoints" / "model_2.pt", torch.device("cpu"))
    observations = {"policy": torch.ones(3, cfg.env.spec().width())}
    actions = policy.mean(observations)
    assert actions.shape == (3, len(policy.spec.actions))
    assert torch.equal(actions, policy.mean(observations))
    assert not torch.equal(policy.act(observations), policy.act(observations))
