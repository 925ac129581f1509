"""What runs jobs: a slot runs one job at a time. Another kind of executor is one more class with `Slot`'s methods."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ppo_lab.errors import ConfigError
from ppo_lab.machine import commands, devices

TRAIN = commands.train_program()


class JobHandle(Protocol):
    """A job that was submitted."""

    def poll(self) -> int | None:
        """The exit code, negative where a signal ended it; None while the job runs."""

    def stop(self, signum: signal.Signals) -> None:
        """Asks the job to write a checkpoint and to end."""

    def kill(self) -> None:
        """Ends the job, and every process that it started."""


class Slot(Protocol):
    """Runs one job at a time."""

    @property
    def name(self) -> str:
        """The device's name, for people."""

    def submit(self, overrides: Sequence[str], log: Path) -> JobHandle:
        """Runs train.py with `overrides` in a new process; what it prints is appended to `log`."""


class LocalSlot:
    """A share of a device of this machine."""

    def __init__(self, name: str, environment: Mapping[str, str], program: Sequence[str] = TRAIN) -> None:
        self.name = name
        self.environment = environment
        self._program = program

    def submit(self, overrides: Sequence[str], log: Path) -> JobHandle:
        return LocalProcess([*self._program, *overrides], os.environ | self.environment, log)


class LocalProcess:
    """A job as a process, in a group of its own, so that the terminal's Ctrl-C reaches it through us alone."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=_stop_with_parent() if sys.platform == "linux" else None,
            )

    def poll(self) -> int | None:
        if self._process.returncode is None:
            if os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
            self.kill()  # what it started and left; its number is not given away before it is waited for
        return self._process.wait()

    def stop(self, signum: signal.Signals) -> None:
        self._process.send_signal(signum)

    def kill(self) -> None:
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)


def local_slots(device: str, jobs_per_device: int) -> list[LocalSlot]:
    """Every share of the devices that `device` (auto, cpu, cuda) leaves to choose from: GPUs, or else the CPU.

    Where there is more than one, each gets its share of the cores, unless OMP_NUM_THREADS says otherwise.

    Raises:
        ConfigError: it asks for a GPU, and there is none.
    """
    cards = [] if device == "cpu" else devices.visible_cards()
    if device == "cuda" and not cards:
        raise ConfigError("device=cuda: no NVIDIA GPU is visible. Allowed: auto, cpu.")
    chosen = [(f"gpu {card.number}", devices.alone(card)) for card in cards] or [("cpu", devices.alone(None))]
    shares = len(chosen) * jobs_per_device
    threads = {}
    if shares > 1 and "OMP_NUM_THREADS" not in os.environ:
        threads["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // shares))
    return [LocalSlot(name, alone | threads) for _ in range(jobs_per_device) for name, alone in chosen]


def _stop_with_parent() -> Callable[[], None]:
    """Run by the child between fork and exec: the system sends it SIGTERM when this process ends, for any reason."""
    libc, parent = ctypes.CDLL(None), os.getpid()

    def request_signal() -> None:
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it has ended already
            os._exit(128 + signal.SIGTERM)

    return request_signal
