"""What `ppo-lab export` and `evaluate policy=` refuse, before they load torch or the simulator."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ppo_lab.cli import evaluate, export
from ppo_lab.cli.exits import exit_codes
from tests.paths import REPOSITORY

RUN = REPOSITORY / "tests" / "fixtures" / "runs_before_generators" / "go2"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RUN, tmp_path / "a run"))


def refused(command: Callable[[list[str]], None], *arguments: str | Path) -> str:
    """What is said on stderr, in one line, by a command that ends with code 2."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as end, exit_codes():
        command([str(argument) for argument in arguments])
    assert end.value.code == 2
    assert said.getvalue().count("\n") == 1
    return said.getvalue()


def no_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "summary.json").write_text(json.dumps({"status": "failed"}))


def cut_checkpoint(run: Path) -> None:
    file = run / "checkpoints" / "model_2.pt"
    file.write_bytes(file.read_bytes()[:999])


def no_config(run: Path) -> None:
    (run / "config.yaml").unlink()


WRONG: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "no run": (no_config, "checkpoint=last", "is no run folder: it has no config.yaml"),
    "nothing trained": (no_checkpoints, "checkpoint=last", "has no checkpoint: nothing was saved yet"),
    "cut": (cut_checkpoint, "checkpoint=last", "model_2.pt is cut short, or was not written by this project"),
    "no such": (lambda run: None, "checkpoint=7", "has no checkpoint 7. Allowed: last, 2."),
    "many": (lambda run: None, "checkpoint=all", "checkpoint=all is out of range. Allowed: text like best, last, 100."),
    "other env": (lambda run: None, "env.robot.kp=5", "env.robot.kp: a policy is exported for the env that it was"),
    "unknown": (lambda run: None, "chekpoint=last", "unknown setting chekpoint. Did you mean checkpoint?"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_exported_is_refused_and_leaves_the_run_as_it_is(what: str, run: Path) -> None:
    spoil, argument, says = WRONG[what]
    spoil(run)
    before = sorted(run.rglob("*"))
    assert says in refused(export.main, run, argument)
    assert sorted(run.rglob("*")) == before


def test_what_cannot_be_evaluated_instead_of_a_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, says in (
        (("policy=nowhere",), "policy=nowhere: there is no such file or folder."),
        ((f"policy={empty}",), "empty is no exported folder: manifest.json: No such file or directory."),
        ((f"policy={run}",), "a run is no exported folder: its manifest.json has no format."),
        ((f"policy={empty}", "checkpoint=last"), "checkpoint= names a policy of the run, policy= another."),
        ((f"policy={empty}", "actions=sampled"), "a policy from a file gives its mean alone."),
    ):
        assert says in refused(evaluate.main, run, *arguments)
    assert not (run / "evaluation").exists()
