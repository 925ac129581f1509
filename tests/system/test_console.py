"""What a run prints, and that it survives when nobody can read that any more: real pipes, terminals and signals."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppo_lab.runs.folder import is_locked
from ppo_lab.training.console import fitted
from tests.forked_runs import Fault, ForkedRun, begin, is_complete, rows_so_far, until
from tests.paths import REPOSITORY

ENDLESS = "max_iterations=100000"
PATHS = ["a run, with spaces", "0_num_envs=512,seed=1", "Läufe/größer [1]", 'it\'s {a} "quoted" (path)']


class Terminal:
    """A terminal of 80 columns. `path` is what a process opens; `text` is what it has shown so far."""

    def __init__(self, columns: int = 80) -> None:
        self._ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.path = Path(os.ttyname(self.theirs))
        self.text = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                self.text += os.read(self._ours, 65536).decode(errors="replace")
            except OSError:
                return

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def lines(self) -> list[str]:
        """What was shown, without the sequences that move the cursor or colour."""
        return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text))

    def close(self) -> None:
        for end in (self.theirs, self._ours):
            os.close(end)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    with contextlib.suppress(OSError):  # the test may have closed it
        terminal.close()


def summary_of(run: Path) -> dict[str, object]:
    return json.loads((run / "summary.json").read_text())


def test_a_run_whose_output_pipe_is_closed_trains_to_its_end(tmp_path: Path) -> None:
    """As with `| head`, whose end breaks the pipe."""
    run, pipe = tmp_path / "run", tmp_path / "pipe"
    os.mkfifo(pipe)
    forked = ForkedRun(begin("hover", run, "max_iterations=4"), pipe)
    with pipe.open() as reader:
        assert reader.readline().startswith("run folder: ")
    assert forked.join() == 0
    assert is_complete(run)


def test_a_run_whose_output_is_on_a_full_disk_trains_to_its_end(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert ForkedRun(begin("hover", run, "max_iterations=2"), Path("/dev/full")).join() == 0
    assert is_complete(run)


def test_a_process_without_stdout_and_stderr_ends_with_code_0(tmp_path: Path) -> None:
    code = "import sys; from ppo_lab.machine.streams import outlive_readers; outlive_readers()\n"
    code += "print('x'); print('y', file=sys.stderr)"
    done = subprocess.run(["bash", "-c", f"{shlex.join([sys.executable, '-c', code])} >&- 2>&-"], cwd=REPOSITORY)
    assert done.returncode == 0


def test_a_closed_terminal_saves_the_run_and_ends_it_with_code_129(terminal: Terminal, tmp_path: Path) -> None:
    run = tmp_path / "run"
    forked = ForkedRun(begin("hover", run, ENDLESS), terminal.path)
    assert until(lambda: rows_so_far(run) > 2, forked)
    terminal.close()
    time.sleep(0.2)  # some iterations are printed to nowhere
    assert not forked.is_over()
    os.kill(forked.pid, signal.SIGHUP)
    os.kill(forked.pid, signal.SIGHUP)  # the shell and the system each send one
    assert forked.join() == 129
    assert summary_of(run)["status"] == "interrupted"
    assert (run / "checkpoints" / f"state_{rows_so_far(run) - 1}.pt").exists()


def ignoring_hangups() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_a_run_that_ignores_sighup_trains_to_its_end_when_it_gets_one(tmp_path: Path) -> None:
    fault: Fault = ignoring_hangups
    run = tmp_path / "run"
    forked = ForkedRun(begin("hover", run), tmp_path / "out", fault)
    assert until(lambda: rows_so_far(run) > 0, forked)
    os.kill(forked.pid, signal.SIGHUP)
    assert forked.ends()[0] == 0
    assert is_complete(run)


def piped_to_tee(terminal: Path, log: Path) -> Fault:
    """The process and `tee`, which reads what it prints, are the foreground job of a terminal of their own."""
    return functools.partial(_pipe_to_tee, terminal, log)


def _pipe_to_tee(terminal: Path, log: Path) -> None:
    os.setsid()
    shown = os.open(terminal, os.O_RDWR)  # the first terminal that a session opens is its own
    tee = subprocess.Popen(["tee", str(log)], stdin=subprocess.PIPE, stdout=shown, stderr=shown)
    assert tee.stdin
    os.dup2(tee.stdin.fileno(), 1)
    os.dup2(tee.stdin.fileno(), 2)
    tee.stdin.close()


@pytest.mark.parametrize(("ending", "code"), [("Ctrl-C", 130), ("SIGTERM to both", 75)])
def test_a_run_piped_to_tee_that_is_stopped_saves_its_last_iteration_and_the_command_it_prints_resumes_it(
    ending: str, code: int, terminal: Terminal, tmp_path: Path
) -> None:
    """As `train.py | tee log`. Either ending ends tee as well, which breaks the pipe."""
    run, log = tmp_path / "a run=1, of two", tmp_path / "log"
    forked = ForkedRun(begin("hover", run, ENDLESS), tmp_path / "out", piped_to_tee(terminal.path, log))
    assert until(lambda: rows_so_far(run) > 2, forked)
    if ending == "Ctrl-C":
        terminal.type("\x03")
    else:
        os.killpg(forked.pid, signal.SIGTERM)
    assert forked.join() == code
    assert f"run folder: {run}\n" in log.read_text()
    assert summary_of(run)["status"] == "interrupted"
    assert (run / "checkpoints" / f"state_{rows_so_far(run) - 1}.pt").exists()

    command = re.findall(r"go on: +(.*)", (run / "train.log").read_text())[-1]
    overrides = [*shlex.split(command)[2:], f"max_iterations={rows_so_far(run) + 1}"]
    code, printed = ForkedRun(overrides, tmp_path / "out").ends()
    assert code == 0, printed
    assert is_complete(run)


@pytest.mark.slow  # the same in a real shell, in processes that start by themselves
@pytest.mark.parametrize("ending", ["Ctrl-C", "SIGTERM"])
def test_a_stopped_pipeline_in_a_shell_saves_its_last_iteration_and_the_command_it_prints_resumes_it(
    ending: str, terminal: Terminal, tmp_path: Path
) -> None:
    """`train.py | tee log` in a shell on a terminal. Either ending reaches tee as well, which then breaks the pipe."""
    run, log = tmp_path / "a run=1, of two", tmp_path / "log"
    overrides = ["experiment=smoke", "env=hover", ENDLESS, f"hydra.run.dir={run}"]
    line = f"{shlex.join([sys.executable, 'train.py', *overrides])} 2>&1 | tee {log}; echo ended ${{PIPESTATUS[@]}}"
    shell = subprocess.Popen(
        ["setsid", "--ctty", "bash", "--norc", "-i"],
        cwd=REPOSITORY, stdin=terminal.theirs, stdout=terminal.theirs, stderr=terminal.theirs,
    )  # fmt: skip
    try:
        terminal.type(f"{line}\n")
        wait_for(lambda: rows_so_far(run) > 2)
        if ending == "Ctrl-C":
            terminal.type("\x03")
        else:
            (leader,) = (int(line.split("(")[0]) for line in processes_of(shell.pid) if "tee" not in line)
            os.killpg(os.getpgid(leader), signal.SIGTERM)
        wait_for(lambda: summary_of(run)["status"] == "interrupted")
        assert (run / "checkpoints" / f"state_{rows_so_far(run) - 1}.pt").exists()
        wait_for(lambda: not is_locked(run))
    finally:
        shell.kill()
        shell.wait()

    printed = (run / "train.log").read_text()
    command = re.findall(r"go on: +(.*)", printed)[-1]
    more = f"max_iterations={rows_so_far(run) + 1}"
    done = subprocess.run(["bash", "-c", f"{command} {more}"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert is_complete(run)


def processes_of(shell: int) -> list[str]:
    """The shell's children, as "pid(name)"."""
    found = subprocess.run(["ps", "-o", "pid=,comm=", "--ppid", str(shell)], capture_output=True, text=True, check=True)
    return ["{}({})".format(*line.split(maxsplit=1)) for line in found.stdout.splitlines()]


