"""Stands in for the parts of benchmarks/gpu.py: what goes well and what goes wrong, without torch, in no time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu_checks import Row
from ppo_lab.memory.rows import MIB


def this_machine_is(name: str, _: str) -> Iterator[Row]:
    for check in ("cpu", "torch", "genesis-world", "rsl-rl-lib", "commit"):
        yield Row(check, None, name)


def good(file: Path, _: str) -> Iterator[Row]:
    """Leaves a mark"""
    with file.open("a") as marks:
        marks.write("x")
    yield Row("context", (450 * MIB, 650 * MIB), 700 * MIB, "B", "the context")
    yield Row("peak", (1024, 1024), 1024, "B", "the trace")


def broken(_: str) -> Iterator[Row]:
    yield Row("before", (1, 1), 1)
    raise ValueError("no such [thing]")


def killed(_: str) -> Iterator[Row]:
    yield Row("before", (1, 1), 1)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGSEGV)


def stuck(file: Path, _: str) -> Iterator[Row]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    file.write_text(str(child.pid))
    yield Row("before", (1, 1), 1)
    time.sleep(600)
