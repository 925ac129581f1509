"""Runs of several ranks, started by train.py and by torchrun: the same weights on each, none left behind, none lost.

The env is the puck of docs/add_an_env.md, which needs no simulator, in a package of its own.
"""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from ppo_lab.learning.checkpoint import load
from ppo_lab.runs.record import read_metrics
from tests.lab import SIZES, Lab, curve_of, ended, weights_of


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("a lab"))
    yield lab
    for process in lab.started:
        process.kill()


@pytest.fixture(scope="module")
def straight(lab: Lab) -> Path:
    """A run of two ranks that nothing disturbed."""
    code, _, errors = lab.train(*SIZES, "processes=2", "max_iterations=30", "hydra.run.dir=straight")
    assert code == 0, errors
    return lab.site.parent / "straight"


def others_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The ranks that `process`, rank 0, has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [
            child for child in psutil.Process(process.pid).children() if child.cmdline()[-2:] == ["ppo_lab", "train"]
        ]
    return []


def rows_of(run: Path) -> int:
    return len(read_metrics(run)) if (run / "metrics.jsonl").exists() else 0


def until(condition: Callable[[], object], within_s: float = 240.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def begun(lab: Lab, run: Path) -> tuple[subprocess.Popen[str], psutil.Process]:
    """A run of two ranks in its iterations: rank 0, and rank 1."""
    process = lab.start(*SIZES, "processes=2", "max_iterations=30", f"hydra.run.dir={run}")
    until(lambda: rows_of(run) > 7)
    (other,) = others_of(process)
    return process, other


def assert_goes_on_as(straight: Path, lab: Lab, run: Path) -> None:
    """Resumed, the run ends as the one that nothing disturbed."""
    assert lab.train(f"resume={run}")[0] == 0
    assert weights_of(run, 29) == weights_of(straight, 29)
    assert curve_of(run) == curve_of(straight)


def test_two_runs_of_two_ranks_end_with_identical_weights_and_curves(lab: Lab, straight: Path) -> None:
    code, _, errors = lab.train(*SIZES, "processes=2", "max_iterations=30", "hydra.run.dir=again")
    assert code == 0, errors
    again = lab.site.parent / "again"
    assert weights_of(again, 29) == weights_of(straight, 29)
    assert curve_of(again) == curve_of(straight)


def test_the_memory_log_has_each_ranks_peak_and_their_sum(straight: Path) -> None:
    row = read_metrics(straight)[-1]
    of_ranks = [row[f"Memory/rank_{rank}/host_peak_rss_mib"] for rank in (0, 1)]
    assert all(isinstance(mib, float) and mib > 100 for mib in of_ranks)
    assert row["Memory/host_peak_rss_mib"] == pytest.approx(sum(of_ranks))
    assert "Memory/rank_2/host_peak_rss_mib" not in row


def test_two_ranks_draw_from_streams_of_their_own(straight: Path) -> None:
    first, second = load(straight / "checkpoints" / "state_29.pt")["ranks"]
    assert not torch.equal(first["env"]["own"]["_pos"], second["env"]["own"]["_pos"])
    assert not torch.equal(first["random"]["torch"], second["random"]["torch"])
    assert first["episodes"]["last_returns"] == second["episodes"]["last_returns"]


def test_a_run_whose_rank_1_is_killed_ends_with_one_message_and_goes_on_identically(lab: Lab, straight: Path) -> None:
    run = lab.site.parent / "rank 1 killed"
    process, other = begun(lab, run)
    other.kill()
    killed_s = time.monotonic()
    code, out, errors = ended(process)
    assert time.monotonic() - killed_s < 60
    assert code == 1
    assert errors.count("\n") == 1
    assert "error: the run failed: rank 1 was killed (SIGKILL" in errors
    assert "go on:" in out
    assert json.loads((run / "summary.json").read_text())["status"] == "failed"
    assert_goes_on_as(straight, lab, run)


def test_where_rank_0_is_killed_the_others_end_and_the_run_goes_on_identically(lab: Lab, straight: Path) -> None:
    run = lab.site.parent / "rank 0 killed"
    process, other = begun(lab, run)
    process.kill()
    ended(process)
    until(lambda: not other.is_running() or other.status() == psutil.STATUS_ZOMBIE, within_s=60)
    assert_goes_on_as(straight, lab, run)


def test_a_rank_that_dies_while_all_is_built_ends_the_run(lab: Lab) -> None:
    run = lab.site.parent / "killed early"
    process = lab.start(*SIZES, "processes=2", f"hydra.run.dir={run}")
    until(lambda: others_of(process))
    others_of(process)[0].kill()
    code, _, errors = ended(process, within_s=60)
    assert code == 1
    assert "rank 1 was killed (SIGKILL" in errors


def test_another_number_of_ranks_is_refused_on_resuming(lab: Lab, straight: Path) -> None:
    code, _, errors = lab.train(f"resume={straight}", "processes=1", "max_iterations=40")
    assert code == 2
    assert "processes=1 would change the run, which has 2" in errors


def test_ctrl_c_saves_and_ends_all_ranks(lab: Lab, straight: Path) -> None:
    run = lab.site.parent / "interrupted"
    process, other = begun(lab, run)
    process.send_signal(signal.SIGINT)
    code, out, _ = ended(process)
    assert code == 130
    assert "go on:" in out
    assert not other.is_running() or other.status() == psutil.STATUS_ZOMBIE
    assert_goes_on_as(straight, lab, run)


def test_an_error_in_rank_1_is_told_by_rank_0(lab: Lab) -> None:
    overrides = [*SIZES, "processes=2", "max_iterations=9", "hydra.run.dir=error"]
    code, _, errors = lab.train(*overrides, BREAKS="1:20", RAISES="yes")
    assert code == 1
    assert errors.splitlines()[0].startswith("error: the run failed: rank 1: the puck is lost")
    assert errors.count("\n") == 1


def test_nan_in_rank_1_is_dumped_with_the_number_that_its_env_has_among_all(lab: Lab) -> None:
    run = lab.site.parent / "nan"
    code, _, errors = lab.train(*SIZES, "processes=2", "max_iterations=9", f"hydra.run.dir={run}", BREAKS="1:20")
    assert code == 1
    assert "observations are not finite in iteration 2: nan first at step 4 in env 11" in errors  # 8 + 3
    dump = load(run / "nan_2.pt")
    assert dump["fault"]["env_ids"] == [11]
    assert dump["envs"][0] == 11
    replay = lab.start(f"{run}/nan_2.pt", program=(sys.executable, "-m", "ppo_lab", "replay"))
    code, out, errors = ended(replay)
    assert (code, errors) == (0, "")
    assert "not repeated: the run has 2 ranks" in out


@pytest.fixture
def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    return port


def test_two_nodes_of_torchrun_train_the_same_run_as_two_processes(lab: Lab, straight: Path, free_port: int) -> None:
    run = lab.site.parent / "two nodes"
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1")
    rendezvous = (
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{free_port}",
        "--rdzv-id=puck",
        "--local-addr=127.0.0.1",
    )
    overrides = [*SIZES, "max_iterations=30", f"hydra.run.dir={run}"]
    nodes = [lab.start(*overrides, program=(*torchrun, *rendezvous)) for _ in range(2)]
    results = [ended(node) for node in nodes]
    assert [code for code, _, _ in results] == [0, 0], results
    assert sum("run folder:" in out for _, out, _ in results) == 1
    assert weights_of(run, 29) == weights_of(straight, 29)
