"""A machine that cannot run a training is told so in one line, with the command that mends it."""

import ctypes
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from ppo_lab import __version__
from ppo_lab.__main__ import COMMANDS
from ppo_lab.errors import MachineError
from ppo_lab.machine import commands, preflight
from tests.paths import REPOSITORY

RIGHT = {name: metadata.version(name) for text in preflight.requirements() for name in re.findall(r"^[\w-]+", text)}


def installed(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> None:
    versions = RIGHT | {name.replace("_", "-"): version for name, version in changes.items()}

    def version(name: str) -> str:
        if versions.get(name) is None:
            raise metadata.PackageNotFoundError(name)
        return str(versions[name])

    monkeypatch.setattr(metadata, "version", version)


def complaint() -> str:
    with pytest.raises(MachineError) as refused:
        preflight.check_installed()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_wrong_genesis_is_named_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, genesis_world="1.5.0")
    assert complaint() == (
        f"installed: genesis-world 1.5.0; needed: genesis-world==1.4.5; "
        f"run: {sys.executable} -m pip install genesis-world==1.4.5"
    )


def test_outside_of_the_projects_environment_that_one_is_named_and_not_the_system(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed(monkeypatch, torch=None)
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    monkeypatch.setattr(preflight, "ENVIRONMENT", tmp_path / "a lab" / ".venv")
    assert complaint() == (
        f"{sys.executable} lacks torch; the project's environment is not set up; run: make -C '{tmp_path}/a lab' setup"
    )
    python = tmp_path / "a lab" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert complaint() == (
        f"{sys.executable} lacks torch; the project's environment is not activated; "
        f"run: . '{tmp_path}/a lab/.venv/bin/activate'"
    )


@pytest.mark.parametrize(
    ("already", "spins"), [({}, preflight.SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)]
)
def test_threads_that_wait_sleep_soon_unless_the_user_says_how(
    monkeypatch: pytest.MonkeyPatch, already: dict[str, str], spins: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in already.items():
        monkeypatch.setenv(name, value)
    preflight.yield_busy_cores()
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=REPOSITORY, capture_output=True, text=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = run("-m", "ppo_lab", command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert command in done.stdout


def test_without_a_command_the_package_lists_those_that_there_are() -> None:
    for done in (run("-m", "ppo_lab"), run("-m", "ppo_lab", "--help")):
        assert (done.returncode, done.stderr) == (0, "")
        listed = re.findall(r"^python (?:-m ppo_lab )?(\w+)", done.stdout, re.MULTILINE)
        assert listed == list(COMMANDS)


def test_an_unknown_command_ends_with_code_2_and_the_nearest_one() -> None:
    done = run("-m", "ppo_lab", "trian")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown command trian. Did you mean train? Allowed: train, estimate, ")


@pytest.mark.parametrize("program", [["-m", "ppo_lab"], ["train.py"], ["estimate.py"], ["-m", "ppo_lab", "report"]])
def test_version_is_ours_with_those_of_torch_genesis_and_rsl_rl(program: list[str]) -> None:
    done = run(*program, "--version")
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "genesis-world", "rsl-rl-lib")]
    assert (done.returncode, done.stdout) == (0, f"ppo-lab {__version__} ({', '.join(versions)})\n")


def test_where_neither_checkout_nor_pip_say_what_is_needed_the_way_to_install_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(commands, "CHECKOUT", tmp_path)
    monkeypatch.setattr(metadata, "requires", requires)
    monkeypatch.setenv("CONDA_PREFIX", "/conda")
    assert complaint() == f"ppo-lab was copied, not installed; run: {sys.executable} -m pip install -e {tmp_path}"


def test_a_missing_rsl_rl_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, rsl_rl_lib=None)
    assert "installed: rsl-rl-lib missing; needed: rsl-rl-lib==5.5.1" in complaint()


def test_the_old_rsl_rl_beside_the_right_one_is_to_be_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, rsl_rl="1.0.2")
    assert "pip uninstall -y rsl-rl &&" in complaint()


@pytest.mark.parametrize(
    ("version", "fine"), [("2.10.1", False), ("2.11.0", True), ("2.13.0+cpu", True), ("3.0", True)]
)
def test_torch_may_be_2_11_or_newer(monkeypatch: pytest.MonkeyPatch, version: str, fine: bool) -> None:
    installed(monkeypatch, torch=version)
    if fine:
        preflight.check_installed()
    else:
        assert f"installed: torch {version}; needed: torch>=2.11" in complaint()


def test_missing_opengl_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", fails)
    with pytest.raises(MachineError, match=r"libGL\.so\.1 and libEGL\.so\.1 not found.*apt-get install libgl1"):
        preflight.check_system_libraries()
