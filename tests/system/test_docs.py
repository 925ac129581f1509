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
from ppo_lab.envs.robots import asset
from ppo_lab.errors import ConfigError
from ppo_lab.runs.config import to_experiment
from ppo_lab.runs.record import read_metrics
from tests.paths import REPOSITORY

EXAMPLES = {
    "conf/robot/heavy_dog.yaml",
    *("conf/env/go2_calm.yaml", "ppo_lab/envs/tasks/go2_calm.py"),
    *("conf/env/stand.yaml", "ppo_lab/envs/tasks/stand.py"),
    *("conf/env/puck.yaml", "ppo_lab/envs/tasks/puck.py"),
    "ppo_lab/envs/randomization/wind.py",
}
WIND = "+env.randomization.wind={when: reset, operation: add, range: [-0.1, 0.1]}"
CHECK_AND_TRAIN = """
import json, sys
from importlib import import_module

import torch

from ppo_lab.cli.compose import compose
from ppo_lab.envs import make_env
from ppo_lab.envs.conformance import violations
from ppo_lab.learning.checkpoint import NoCheckpoints
from ppo_lab.learning.loop import Loop
from ppo_lab.memory.measure.monitor import MemoryMonitor
from ppo_lab.runs.config import to_experiment
from ppo_lab.runs.record import read_metrics

cpu, found = torch.device("cpu"), {}
for overrides in (["env=go2", "robot=heavy_dog"], ["env=go2_calm", sys.argv[1]], ["env=stand"], ["env=puck"]):
    cfg = to_experiment(compose(["experiment=smoke", *overrides]))
    wrong = violations(import_module(f"ppo_lab.envs.tasks.{cfg.env.name}").make, cfg.env)
    rows = []
    env = make_env(cfg.env, cfg.num_envs, cpu, seed=1)
    loop = Loop(env, cfg, MemoryMonitor(cpu), NoCheckpoints(), lambda _, scalars: rows.append(scalars))
    loop.learn(2)
    found[cfg.env.name] = [wrong, len(rows), loop.alg.actor.obs_dim, loop.alg.critic.obs_dim]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with every example of the documents in its place, and the URDF of its robot."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("conf", "ppo_lab"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "train.py", folder)
    for name, text in examples().items():
        (folder / name).write_text(text)
    go2 = asset("urdf/go2/urdf/go2.urdf")
    (folder / "heavy_dog.urdf").write_text(go2.read_text().replace("../", f"{go2.parent.parent}/"))
    return folder


def examples() -> dict[str, str]:
    pages = [(REPOSITORY / "docs" / name).read_text() for name in ("add_an_env.md", "randomization.md")]
    return dict(re.findall(r"`(\S+\.(?:yaml|py))`\n\n```\w+\n(.*?)```", "\n".join(pages), re.DOTALL))


def python(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=checkout, capture_output=True, text=True, timeout=300)


def test_the_examples_on_the_simulator_keep_the_contract_and_train_as_they_stand(checkout: Path) -> None:
    assert set(examples()) == EXAMPLES
    assert WIND in (REPOSITORY / "docs/randomization.md").read_text()
    done = python(checkout, "-c", CHECK_AND_TRAIN, WIND)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "go2": [[], 2, 45, 45],
        "go2_calm": [[], 2, 45, 45],
        "puck": [[], 2, 4, 4],
        "stand": [[], 2, 27, 28],  # gravity 3, positions and velocities of 12 joints; the critic: height
    }


def test_the_example_without_a_simulator_trains_as_it_stands_and_never_loads_the_simulator(checkout: Path) -> None:
    page = (REPOSITORY / "docs" / "add_an_env.md").read_text()
    refused = python(checkout, "train.py", "env=puck", "env.push=-1")
    assert (refused.returncode, refused.stderr in page) == (2, True)
    begin = "import atexit, sys, runpy; sys.argv = ['train.py', 'env=puck', 'max_iterations=25', 'hydra.run.dir=run']\n"
    end = "atexit.register(lambda: print('genesis' in sys.modules)); runpy.run_path('train.py', run_name='__main__')"
    done = python(checkout, "-c", begin + end)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("False\n"), done.stdout
    rewards = [row.get("Train/mean_reward", 0.0) for row in read_metrics(checkout / "run")]
    assert rewards[-1] > 1.5 * rewards[5], "it learns"


def test_a_joint_that_the_urdf_has_and_the_robot_lacks_is_named(checkout: Path) -> None:
    page = (REPOSITORY / "docs" / "add_an_env.md").read_text()
    overrides = ["env=go2", "robot=heavy_dog", "~env.robot.default_joint_angles.FL_hip_joint"]
    refused = python(checkout, "train.py", *overrides)
    assert (refused.returncode, refused.stderr in page) == (2, True), refused.stderr


def test_the_readme_shows_the_errors_that_one_gets() -> None:
    page = (REPOSITORY / "README.md").read_text()
    shown = re.findall(r"^\$ python train.py (\S+)\n(error: .*)$", page, re.MULTILINE)
    assert len(shown) >= 2
    for argument, message in shown:
        with pytest.raises(ConfigError) as refused:
            to_experiment(compose([argument]))
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
    assert measured.keys() >= {"faults", "sizes", "cost"}
    for table in reliability.tables(measured).values():
        assert table in page
