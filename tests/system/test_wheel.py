"""The wheel works where it is installed, in a folder that knows nothing of the repository."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from ppo_lab import __version__, envs
from ppo_lab.__main__ import COMMANDS
from tests.paths import REPOSITORY

SOURCES = ("ppo_lab", "conf", "pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel is installed, without what it needs, which this environment has."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools leaves its own folders beside what it builds
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("ppo_lab-*.whl")
    site = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, capture_output=True)
    return site


def use(
    installed: Path, folder: Path, *arguments: str, program: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Runs the console script, or what `program` says to Python, from `folder`."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    script = program or (str(installed / "bin" / "ppo-lab"),)
    command = [sys.executable, *script, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_version_is_ours(installed: Path, tmp_path: Path) -> None:
    done = use(installed, tmp_path, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"ppo-lab {__version__} (torch {metadata.version('torch')}, ")


def test_help_lists_the_choices_of_the_conf_that_is_in_the_wheel(installed: Path, tmp_path: Path) -> None:
    done = use(installed, tmp_path, "train", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"\n  env: {', '.join(envs.names())}\n" in done.stdout


def test_commands_are_listed_as_one_types_them_where_there_is_no_checkout(installed: Path, tmp_path: Path) -> None:
    done = use(installed, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ppo-lab train  ")
    as_module = use(installed, tmp_path, program=("-m", "ppo_lab"))
    assert (as_module.returncode, as_module.stdout, as_module.stderr) == (0, done.stdout, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_as_it_is_called_from_a_wheel(
    command: str, installed: Path, tmp_path: Path
) -> None:
    done = use(installed, tmp_path, command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    name = f"{command}.py" if command in ("train", "estimate") else f"ppo-lab {command}"  # Hydra's pages are for both
    assert name in done.stdout
    assert "python -m ppo_lab" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_override_ends_with_code_2_and_leaves_nothing(installed: Path, tmp_path: Path) -> None:
    done = use(installed, tmp_path, "train", "num_envs=0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: num_envs=0 is out of range. Allowed: >= 1, <= 2147483647.\n"
    assert list(tmp_path.iterdir()) == []


def test_estimate_answers(installed: Path, tmp_path: Path) -> None:
    done = use(installed, tmp_path, "estimate", "trace=false", "format=json")
    assert (done.returncode, done.stderr) == (0, "")
    assert '"hardware"' in done.stdout


def test_a_run_that_is_repeated_from_the_wheel_needs_no_checkout(installed: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from ppo_lab.runs import manifest; "
        "print(manifest.how_to_repeat(['seed=2'], manifest.read_checkout(), Path('git.diff')))"
    )
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "ppo-lab train seed=2\n"
