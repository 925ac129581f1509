"""What a manifest keeps of the code, and that its command brings that very code back."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ppo_lab.runs.manifest import (
    MAX_NEW_BYTES,
    REPOSITORY,
    describe_machine,
    differences,
    go_on,
    how_to_repeat,
    read_checkout,
)

IDENTITY = ("-c", "user.name=a", "-c", "user.email=a@b.c")


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True).stdout


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
def test_a_manifest_that_leaves_a_new_file_out_names_it_and_gives_no_command(content: bytes, checkout: Path) -> None:
    (checkout / "new.py").write_text("print('new')\n")
    (checkout / "mesh").write_bytes(content)
    found = read_checkout(checkout)
    assert found.left_out == ["mesh"]
    assert b"+print('new')" in found.diff
    assert found.is_dirty
    assert how_to_repeat([], found, Path("git.diff")) is None


def test_outside_of_a_git_checkout_the_commit_is_unknown(tmp_path: Path) -> None:
    found = read_checkout(tmp_path)
    assert (found.commit, found.is_dirty) == (None, None)
    assert how_to_repeat(["seed=2"], found, Path("git.diff")) == "python train.py seed=2"


def of(device: str, iteration: int | None = None) -> dict[str, Any]:
    """A manifest, or its entry of a run that went on."""
    entry = {"machine": {"device": device}, "exact": f"as on {device}"}
    return entry if iteration is None else {"iteration": iteration, **entry}


KINDS: list[tuple[list[dict[str, Any]], str]] = [
    ([of("cpu")], "as on cpu"),
    ([of("cpu"), of("cpu", 5)], "as on cpu"),
    ([of("cuda:0"), of("cuda:1", 5)], "as on cuda:1"),
    ([of("cpu"), of("cuda:0", 5)], "not claimed: trained on cpu, from iteration 5 on cuda:0"),
    (
        [of("cpu"), of("cuda:0", 5), of("cpu", 9)],
        "not claimed: trained on cpu, from iteration 5 on cuda:0, from iteration 9 on cpu",
    ),
    ([of("cpu"), of("cuda:0", 5), of("cpu", 5)], "as on cpu"),  # nothing was trained there
    ([of("cpu"), of("cuda:0", 5), of("cpu", 3)], "as on cpu"),  # from an older checkpoint
    ([of("cuda:0"), of("cpu", 0)], "as on cpu"),  # started over
    ([{"machine": None, "exact": "?"}, of("cpu", 5)], "as on cpu"),
]


@pytest.mark.parametrize(("parts", "exact"), KINDS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_run_resumed_on_another_kind_of_device_claims_no_exactness(parts: list[dict[str, Any]], exact: str) -> None:
    found, *more = parts
    for entry in more:
        found = go_on(found, entry["iteration"], {key: entry[key] for key in ("machine", "exact")})
    assert found["exact"] == exact
    assert [entry["iteration"] for entry in found.get("continued", [])] == [entry["iteration"] for entry in more]
    if more:
        assert found["continued"][-1]["exact"] == exact
    assert found["machine"] == parts[0]["machine"]


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
