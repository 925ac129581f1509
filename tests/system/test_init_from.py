"""Runs that begin with the weights of another: of one rank and of two, stopped, repeated, swept, and pasted.

The env is the puck of docs/add_an_env.md, which needs no simulator.
"""

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ppo_lab.learning.checkpoint import load
from tests.lab import SIZES, Lab, curve_of, weights_of

CHILD = [*SIZES, "processes=2", "init_from=parent", "algorithm.learning_rate=3e-4", "env.reward_scales.effort=-0.2"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """With the run `parent`, of one rank and seven iterations."""
    lab = Lab(tmp_path_factory.mktemp("a lab"))
    code, _, errors = lab.train(*SIZES, "max_iterations=7", "hydra.run.dir=parent")
    assert code == 0, errors
    yield lab
    for process in lab.started:
        process.kill()


@pytest.fixture(scope="module")
def here(lab: Lab) -> Path:
    """Where commands are typed."""
    return lab.site.parent


@pytest.fixture(scope="module")
def child(lab: Lab, here: Path) -> Path:
    """A run of two ranks that began with the weights of `parent`, and that nothing disturbed."""
    code, out, errors = lab.train(*CHILD, "max_iterations=9", "hydra.run.dir=child")
    assert code == 0, errors
    assert "begins with actor, critic, std of iteration 6; learning rate 0.0003" in out
    return here / "child"


def manifest_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    return content


def pasted(lab: Lab, message: str, *more: str) -> tuple[int, str, str]:
    """What comes of the command at the end of a message."""
    arguments = shlex.split(message)
    start = next(index for index, argument in enumerate(arguments) if argument.endswith("train.py"))
    return lab.train(*arguments[start + 1 :], *more)


def test_the_first_actions_are_those_of_the_other_runs_policy(lab: Lab, here: Path) -> None:
    still = ("algorithm.schedule=fixed", "algorithm.learning_rate=1e-30", "max_iterations=1")
    arguments = [*SIZES, "init_from=parent:best", "num_envs=32", *still, "hydra.run.dir=still"]
    code, _, errors = lab.train(*arguments)
    assert code == 0, errors
    best, own = load(here / "parent/checkpoints/best.pt"), load(here / "still/checkpoints/model_0.pt")
    assert own["iter"] == 0
    for network in ("actor_state_dict", "critic_state_dict"):
        for name, tensor in own[network].items():
            assert torch.equal(tensor, best[network][name]) or name.startswith("obs_normalizer."), name
    counts = [model["actor_state_dict"]["obs_normalizer.count"].item() for model in (best, own)]
    assert counts[1] == counts[0] + 32 * 8
    (entry,) = manifest_of(here / "still")["ancestry"]
    assert (entry["folder"], entry["checkpoint"]) == (str(here / "parent"), "best.pt")
    assert entry["iteration"] == best["iter"]


def test_it_goes_on_identically_from_its_own_checkpoint_with_its_ancestor_gone(
    lab: Lab, here: Path, child: Path
) -> None:
    """Also on rank 1, which gets its weights from another place in the two runs."""
    arguments = [*CHILD, "max_iterations=5", "hydra.run.dir=stopped"]
    assert lab.train(*arguments)[0] == 0
    (here / "parent").rename(here / "away")
    try:
        code, out, errors = lab.train("resume=stopped", *CHILD, "max_iterations=9")
    finally:
        (here / "away").rename(here / "parent")
    assert code == 0, errors
    assert "goes on after iteration 5" in out
    assert weights_of(here / "stopped", 8) == weights_of(child, 8)
    assert curve_of(here / "stopped") == curve_of(child)
    first, again = manifest_of(child)["ancestry"], manifest_of(here / "stopped")
    assert again["ancestry"] == again["continued"][0]["ancestry"] == first


def test_one_that_was_killed_before_its_first_checkpoint_starts_over_with_the_same_weights(
    lab: Lab, here: Path, child: Path
) -> None:
    killed = shutil.copytree(child, here / "killed")
    for path in (killed / "checkpoints").iterdir():
        path.unlink()
    parent = here / "parent" / "checkpoints" / "model_6.pt"
    content = parent.read_bytes()
    try:
        parent.write_bytes((here / "parent" / "checkpoints" / "model_5.pt").read_bytes())
        code, _, errors = lab.train("resume=killed")
        assert code == 2
        assert "parent/checkpoints/model_6.pt was changed since the run began with it" in errors
        parent.unlink()
        code, _, errors = lab.train("resume=killed")
        assert code == 2
        assert (
            "the run began with parent/checkpoints/model_6.pt, which is gone. Put it back, or name where it is now"
            in errors
        )
    finally:
        parent.write_bytes(content)
    shutil.copytree(here / "parent", here / "moved", dirs_exist_ok=True)
    code, out, errors = lab.train("resume=killed", "init_from=moved:6")
    assert code == 0, errors
    assert "nothing was saved yet: the run starts over" in out
    assert "init_from=moved/checkpoints/model_6.pt: begins with" in out
    assert weights_of(killed, 8) == weights_of(child, 8)
    assert curve_of(killed) == curve_of(child)


def test_one_that_holds_to_the_other_runs_policy_goes_on_identically_and_is_reproduced(lab: Lab, here: Path) -> None:
    arguments = [*CHILD, "init.kl_coef=0.3", "init.std=false", "save_interval=3"]
    code, out, errors = lab.train(*arguments, "max_iterations=6", "hydra.run.dir=held")
    assert code == 0, errors
    assert "begins with actor, critic of iteration 6; learning rate 0.0003" in out
    assert lab.train(*arguments, "max_iterations=4", "hydra.run.dir=held_stopped")[0] == 0
    (here / "parent").rename(here / "away")
    try:
        code, _, errors = lab.train("resume=held_stopped", "init.kl_coef=0.2")
        assert code == 2
        assert "init.kl_coef=0.2 would change the run, which has 0.3. Leave it out." in errors
        code, _, errors = lab.train("resume=held_stopped", "max_iterations=6")
    finally:
        (here / "away").rename(here / "parent")
    assert code == 0, errors
    assert weights_of(here / "held_stopped", 5) == weights_of(here / "held", 5)
    curve = curve_of(here / "held")
    assert curve_of(here / "held_stopped") == curve
    assert all(row["Loss/initial_kl"] for row in curve), "above 0 from the start, as the deviations are others"
    parent = load(here / "parent/checkpoints/model_6.pt")["actor_state_dict"]
    kept = load(here / "held_stopped/checkpoints/model_5.pt")["reference_actor_state_dict"]
    assert all(torch.equal(kept[name], tensor) for name, tensor in parent.items())
    code, out, errors = lab.train("reproduce=held", "hydra.run.dir=held_again")
    assert code == 0, errors
    assert "reproduced: the weights after iteration 5 are equal" in out
    code, out, errors = lab.train(*SIZES, "init_from=held", "max_iterations=1", "hydra.run.dir=after_held")
    assert code == 0, errors
    assert "reference_actor_state_dict" not in load(here / "after_held/checkpoints/model_0.pt")


def test_it_is_reproduced(lab: Lab, child: Path) -> None:
    code, out, errors = lab.train(f"reproduce={child}", "hydra.run.dir=again")
    assert code == 0, errors
    assert "reproduced: the weights after iteration 8 are equal" in out
    assert manifest_of(child.parent / "again")["ancestry"] == manifest_of(child)["ancestry"]


def test_resume_auto_finds_it_by_the_command_that_began_it(lab: Lab, child: Path) -> None:
    code, _, errors = lab.train(*CHILD, "max_iterations=9", "resume=auto", f"hydra.run.dir={child}")
    assert code == 0, errors
    assert "child is complete: all 9 iterations are done." in errors


def test_a_sweep_begins_every_job_with_it_and_the_report_says_so(lab: Lab, here: Path, child: Path) -> None:
    arguments = ("init_from=child:last,parent:0", "max_iterations=1", "hydra.sweep.dir=sweep")
    code, out, errors = lab.train("-m", *SIZES, *arguments)
    assert code == 0, out + errors
    rows = json.loads((here / "sweep" / "sweep.json").read_text())["jobs"]
    assert [row["ancestry"] for row in rows] == ["child:8 < parent:6", "parent:0"]
    assert [row["init_from"] for row in rows] == ["child:last", "parent:0"]
    assert [row["name"] for row in rows] == ["init_from=child:last", "init_from=parent:0"]
    assert "child:8 &lt; parent:6" in (here / "sweep" / "report.html").read_text()
    code, _, errors = lab.train("-m", *SIZES, "init_from=parent", "network.hidden_dims=[64,64],[32]")
    assert code == 2
    assert "hidden_dims=[32]: init_from=parent/checkpoints/model_6.pt does not fit this run" in errors


def test_resume_with_other_settings_points_to_a_command_that_works(lab: Lab, here: Path, child: Path) -> None:
    code, _, errors = lab.train(f"resume={child}", "algorithm.gamma=0.9", "num_envs=32", "max_iterations=1")
    assert code == 2
    code, out, errors = pasted(lab, errors, "processes=1", "hydra.run.dir=other")
    assert code == 0, errors
    assert "begins with actor, critic, std of iteration 8; learning rate 0.0003" in out
    cfg = manifest_of(here / "other")["config"]
    assert (cfg["algorithm"]["gamma"], cfg["num_envs"], cfg["env"]["reward_scales"]["effort"]) == (0.9, 32, -0.2)
    entries = manifest_of(here / "other")["ancestry"]
    assert [(Path(entry["folder"]).name, entry["iteration"]) for entry in entries] == [("child", 8), ("parent", 6)]


def test_where_weights_do_not_fit_the_other_settings_resume_points_nowhere(lab: Lab, child: Path) -> None:
    code, _, errors = lab.train(f"resume={child}", "network.hidden_dims=[8]")
    assert code == 2
    assert "network.hidden_dims=[8] would change the run" in errors
    assert "init_from" not in errors


def test_a_run_stopped_by_nan_points_to_a_command_that_works(lab: Lab, here: Path) -> None:
    arguments = [*SIZES, "save_interval=1", "processes=2", "max_iterations=9", "hydra.run.dir=nan"]
    code, _, errors = lab.train(*arguments, BREAKS="1:20")
    assert code == 1
    assert "last good checkpoint: iteration 1; " in errors
    code, out, errors = pasted(lab, errors, "processes=1", "max_iterations=1", "hydra.run.dir=after")
    assert code == 0, errors
    assert "init_from=nan/checkpoints/model_1.pt: begins with" in out
