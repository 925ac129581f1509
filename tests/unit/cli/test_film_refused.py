"""What cannot be filmed is refused before torch and the simulator load."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ppo_lab.cli import film
from ppo_lab.config import ExperimentConfig
from ppo_lab.errors import ConfigError
from ppo_lab.runs.config import as_yaml
from ppo_lab.runs.files import seal, write_json
from ppo_lab.runs.folder import RunFolder
from tests.paths import REPOSITORY

EMPTY_ZIP = b"PK\x05\x06" + bytes(18)


@pytest.fixture
def run(tmp_path: Path, experiment: Callable[..., ExperimentConfig]) -> Path:
    """A run folder with a space in its path, and checkpoints that are whole as far as their checksums say."""
    folder = RunFolder(tmp_path / "a run")
    folder.checkpoints.mkdir(parents=True)
    folder.config.write_text(as_yaml(experiment("experiment=smoke", "env=hover")))
    for number in (0, 100):
        (folder.checkpoints / f"model_{number}.pt").write_bytes(seal(EMPTY_ZIP))
    return folder.path


def refusal(*arguments: object) -> str:
    with pytest.raises(ConfigError) as refused:
        film.main(list(map(str, arguments)))
    return str(refused.value)


def test_an_empty_folder_is_no_run(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (
        f"{tmp_path} is no run folder: it has no config.yaml. Name a run; ppo-lab runs lists them."
    )


def test_an_unfinished_run_without_a_checkpoint_is_refused(run: Path) -> None:
    for path in RunFolder(run).checkpoints.iterdir():
        path.unlink()
    write_json(RunFolder(run).summary, {"status": "running"})
    assert refusal(run) == f"{run} has no checkpoint: nothing was saved yet. Allowed: a run that has one."


def test_a_wrong_number_is_refused_with_those_there_are(run: Path) -> None:
    assert refusal(run, "checkpoint=50") == f"{run} has no checkpoint 50. Allowed: last, 0, 100."


def test_a_truncated_checkpoint_is_named(run: Path) -> None:
    model = RunFolder(run).checkpoints / "model_100.pt"
    model.write_bytes(model.read_bytes()[:-5])
    assert refusal(run, "checkpoints=six").startswith(f"{model} is cut short, or was not written by this project.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["width=641", "height=481"], "width=641 and height=481: H.264 needs even sizes."),
        (["fps=120"], "fps=120: the env has 100 steps in a second. Allowed: at most 100."),
        (["seconds=0.01"], "seconds=0.01 with fps=25 is no frame. Try seconds=0.04."),
        (["seconds=0"], "seconds=0.0 is out of range. Allowed: > 0, <= 3600."),
        (["files=[mp4,avi]"], "files=[mp4,avi] is out of range."),
        (["name=../best"], "name=../best is out of range."),
        (["second=3"], "unknown setting second. Did you mean seconds?"),
        (["width=160", "checkpoint=all"], "checkpoint=all: each of 2 policies would get 80 x 540 pixels of 160 x 540;"),
    ],
)
def test_a_film_that_cannot_be_made_is_refused_with_what_can(run: Path, arguments: list[str], message: str) -> None:
    assert refusal(run, "checkpoint=last", *arguments).startswith(message)
    assert not RunFolder(run).films.exists()


def test_where_opengl_does_not_draw_a_film_ends_with_code_1_before_the_simulator_loads(run: Path) -> None:
    program = [sys.executable, "-X", "importtime", "-m", "ppo_lab", "film", str(run), "checkpoint=last"]
    environment = os.environ | {"__EGL_VENDOR_LIBRARY_FILENAMES": "/nowhere"}
    environment.pop("PYOPENGL_PLATFORM", None)
    done = subprocess.run(program, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert (done.returncode, done.stdout, len(said)) == (1, "", 1)
    assert said[0].startswith("error: no film: no OpenGL driver draws without a screen here: EGL finds no device; ")
    assert "apt-get install libgl1 libegl1 libgl1-mesa-dri" in said[0]
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "omegaconf" in loaded
    assert not loaded & {"torch", "genesis"}
