"""The processes of one run on this machine: who launched them, and starting them. Standard library only.

A run of `processes=N` starts N - 1 processes beside its own, all with the variables that torchrun sets. So a run that
torchrun started, on one machine or on many, goes the same way: each process finds its position in its environment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from types import FrameType
from typing import IO, NamedTuple, Self

from ppo_lab.errors import MachineError, RankLostError
from ppo_lab.machine.commands import PACKAGE
from ppo_lab.machine.cores import threads_per_rank

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets. All of them are there, or nobody launched ranks."""
ENV = "PPO_LAB_ENV"
"""Set, to the name of the run's env, in the ranks that a run starts."""
STARTED_BY_US = "PPO_LAB_RANK_OF"
"""Set, to the process of rank 0, in the ranks that a run starts."""
LAST_WORDS_BYTES = 4096
"""What is read of the output of a rank that died."""
WAIT_S, GRACE_S = 20.0, 5.0
"""The ranks end within this time, or are killed: where the run is done, and where it failed."""


class Position(NamedTuple):
    """One process among those of a run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Among those of the run on this machine."""
    local_world_size: int = 1

    @property
    def card(self) -> int:
        """The number, among the visible ones, of the GPU that the rank takes. One that we started sees no other."""
        return 0 if STARTED_BY_US in os.environ else self.local_rank


def position_by_launcher(environ: Mapping[str, str] = os.environ) -> Position | None:
    """This process' position where torchrun, or a run of ours, started it; None where it is a run's only process.

    WORLD_SIZE alone, which some cluster images set, says nothing. Raises a MachineError where a launcher has set only
    some of the variables.
    """
    world_size = environ.get("WORLD_SIZE", "")
    if not world_size.isdecimal() or not {"RANK", "LOCAL_RANK"} & environ.keys():
        return None
    missing = [name for name in VARIABLES if not environ.get(name)]
    if missing and int(world_size) == 1:
        return None
    if missing:
        raise MachineError(
            f"WORLD_SIZE={world_size}, and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: a "
            "launcher started several processes of this command, which do not find each other; start them with "
            "torchrun, or one with python alone and processes=N; unset WORLD_SIZE and RANK where there is no launcher"
        )
    numbers = [environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")]
    if not all(number.isdecimal() for number in numbers):
        raise MachineError(f"{', '.join(VARIABLES[:4])} must be whole numbers, as torchrun sets them")
    return Position(*map(int, numbers))


def local_world_size(environ: Mapping[str, str] = os.environ) -> int:
    """How many ranks of this run share this machine."""
    position = position_by_launcher(environ)
    return position.local_world_size if position else 1


def end_with_rank_0() -> None:
    """Ends this process, a rank that a run started, when the process of rank 0 is gone."""

    def wait() -> None:
        sys.stdin.buffer.read()  # rank 0 writes nothing, and holds the other end
        os._exit(1)

    if STARTED_BY_US in os.environ:
        threading.Thread(target=wait, daemon=True).start()


class OtherRanks:
    """The ranks that this process, rank 0, starts beside itself on this machine. A context manager that ends them.

    While entered, RankLostError is raised in the main thread when one of them dies.
    """

    def __init__(self, processes: int, environments: list[dict[str, str]], env: str) -> None:
        """Starts ranks 1 to `processes` - 1.

        Args:
            processes: how many ranks there are, this one included.
            environments: the variables that are special to each rank, by its number.
            env: what the ranks will step, which takes seconds to load.
        """
        self.position = Position(0, processes, 0, processes)
        self._listener = socket.create_server(("127.0.0.1", 0))
        os.environ.update(self._variables(self.position) | environments[0])
        self._outputs: list[IO[bytes]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._is_over = False
        for rank in range(1, processes):
            output = tempfile.TemporaryFile()  # noqa: SIM115, closed on exit
            self._outputs.append(output)
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "ppo_lab", "train"],
                    env=os.environ
                    | self._variables(Position(rank, processes, rank, processes))
                    | {ENV: env}
                    | environments[rank],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # what a terminal sends is for rank 0
                )
            )

    def hand_over_listener(self) -> int:
        """The socket that the ranks connect to, by its number. Whoever takes it answers there, and closes it."""
        return self._listener.detach()

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGCHLD, self._look)
        self._look(signal.SIGCHLD, None)  # for what died before
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over = True
        signal.signal(signal.SIGCHLD, self._before)
        until_s = time.monotonic() + (WAIT_S if exc[0] is None else GRACE_S)
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):  # one that is killed leaves the kernels' cache locked
                process.wait(max(0.0, until_s - time.monotonic()))
            process.kill()
            process.wait()
            if process.stdin:
                process.stdin.close()
        for output in self._outputs:
            output.close()
        self._listener.close()
        for name in (*VARIABLES, STARTED_BY_US):
            os.environ.pop(name, None)

    def are_done(self) -> None:
        """From now on the ranks may end."""
        self._is_over = True

    def first_death(self, within_s: float = 0.0) -> str | None:
        """Which rank died within that time, and how; None where all that have ended did so well."""
        until_s = time.monotonic() + within_s
        while not any(process.poll() for process in self._processes) and time.monotonic() < until_s:
            time.sleep(0.01)
        for rank, (process, output) in enumerate(zip(self._processes, self._outputs, strict=True), start=1):
            code = process.poll()
            if code:
                return f"rank {rank} {_how(code)}{_last_line(output)}"
        return None

    def raise_if_lost(self) -> None:
        """Raises the RankLostError again: other code, as of a module that is imported, may have caught the first."""
        if died := self.first_death():
            raise RankLostError(died)

    def _look(self, _: int, __: FrameType | None) -> None:
        if not self._is_over and (died := self.first_death()):
            self._is_over = True  # once
            raise RankLostError(died)

    def _variables(self, position: Position) -> dict[str, str]:
        return {
            "RANK": str(position.rank),
            "LOCAL_RANK": str(position.local_rank),
            "WORLD_SIZE": str(position.world_size),
            "LOCAL_WORLD_SIZE": str(position.local_world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._listener.getsockname()[1]),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads_per_rank(position.local_world_size))),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(PACKAGE.parent), os.environ.get("PYTHONPATH")))),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # another process, rank 0, has the store
            "GLOO_SOCKET_IFNAME": "lo",
            STARTED_BY_US: str(os.getpid()),
        }


def _how(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL; the system does so where memory runs out)"
    return f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"


def _last_line(output: IO[bytes]) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - LAST_WORDS_BYTES))
    lines = output.read().decode(errors="replace").strip().splitlines()
    return f": {lines[-1]}" if lines else ""
