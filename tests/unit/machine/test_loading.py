"""What makes loading quick changes no answer: each case in a process of its own, since both are the process's."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import REPOSITORY

LOADED = """
import inspect, sys
caller = sys._getframe(1)  # importlib's, as for a kernel that a module defines
module = inspect.getmodule(caller, caller.f_code.co_filename)
print(module and module.__name__, inspect.getframeinfo(caller).code_context)
"""


def said(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(REPOSITORY)!r}, {str(folder)!r}]\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(("first", "found"), [("pass", "None"), ("loading.begin()", "importlib._bootstrap")])
def test_inspect_finds_importlib_at_once_and_still_no_source_of_it(first: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "loaded.py").write_text(LOADED)
    assert said(f"from ppo_lab.machine import loading; {first}; import loaded", tmp_path) == f"{found} None"


def test_the_collector_waits_from_begin_to_end_and_then_leaves_alone_what_is_loaded(tmp_path: Path) -> None:
    code = """
import gc
from ppo_lab.machine import loading
loading.begin()
waits = not gc.isenabled()
loading.end()
print(waits, gc.isenabled(), gc.get_freeze_count() > 0)
"""
    assert said(code, tmp_path) == "True True True"


def test_an_end_without_a_begin_changes_nothing(tmp_path: Path) -> None:
    code = "import gc; from ppo_lab.machine import loading; loading.end(); print(gc.isenabled(), gc.get_freeze_count())"
    assert said(code, tmp_path) == "True 0"
