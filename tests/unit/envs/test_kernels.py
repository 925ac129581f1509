"""The lock of the simulator's kernels' cache."""

import os
import time
from pathlib import Path

import pytest
from quadrants.lang import impl

from ppo_lab.envs.genesis import kernels


@pytest.mark.parametrize(("age_s", "stays"), [(0.0, True), (3600.0, False)])
def test_a_lock_that_a_killed_process_has_left_is_removed_and_a_new_one_stays(
    age_s: float, stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(impl.default_cfg(), "offline_cache_file_path", str(tmp_path))
    kernels.remove_stale_lock()  # there is none
    lock = tmp_path / "kernel_compilation_manager" / "qdcache.lock"
    lock.parent.mkdir()
    lock.touch()
    os.utime(lock, times=(time.time() - age_s,) * 2)
    kernels.remove_stale_lock()
    assert lock.exists() is stays
