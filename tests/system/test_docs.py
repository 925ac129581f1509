"""What the docs show is what the code does."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import calibration, predicted_vs_measured, reliability
from ppo_lab.cli.compose import compose
from ppo_lab.errors import ConfigError
from ppo_lab.runs.config import to_experiment
from tests.paths import REPOSITORY


def test_the_worked_example_of_a_new_env_trains_as_it_stands(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "add_an_env.md").read_text()
    files = dict(re.findall(r"`(\S+\.(?:yaml|py))`\n\n```\w+\n(.*?)```", page, re.DOTALL))
    assert set(files) == {"conf/env/puck.yaml", "ppo_lab/envs/tasks/puck.py"}
    for name in ("conf", "ppo_lab"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "train.py", tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    def train(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "train.py", "env=puck", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    refused = train("env.push=-1")
    assert refused.returncode == 2
    assert refused.stderr in page
    done = train("max_iterations=25", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rewards = [json.loads(line).get("Train/mean_reward", 0.0) for line in lines]
    assert rewards[-1] > 1.5 * rewards[5], "it learns"


def test_the_readme_shows_the_errors_that_one_gets() -> None:
    page = (REPOSITORY / "README.md").read_text()
    shown = re.findall(r"^\$ python train.py (\S+)\n(error: .*)$", page, re.MULTILINE)
    assert len(shown) >= 2
    for word, message in shown:
        with pytest.raises(ConfigError) as refused:
            to_experiment(compose([word]))
        assert f"error: {refused.value}" == message


def test_the_table_of_predictions_is_the_one_that_was_measured() -> None:
    measured = json.loads(predicted_vs_measured.RESULT.read_text())
    assert predicted_vs_measured.table(measured["runs"]) in (REPOSITORY / "docs" / "estimate.md").read_text()


def test_the_score_of_the_calibration_is_the_one_that_was_measured() -> None:
    measured = json.loads(calibration.RESULT.read_text())
    assert len(measured["runs"]) == len(calibration.CASES)
    assert calibration.table(measured["runs"]) in (REPOSITORY / "docs" / "results" / "README.md").read_text()


def test_the_figures_of_reliability_are_those_that_were_measured() -> None:
    page = (REPOSITORY / "docs" / "reliability.md").read_text()
    measured = json.loads(reliability.RESULT.read_text())
    assert measured.keys() == {"faults", "sizes", "cost"}
    for table in reliability.tables(measured).values():
        assert table in page
