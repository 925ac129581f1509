"""Commands that the program prints, and that work when pasted into the shell that it was started from."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from ppo_lab.runs.files import shown

REPOSITORY = Path(__file__).resolve().parents[2]


def train(*words: str) -> str:
    """`python train.py` with words."""
    return shlex.join([_python(), str(shown(REPOSITORY / "train.py")), *words])


def calibrate() -> str:
    """The command that measures this machine."""
    return shlex.join([_python(), str(shown(REPOSITORY / "estimate.py")), "calibrate=true"])


def module(name: str, *words: str) -> str:
    """`python -m ppo_lab NAME` with words."""
    return shlex.join([_python(), "-m", "ppo_lab", name, *words])


def _python() -> str:
    """The interpreter that runs this: "python" where the shell finds that one."""
    found = shutil.which("python")
    is_this = found is not None and Path(found).parent.samefile(Path(sys.executable).parent)
    return "python" if is_this else str(shown(Path(sys.executable)))