def wait_for(condition: object, within_s: float = 300.0) -> None:
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            if condition():  # type: ignore[operator]
                return
        except (OSError, ValueError):
            pass
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.mark.parametrize("name", [*PATHS[:2], *(pytest.param(name, marks=pytest.mark.slow) for name in PATHS[2:])])
def test_the_command_printed_for_a_run_folder_of_any_name_resumes_and_reproduces_it(name: str, tmp_path: Path) -> None:
    run = tmp_path / name
    overrides = [*begin("hover", run, "max_iterations=2")]
    code, printed = ForkedRun(overrides, tmp_path / "out").ends()
    assert code == 0, printed
    code, printed = ForkedRun([f"resume={run}"], tmp_path / "out").ends()
    assert (code, "is complete: all 2 iterations are done" in printed) == (0, True)
    command = shlex.split(printed.partition("To train on: ")[2])
    code, printed = ForkedRun(command[2:], tmp_path / "out").ends()
    assert code == 0, printed
    assert rows_so_far(run) == 4
    code, printed = ForkedRun([f"reproduce={run}", f"hydra.run.dir={run} again"], tmp_path / "out").ends()
    assert code == 0, printed
    assert "reproduced: the weights after iteration 3 are equal" in printed


def test_a_progress_line_that_is_too_long_drops_its_last_parts_first() -> None:
    parts = ["iteration 37/150", "left 0:02:11", "reward 3.21", "length 812", "7230 steps/s", "host 1,024 MiB"]
    assert fitted(parts, 200) == " | ".join(parts)
    assert fitted(parts, 60) == "iteration 37/150 | left 0:02:11 | reward 3.21 | length 812"
    assert fitted(parts, 57) == "iteration 37/150 | left 0:02:11 | reward 3.21"
    assert fitted(parts, 31) == "iteration 37/150 | left 0:02:11"


def test_a_terminal_of_80_columns_shows_iteration_and_time_left(terminal: Terminal, tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = begin("hover", run, "max_iterations=6", "memory.count_tensors=true")
    assert ForkedRun(overrides, terminal.path).join() == 0
    lines = [line for line in terminal.lines() if line.startswith("iteration ")]
    assert any(re.match(r"iteration 6/6 \| left 0:00:00 \| ", line) for line in lines), terminal.text
    assert max(map(len, lines)) <= 80


def test_an_estimate_whose_output_pipe_is_closed_ends_with_code_0_and_no_message() -> None:
    line = f"{shlex.join([sys.executable, 'estimate.py', 'trace=false'])} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.stdout.split("\n")[1], done.stderr) == ("0", "")


def test_an_estimate_on_a_full_disk_ends_with_code_1_and_the_reason() -> None:
    line = f"{shlex.join([sys.executable, 'estimate.py', 'trace=false', 'format=json'])} > /dev/full"
    done = subprocess.run(["bash", "-c", line], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")
