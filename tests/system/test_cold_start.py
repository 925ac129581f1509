"""A first start says that kernels are compiled, and a later one, which finds them in the cache, does not."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rich
from quadrants.lang import impl
from rich.console import Console

from ppo_lab.envs.genesis import kernels
from ppo_lab.training import console
from tests.paths import REPOSITORY

PROGRAM = """
import logging, sys
import quadrants as qd
from ppo_lab.envs.genesis import kernels

logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(levelname)s %(message)s")
qd.init(arch=qd.cpu, offline_cache=True, log_level=qd.ERROR)
kernels.tell_when_compiled()

@qd.kernel
def fill(a: qd.types.ndarray(qd.f32, ndim=1)):
    for i in a:
        a[i] = 2.0 * i

@qd.kernel
def halve(a: qd.types.ndarray(qd.f32, ndim=1)):
    for i in a:
        a[i] = a[i] / 2.0

array = qd.ndarray(qd.f32, 4)
for _ in range(2):
    fill(array)
    halve(array)
assert array.to_numpy().tolist() == [0.0, 1.0, 2.0, 3.0]
"""


def test_kernels_are_told_exactly_when_the_cache_has_none(tmp_path: Path) -> None:
    program, cache = tmp_path / "program.py", tmp_path / "cache"
    program.write_text(PROGRAM)

    def told() -> list[str]:
        done = subprocess.run(
            [sys.executable, program],
            env=os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=True,
        )
        return [line for line in done.stdout.splitlines() if "kernels" in line]

    cold = [f"INFO {kernels.FIRST}", "DEBUG kernels compiled: 1", "DEBUG kernels compiled: 2"]
    assert told()[:3] == cold
    assert told() == []
    shutil.rmtree(cache)
    assert told()[:3] == cold


def looked_up(monkeypatch: pytest.MonkeyPatch, *hits: bool) -> None:
    """The simulator looks up kernels, which its cache has or has not."""
    answers = iter(hits)
    monkeypatch.setattr(impl.Program, "compile_kernel", lambda *_: SimpleNamespace(cache_hit=next(answers)))
    kernels.tell_when_compiled()
    program: Any = impl.Program
    assert [program.compile_kernel().cache_hit for _ in hits] == list(hits)


@pytest.mark.parametrize(
    ("is_terminal", "quiet", "shown"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_a_terminal_counts_the_kernels_that_are_compiled(
    is_terminal: bool, quiet: bool, shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rich, "get_console", lambda: Console(force_terminal=is_terminal, width=60))
    logging.getLogger("ppo_lab").setLevel(logging.DEBUG)
    with console.compiling_shown(quiet):
        looked_up(monkeypatch, True, False, True, False)
    assert ("kernels compiled: 2" in capsys.readouterr().out) == shown


def test_compiled_kernels_are_announced_in_one_info_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="ppo_lab"):
        looked_up(monkeypatch, True, True)
        assert caplog.messages == []
        looked_up(monkeypatch, False, True, False)
    assert caplog.messages == [kernels.FIRST, "kernels compiled: 1", "kernels compiled: 2"]
    assert [record.levelname for record in caplog.records] == ["INFO", "DEBUG", "DEBUG"]
