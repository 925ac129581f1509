"""Means over ranks in shared memory, between threads that stand in for them."""

import threading
from pathlib import Path

import pytest
import torch

from ppo_lab.learning import shared_mean
from ppo_lab.learning.shared_mean import SharedMean, reserve


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_rank_gets_the_same_mean_call_after_call(ranks: int) -> None:
    numbers, calls = 1000, 50
    path = reserve(ranks, numbers)
    assert path
    meeting = threading.Barrier(ranks, timeout=60)

    def barrier() -> None:
        meeting.wait()

    given = torch.randn(calls, ranks, numbers)
    found = given.clone()
    tables = [SharedMean(path, rank, ranks, numbers, barrier) for rank in range(ranks)]
    path.unlink()

    def reduce(rank: int) -> None:
        for call in range(calls):
            tables[rank](found[call, rank])

    threads = [threading.Thread(target=reduce, args=(rank,), daemon=True) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for rank in range(ranks):
        assert torch.equal(found[:, rank], found[:, 0])
    torch.testing.assert_close(found[:, 0], given.mean(dim=1))


def test_where_there_is_no_room_no_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_mean, "FOLDER", tmp_path)
    monkeypatch.setattr("os.posix_fallocate", full)
    assert reserve(2, 1000) is None
    assert list(tmp_path.iterdir()) == []
