"""Who launched a process, the cores that it may use, and the ranks that a run starts."""

import contextlib
import os
import time
from pathlib import Path

import psutil
import pytest

from ppo_lab.cli.choose_run import prepare
from ppo_lab.cli.sweep import prepare as prepare_sweep
from ppo_lab.errors import ConfigError, MachineError, RankLostError
from ppo_lab.learning.ranks import TorchRanks
from ppo_lab.machine import cores, launch
from ppo_lab.machine.launch import Position

BY_TORCHRUN = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def test_a_process_of_torchrun_finds_its_place() -> None:
    assert launch.position_by_launcher(BY_TORCHRUN) == Position(rank=3, world_size=4, local_rank=1, local_world_size=2)
    assert launch.local_world_size(BY_TORCHRUN) == 2


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WORLD_SIZE": "4"},  # a cluster's image
        {"WORLD_SIZE": "4", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"},
        {"RANK": "0"},
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "all", "RANK": "0"},
    ],
)
def test_without_a_launcher_a_process_is_the_only_one(variables: dict[str, str]) -> None:
    assert launch.position_by_launcher(variables) is None
    assert launch.local_world_size(variables) == 1


@pytest.mark.parametrize("given", [{"RANK": "3", "LOCAL_RANK": "1"}, {"RANK": "3"}, {"LOCAL_RANK": "1"}])
def test_a_launcher_that_sets_too_little_is_refused_with_what_is_missing(given: dict[str, str]) -> None:
    with pytest.raises(MachineError) as refused:
        launch.position_by_launcher({"WORLD_SIZE": "4"} | given)
    assert "LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not set" in str(refused.value)
    assert "start them with torchrun, or one with python alone and processes=N" in str(refused.value)


def test_another_number_of_processes_than_torchrun_started_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in (BY_TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"processes=2: the launcher has started 4 processes. Leave out processes="):
        prepare(["experiment=smoke", "processes=2", f"hydra.run.dir={tmp_path / 'run'}"])
    with pytest.raises(ConfigError, match=r"a sweep starts its own processes. Start it with python alone"):
        prepare_sweep(["-m", "experiment=smoke", "seed=1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}"])
    assert list(tmp_path.iterdir()) == []
    run = prepare(["experiment=smoke", f"hydra.run.dir={tmp_path / 'run'}"]).run
    assert run.cfg.processes == 4
    run.lock.close()


def test_a_world_size_that_no_launcher_set_is_ignored_and_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for world_size, told in {"8": ["WORLD_SIZE=8 is ignored"], "1": [], "many": []}.items():
        monkeypatch.setenv("WORLD_SIZE", world_size)
        run = prepare(["experiment=smoke", f"hydra.run.dir={tmp_path / world_size}"]).run
        run.lock.close()
        assert [note.partition(",")[0] for note in run.notes] == told
        assert run.cfg.processes == 1


@pytest.mark.parametrize(
    ("quota", "most"),
    [("150000 100000", 1), ("50000 100000", 1), ("250000 100000", 2), ("max 100000", 64), ("", 64)],
)
def test_the_usable_cores_are_bounded_by_the_quota_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, most: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    (tmp_path / "cpu.max").write_text(quota)
    assert cores.usable_cores(tmp_path) == most


def test_the_usable_cores_are_bounded_by_the_quota_of_cgroup_version_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("300000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores.usable_cores(tmp_path) == 3
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert cores.usable_cores(tmp_path) == 64


def test_the_usable_cores_are_those_of_the_affinity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7})
    assert cores.usable_cores(tmp_path) == 3
    assert [cores.threads_per_rank(ranks, 8) for ranks in (1, 2, 3, 8, 9)] == [8, 4, 2, 1, 1]


def test_a_rank_that_died_is_told_again_where_the_first_error_was_caught() -> None:
    with contextlib.suppress(RankLostError), launch.OtherRanks(2, [{}, {}], "go2") as others:
        psutil.Process().children()[-1].kill()
        with contextlib.suppress(RankLostError):  # as a module that is imported while the signal arrives
            time.sleep(5)
        with pytest.raises(RankLostError, match="rank 1 was killed"):
            TorchRanks(others.position, False, others.hand_over_listener(), others.raise_if_lost)
