"""The dashboard program: what it serves, to whom, and how it ends."""

import contextlib
import json
import re
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
from typing import Any

import psutil
import pytest

from ppo_lab.cli import dashboard as program
from ppo_lab.runs.hparams import write_hparams
from ppo_lab.runs.metrics import MetricsWriter, layout
from tests.paths import REPOSITORY

Dashboard = Callable[..., AbstractContextManager[tuple[subprocess.Popen[str], str]]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "0_num_envs=64,seed=1: a run"
    folder.mkdir()
    metrics = MetricsWriter(folder)
    metrics.write(0, {"Train/mean_reward": 1.0})
    metrics.close()
    return folder


def refusal(*arguments: str) -> str:
    command = [sys.executable, "-m", "ppo_lab", "dashboard", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
    return done.stderr


def test_the_dashboard_listens_on_localhost_alone(dashboard: Dashboard, run: Path) -> None:
    with dashboard(str(run), "--port", "0") as (process, url):
        with urllib.request.urlopen(url) as page:
            assert b"TensorBoard" in page.read()
        wait_for(f"{url}data/runs", [run.name])
        server = psutil.Process(process.pid)
        listening = [
            connection.laddr.ip
            for one in [server, *server.children(recursive=True)]
            for connection in one.net_connections()
            if connection.status == psutil.CONN_LISTEN
        ]
    assert listening
    assert set(listening) <= {"127.0.0.1", "::1"}


def test_a_default_port_that_is_taken_is_skipped_and_one_from_the_command_line_is_refused(
    dashboard: Dashboard, run: Path
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        with dashboard(str(run), default_port=taken) as (_, url):
            assert taken < int(url.split(":")[2].strip("/")) < taken + 100
        assert f"--port {taken}: TensorBoard could not bind to port {taken}" in refusal(str(run), "--port", str(taken))


def test_ctrl_c_ends_the_dashboard_with_code_0_and_its_child_processes(dashboard: Dashboard, run: Path) -> None:
    with dashboard(str(run), "--port", "0") as (process, _):
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert (process.returncode, rest, errors) == (0, "", "")
    assert psutil.wait_procs(children, timeout=60)[1] == []


def test_an_open_dashboard_shows_results_that_are_written_again(dashboard: Dashboard, tmp_path: Path) -> None:
    write_hparams(tmp_path, {"num_envs": 64}, {"final_reward": 1.0})
    with dashboard(str(tmp_path), "--port", "0") as (_, url):
        wait_until_shown(url, tmp_path.name, 1.0)
        write_hparams(tmp_path, {"num_envs": 64}, {"final_reward": 2.0})
        wait_until_shown(url, tmp_path.name, 2.0)
        assert list_hparams(url) == {tmp_path.name: {"num_envs": 64.0}}


def wait_until_shown(url: str, run: str, final_reward: float) -> None:
    address = f"{url}data/plugin/scalars/scalars?tag=Result/final_reward&run={run}"
    wait_for(address, [final_reward], lambda points: [value for _, _, value in points])


def wait_for(address: str, expected: Any, of: Callable[[Any], Any] = lambda answer: answer) -> None:
    """Returns once the address answers as expected."""
    deadline_s = time.monotonic() + 60
    found = None
    while found != expected:
        assert time.monotonic() < deadline_s, found
        time.sleep(0.1)
        with (
            contextlib.suppress(urllib.error.HTTPError),  # not read yet
            urllib.request.urlopen(address) as answer,
        ):
            found = of(json.load(answer))


def list_hparams(url: str) -> dict[str, dict[str, Any]]:
    """Row of the HParams page -> its settings."""
    question = json.dumps({"allowedStatuses": ["STATUS_UNKNOWN"], "sliceSize": 10}).encode()
    address, kind = f"{url}data/plugin/hparams/session_groups", {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(address, question, kind)) as answer:
        return {group["name"]: group["hparams"] for group in json.load(answer)["sessionGroups"]}


def test_the_page_hparams_is_named_only_where_a_run_has_a_row(tmp_path: Path) -> None:
    run = tmp_path / "sweep" / "run"
    run.mkdir(parents=True)
    assert list(program.views(tmp_path)) == ["timeseries", "custom_scalars", "text"]
    write_hparams(run, {"num_envs": 64}, {"final_reward": 1.0})
    assert list(program.views(tmp_path)) == list(program.views(run))
    assert list(program.views(tmp_path)) == ["timeseries", "custom_scalars", "hparams", "text"]


def test_every_tag_of_the_custom_page_has_a_chart_of_its_own_and_a_prediction_stands_beside_its_measurement() -> None:
    before_any_phase = ["Memory/allocated_peak_mib", "Memory/host_rss_mib"]
    page = layout(before_any_phase, ["target", "yaw"])
    charts = [chart for charts in page.values() for chart in charts.values()]
    assert {kind for kind, _ in charts} == {"Multiline"}
    tags = [
        *("Train/mean_reward", "Train/mean_episode_length", "Episode/rew_target", "Episode/rew_yaw"),
        *("Loss/value", "Loss/surrogate", "Loss/entropy", "Loss/learning_rate", "Policy/mean_std"),
        *("Memory/rollout_peak_mib", "Memory/update_peak_mib", "Memory/predicted_update_peak_mib"),
        *("Memory/allocated_peak_mib", "Memory/host_rss_mib"),
        *("Perf/total_fps", "Perf/collection_time", "Perf/learning_time"),
    ]
    drawn = [[tag for tag in tags if re.match(pattern, tag)] for _, (pattern,) in charts]
    assert ["Memory/update_peak_mib", "Memory/predicted_update_peak_mib"] in drawn
    assert sorted(len(found) for found in drawn) == [1] * 15 + [2], "as many charts as tags, less the prediction"
    assert sorted(tag for found in drawn for tag in found) == sorted(tags)
    assert list(page["Reward terms"]) == ["target", "yaw"]


def test_terms_whose_names_are_not_known_share_a_chart() -> None:
    assert layout([], [])["Reward terms"] == {"all terms": ["Multiline", ["Episode/rew_.*$"]]}


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    assert f"{tmp_path / 'none'}: there is no such folder" in refusal(str(tmp_path / "none"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train.log").touch()
    assert f"{tmp_path}: there is no run in it" in refusal(str(tmp_path))


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_out_of_range_is_refused(run: Path, port: str) -> None:
    assert refusal(str(run), "--port", port).startswith(f"error: --port {port}: ")
