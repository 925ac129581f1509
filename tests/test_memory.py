"""The counted bytes, against tensors whose bytes are known; the phases; the watch over flat memory."""

import gc
from pathlib import Path

import pytest
import torch

from ppo_lab.memory.live_tensors import LiveTensors
from ppo_lab.memory.monitor import FlatMemoryWatch, MemoryMonitor, host_peak_rss_bytes

CPU = torch.device("cpu")
MIB = 2**20


def test_a_storage_counts_once_from_birth_to_death() -> None:
    gc.collect()
    with LiveTensors(CPU) as live:
        before = live.current_bytes
        a = torch.zeros(1000)  # 4000 bytes
        view = a.view(10, 100)[3:]  # the same storage
        assert live.current_bytes - before == 4000
        b = torch.zeros(500, dtype=torch.uint8)
        assert live.current_bytes - before == 4500
        del a
        assert live.current_bytes - before == 4500, "the view keeps it alive"
        del view, b
        assert live.current_bytes == before
        assert live.peak_bytes - before == 4500


def test_what_was_alive_before_counts_and_what_torch_borrows_does_not() -> None:
    gc.collect()
    with LiveTensors(CPU) as live:
        before = live.current_bytes
    kept = torch.zeros(250)
    borrowed = torch.from_numpy(torch.zeros(2000).numpy().copy())
    with LiveTensors(CPU) as live:
        assert live.current_bytes - before == 1000
        borrowed.reshape(20, 100)
        assert live.current_bytes - before == 1000
        del kept
        assert live.current_bytes == before


def test_backward_is_counted() -> None:
    weight = torch.ones(100, 100, requires_grad=True)
    x = torch.ones(50, 100)
    with LiveTensors(CPU) as live:
        before = live.current_bytes
        loss = torch.tanh(x @ weight).sum()  # tanh keeps its output, 50 x 100 x 4 bytes; the product is freed
        assert live.current_bytes - before == 20_000 + 4
        loss.backward()
        del loss
        assert weight.grad is not None
        assert live.current_bytes - before == 40_000  # the gradient


def test_the_peak_starts_anew_with_each_phase() -> None:
    gc.collect()
    with MemoryMonitor(CPU, count_tensors=True) as monitor:
        with monitor.phase("rollout"):
            kept = torch.zeros(MIB)  # 4 MiB
            torch.zeros(2 * MIB)  # 8 MiB, at once gone
        with monitor.phase("update"):
            torch.zeros(MIB)
        rows = monitor.scalars()
    del kept
    base = rows["Memory/resident_mib"] - 4
    assert rows["Memory/rollout_peak_mib"] - base == 12
    assert rows["Memory/update_peak_mib"] - base == 8
    assert rows["Memory/allocated_peak_mib"] == rows["Memory/rollout_peak_mib"]


def test_without_counting_a_cpu_has_the_hosts_rows_alone() -> None:
    with MemoryMonitor(CPU) as monitor:
        with monitor.phase("rollout"):
            pass
        rows = monitor.scalars()
    assert set(rows) == {"Memory/host_rss_mib", "Memory/host_peak_rss_mib"}
    assert 0 < rows["Memory/host_rss_mib"] <= rows["Memory/host_peak_rss_mib"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own count")
def test_the_hosts_peak_remembers_what_was_given_back() -> None:
    before = host_peak_rss_bytes()
    block = torch.ones((before + 256 * MIB) // 4)  # more than there ever was
    del block
    assert host_peak_rss_bytes() >= before + 200 * MIB


def rows(resident_mib: float, rss_mib: float = 1000.0) -> dict[str, float]:
    return {"Memory/resident_mib": resident_mib, "Memory/host_rss_mib": rss_mib}


def test_flat_memory_draws_no_warning() -> None:
    watch = FlatMemoryWatch()
    assert not [w for n in range(200) for w in watch.warnings(rows(100.0 + n % 2, 1000.0 + n % 30))]


def test_a_leak_of_tensors_is_named_once_with_its_size() -> None:
    watch = FlatMemoryWatch()
    warned = [(n, w) for n in range(1, 101) for w in watch.warnings(rows(100.0 + 0.5 * n))]
    assert len(warned) == 1
    # flat is 105 MiB (the tenth) + 1 % + 1 MiB = 107.05; passed by the fifteenth, 107.5 MiB
    assert warned[0][0] == 15
    assert "Memory/resident_mib was at most 105 MiB" in warned[0][1]


def test_a_leak_on_the_host_is_named_too() -> None:
    watch = FlatMemoryWatch()
    warned = [w for n in range(100) for w in watch.warnings(rows(100.0, 1000.0 + 10 * n))]
    assert len(warned) == 1
    assert "Memory/host_rss_mib" in warned[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_every_row_is_there() -> None:
    device = torch.device("cuda:0")
    with MemoryMonitor(device) as monitor:
        with monitor.phase("rollout"):
            kept = torch.zeros(MIB, device=device)
        with monitor.phase("update"):
            torch.zeros(8 * MIB, device=device)
        rows = monitor.scalars()
    assert rows["Memory/update_peak_mib"] - rows["Memory/resident_mib"] == 32
    assert rows["Memory/device_used_mib"] >= rows["Memory/reserved_mib"] >= rows["Memory/resident_mib"]
    del kept
