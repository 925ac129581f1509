"""What a manifest keeps of the code, and that its command brings that very code back."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ppo_lab.telemetry.manifest import (
    MAX_NEW_BYTES,
    REPOSITORY,
    describe_machine,
    differences,
    how_to_repeat,
    read_checkout,
)

IDENTITY = ("-c", "user.name=a", "-c", "user.email=a@b.c")


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clean checkout with one commit."""
    folder = tmp_path / REPOSITORY.name
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "old.py").write_bytes(b"# coding: latin-1\nprint('old')  # caf\xe9\n")
    (folder / ".gitignore").write_text("ignored\n*.diff\n")
    (folder / "train.py").write_text("import new, old\n")
    git(folder, "add", ".")
    git(folder, *IDENTITY, "commit", "-q", "-m", "one")
    return folder


def test_changes_and_new_text_files_come_back_with_the_command(checkout: Path) -> None:
    (checkout / "old.py").write_bytes(b"# coding: latin-1\nprint('changed')  # caf\xe9\n")
    (checkout / "new.py").write_text("print('new')\n")
    (checkout / "ignored").write_bytes(b"\0")
    before = git(checkout, "status", "--porcelain")
    found = read_checkout(checkout)
    diff = Path("a run's folder.diff")
    (checkout / diff).write_bytes(found.diff)
    command = how_to_repeat(["run_name=b c"], found, diff)
    assert command
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=checkout, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.splitlines()[-2:]) == (0, ["new", "changed"]), done.stderr
    assert git(checkout, "status", "--porcelain") == before, "neither the checkout nor its index is touched"


def test_a_clean_checkout_has_no_diff(checkout: Path) -> None:
    found = read_checkout(checkout)
    assert (found.diff, found.left_out, found.is_dirty) == (b"", [], False)
    assert "apply" not in (how_to_repeat([], found, Path("git.diff")) or "")


@pytest.mark.parametrize("content", [b"a\0b", b"x" * (MAX_NEW_BYTES + 1)], ids=["not text", "too large"])
def test_where_a_new_file_is_not_kept_it_is_named_and_no_command_is_given(content: bytes, checkout: Path) -> None:
    (checkout / "new.py").write_text("print('new')\n")
    (checkout / "mesh").write_bytes(content)
    found = read_checkout(checkout)
    assert found.left_out == ["mesh"]
    assert b"+print('new')" in found.diff
    assert found.is_dirty
    assert how_to_repeat([], found, Path("git.diff")) is None


def test_outside_of_a_checkout_nothing_is_known(tmp_path: Path) -> None:
    found = read_checkout(tmp_path)
    assert (found.commit, found.is_dirty) == (None, None)
    assert how_to_repeat(["seed=2"], found, Path("git.diff")) == "python train.py seed=2"


def test_what_rounds_products_on_a_gpu_is_kept_and_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="A card", total_memory=2**34, major=8, minor=9, multi_processor_count=24)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)

    def now() -> dict[str, Any]:
        return {"git": {}, "packages": {}, "machine": describe_machine(torch.device("cuda", 0))}

    then = now()
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert list(differences(then, now())) == ["tf32_override was None and is 0"]
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert list(differences(then, now())) == [f"matmul_precision was {before} and is tf32"]
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert not {"matmul_precision", "tf32_override"} & describe_machine(torch.device("cpu")).keys()


def test_the_users_own_git_settings_do_not_change_the_diff(checkout: Path) -> None:
    (checkout / "old.py").write_text("print('changed')\n")
    plain = read_checkout(checkout).diff
    for setting in ("diff.noprefix", "diff.mnemonicPrefix"):
        git(checkout, "config", setting, "true")
    git(checkout, "config", "color.ui", "always")
    assert read_checkout(checkout).diff == plain
