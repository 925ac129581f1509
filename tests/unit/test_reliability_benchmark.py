"""How benchmarks/reliability.py kills a run's ranks and sees what is left behind; small programs are the ranks."""

import random
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks import reliability
from benchmarks.reliability import ALL_RANKS, OTHER_RANK, RANK_0

OTHER = "import sys; sys.stdin.read()"
"""A rank that ends with rank 0, which holds the other end of its stdin."""
STUBBORN = "import time; time.sleep(600)"
RANK_0_WAITS = """
import subprocess, sys
other = subprocess.Popen([sys.executable, "-c", sys.argv[2], "train"], stdin=subprocess.PIPE)
print('{"iteration": 0}', file=open(sys.argv[1] + "/metrics.jsonl", "w"))
other.wait()
print("error: rank 1 was killed", file=sys.stderr)
sys.exit(1)
"""


@pytest.mark.parametrize(
    ("fault", "other", "left_behind"),
    [(ALL_RANKS, STUBBORN, 0), (RANK_0, OTHER, 0), (RANK_0, STUBBORN, 1), (OTHER_RANK, STUBBORN, 0)],
)
def test_a_fault_hits_its_rank_and_what_is_left_behind_is_counted_and_ended(
    fault: str, other: str, left_behind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reliability, "WAIT_S", 2.0)
    command = [sys.executable, "-c", RANK_0_WAITS, str(tmp_path), other]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    fate = reliability.kill_once(process, tmp_path, fault, random.Random(0))  # once there is a row
    assert fate["killed"]
    assert fate["explained"]
    assert fate["left_behind"] == left_behind
    assert fate["said"].strip() == ("error: rank 1 was killed" if fault == OTHER_RANK else "")
    mine = [child for child in psutil.process_iter(["cmdline"]) if str(tmp_path) in (child.info["cmdline"] or [])]
    assert mine == []


def test_the_tables_of_several_overrides_stand_beside_each_other() -> None:
    cost = {"offer_s": 0.014, "iteration_s": 1.778, "num_envs": 512, "env": "go2", "extra_s": 0.224, "pairs": 19}
    cost |= {"default_save_interval": 100, "share_of_training": 0.0013}
    ranks = {"by_fault": {RANK_0: {"tried": 4, "lost": 0}}, "longest_end_s": 1.25}
    shown = reliability.tables({"cost": cost, "cost processes=2": cost | {"processes": 2}, "ranks": ranks})
    assert "of an iteration of\n512 go2 envs. With" in shown["cost"]
    assert "of an iteration of\n512 go2 envs in 2 processes. With" in shown["cost processes=2"]
    assert shown["ranks"].splitlines()[2:] == [
        "| SIGKILL of rank 0 | 4 | 0 |",
        "",
        "After a kill all processes had ended within 1.2 s.",
    ]
