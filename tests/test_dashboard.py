"""The dashboard program: what it serves, to whom, and how it ends."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest

from ppo_lab.telemetry.hparams import write_hparams
from ppo_lab.telemetry.metrics import MetricsWriter

REPOSITORY = Path(__file__).resolve().parent.parent

Dashboard = Callable[..., AbstractContextManager[tuple[subprocess.Popen[str], str]]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a run")
    metrics = MetricsWriter(folder)
    metrics.write(0, {"Train/mean_reward": 1.0})
    metrics.close()
    return folder


def refusal(*words: str) -> str:
    command = [sys.executable, "-m", "ppo_lab.dashboard", *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
    return done.stderr


def test_it_answers_on_this_machine_alone(dashboard: Dashboard, run: Path) -> None:
    with dashboard(str(run), "--port", "0") as (process, url):
        with urllib.request.urlopen(url) as page:
            assert b"TensorBoard" in page.read()
        server = psutil.Process(process.pid)
        listening = [
            connection.laddr.ip
            for one in [server, *server.children(recursive=True)]
            for connection in one.net_connections()
            if connection.status == psutil.CONN_LISTEN
        ]
    assert listening
    assert set(listening) <= {"127.0.0.1", "::1"}


def test_a_taken_port_is_passed_over_unless_it_was_asked_for(dashboard: Dashboard, run: Path) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # somebody has it already
            listener.bind(("127.0.0.1", 6006))
            listener.listen()
        with dashboard(str(run)) as (_, url):
            assert 6006 < int(url.split(":")[2].strip("/")) < 6106
        assert "--port 6006: TensorBoard could not bind to port 6006" in refusal(str(run), "--port", "6006")


def test_ctrl_c_ends_it_and_all_that_it_started(dashboard: Dashboard, run: Path) -> None:
    with dashboard(str(run), "--port", "0") as (process, _):
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert (process.returncode, rest, errors) == (0, "", "")
    assert psutil.wait_procs(children, timeout=60)[1] == []


def test_an_open_dashboard_shows_results_that_are_written_again(dashboard: Dashboard, tmp_path: Path) -> None:
    write_hparams(tmp_path, {"num_envs": 64}, {"final_reward": 1.0})
    with dashboard(str(tmp_path), "--port", "0") as (_, url):
        wait_until_shown(url, 1.0)
        write_hparams(tmp_path, {"num_envs": 64}, {"final_reward": 2.0})
        wait_until_shown(url, 2.0)


def wait_until_shown(url: str, final_reward: float) -> None:
    deadline_s = time.monotonic() + 60
    values = None
    while values != [final_reward]:
        assert time.monotonic() < deadline_s, values
        time.sleep(0.1)
        with (
            contextlib.suppress(urllib.error.HTTPError),  # not read yet
            urllib.request.urlopen(f"{url}data/plugin/scalars/scalars?tag=Result/final_reward&run=.") as answer,
        ):
            values = [value for _, _, value in json.load(answer)]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    assert f"{tmp_path / 'none'}: there is no such folder" in refusal(str(tmp_path / "none"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train.log").touch()
    assert f"{tmp_path}: there is no run in it" in refusal(str(tmp_path))


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_that_cannot_be_is_refused(run: Path, port: str) -> None:
    assert refusal(str(run), "--port", port).startswith(f"error: --port {port}: ")
