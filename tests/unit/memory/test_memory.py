"""The counted bytes, against tensors whose bytes are known; the phases; the watch over flat memory."""

import gc
import math
import random
import re
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from ppo_lab.memory.measure.growth import FlatMemoryWatch, steady_rise
from ppo_lab.memory.measure.live_tensors import LiveTensors
from ppo_lab.memory.measure.monitor import MemoryMonitor, free_bytes, host_peak_rss_bytes, of_all_ranks
from ppo_lab.memory.rows import MIB, ROWS, STANDS_FOR_A_RUN, WHOLE_RUN, name_of, predicted_tag, tag
from tests.paths import REPOSITORY

CPU = torch.device("cpu")


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


HOST = "Memory/host_rss_mib"


def found(values: Iterable[float], tag: str = HOST, free_mib: float = 2000.0) -> list[tuple[int, str]]:
    """What is said of a row with these `values`, one an iteration, and in which iteration."""
    values = list(values)
    watch = FlatMemoryWatch(len(values), lambda _: free_mib * MIB)
    return [(n, warning) for n, value in enumerate(values) for warning in watch.warnings(n, {tag: value})]


def noise_mib(seed: int, iterations: int) -> list[float]:
    draw = random.Random(seed)
    return [draw.uniform(-20, 20) for _ in range(iterations)]


def test_the_rise_of_a_straight_line_lies_between_the_medians_of_its_outer_quarters() -> None:
    assert steady_rise([100.0 + 2 * n for n in range(20)]) == 30  # medians: points 2, 7, 12, 17
    assert steady_rise([100.0 - 2 * n for n in range(20)]) is None
    assert steady_rise([100.0] * 20) is None


def test_an_uneven_rise_is_steady_as_long_as_each_quarter_adds_a_fifth() -> None:
    assert steady_rise([0.0] * 5 + [20] * 5 + [60] * 5 + [100] * 5) == 100
    assert steady_rise([0.0] * 5 + [19] * 5 + [60] * 5 + [100] * 5) is None


def test_a_rise_within_the_range_of_its_quarters_is_none() -> None:
    ranges = [[0.0, 0.0, 0.0, 0.0, 40.0]] * 3  # 2.5 x 40 = 100
    assert steady_rise([*ranges[0], *(33 + v for v in ranges[1]), *(66 + v for v in ranges[2]), *[100] * 5]) == 100
    assert steady_rise([*ranges[0], *(33 + v for v in ranges[1]), *(66 + v for v in ranges[2]), *[99] * 5]) is None


def test_a_mebibyte_an_iteration_is_found_in_fifty_iterations_with_its_rate() -> None:
    # 10 to warm up, then the first window of 40: from iteration 10 to 49
    assert found(1000.0 + n for n in range(60)) == [
        (
            49,
            "memory does not stay flat: Memory/host_rss_mib grows by 1.00 MiB an iteration since iteration 10, and is "
            "1049 MiB; something is not given back; memory would be full in iteration 2049 at this rate, after the end "
            "of this run",
        )
    ]


def test_when_memory_is_full_is_said_where_it_is_within_the_run() -> None:
    [(_, full)] = found((1000.0 + 4 * n for n in range(100)), free_mib=200)  # 200 / 4 after iteration 49
    assert full.endswith("; memory is full in iteration 99 of 100 at this rate")
    [(_, lasts)] = found((1000.0 + 4 * n for n in range(100)), free_mib=201)
    assert lasts.endswith("; memory would be full in iteration 100 at this rate, after the end of this run")
    watch = FlatMemoryWatch()
    [unknown] = [w for n in range(100) for w in watch.warnings(n, {HOST: 4.0 * n})]
    assert unknown.endswith("MiB; something is not given back")


@pytest.mark.parametrize("row", ["rollout_peak", "update_peak", "resident"])
def test_a_small_leak_of_tensors_is_found(row: str) -> None:
    # tensors are counted exactly, and a rise of 1 MiB is enough: 0.04 x 30, three quarters of a window of 40
    [(at, warning)] = found((100.0 + 0.04 * n for n in range(100)), f"Memory/{row}_mib")
    assert at == 49
    assert f"Memory/{row}_mib grows by 0.0400 MiB an iteration since iteration 10" in warning
    assert "something keeps tensors alive" in warning


@pytest.mark.parametrize("row", ["reserved", "device_used", "process_device"])
def test_a_leak_on_the_device_outside_of_torch_is_found(row: str) -> None:
    [(at, warning)] = found((5000.0 + n for n in range(100)), f"Memory/{row}_mib")
    assert at == 49
    assert f"Memory/{row}_mib grows by 1.00 MiB an iteration" in warning


@pytest.mark.parametrize("row", ["host_peak_rss", "allocated_peak", "predicted_allocated_peak", "predicted_reserved"])
def test_maxima_of_other_rows_and_predictions_are_not_watched(row: str) -> None:
    assert found((1000.0 + 5 * n for n in range(200)), f"Memory/{row}_mib") == []
    assert found((1000.0 + 5 * n for n in range(200)), "Loss/value") == []


def test_a_leak_that_begins_late_is_found_with_its_beginning() -> None:
    [(at, warning)] = found(1000.0 + max(0, n - 500) for n in range(1000))
    assert at == 539
    assert "grows by 1.00 MiB an iteration since iteration 500, and is 1039 MiB" in warning


def test_a_slow_leak_is_found_in_a_longer_window() -> None:
    # 16 MiB of rise in three quarters of 640 iterations, not of 320: 0.05 x 240 = 12
    [(at, warning)] = found(1000.0 + 0.05 * n for n in range(10_000))
    assert at == 649
    assert "grows by 0.0500 MiB an iteration since iteration 10" in warning


@pytest.mark.parametrize("seed", range(10))
def test_noise_is_no_growth_and_hides_none_for_long(seed: int) -> None:
    noise = noise_mib(seed, 1000)
    assert found(1000.0 + value for value in noise) == []
    [(at, _)] = found(1000.0 + n + value for n, value in enumerate(noise))
    assert at < 200
    [(at, _)] = found(1000.0 + max(0, n - 600) + value for n, value in enumerate(noise))
    assert 600 < at < 800


@pytest.mark.parametrize("at", [11, 27, 50, 333])
@pytest.mark.parametrize("step_mib", [20.0, 300.0, 5000.0])
def test_a_single_step_is_no_growth(at: int, step_mib: float) -> None:
    stepped = [1000.0 + step_mib * (n > at) for n in range(1000)]
    assert found(stepped) == []
    assert found(map(sum, zip(stepped, noise_mib(at, 1000), strict=True))) == []


@pytest.mark.parametrize("period", [2, 7, 20, 33])
def test_what_falls_back_is_no_growth(period: int) -> None:
    assert found(1000.0 + 300 * (n % period) / period for n in range(1000)) == []
    [(_, warning)] = found(1000.0 + n + 300 * (n % period) / period for n in range(2000))
    assert re.search(r"grows by (0\.9|1\.0)\d MiB an iteration", warning), "but what does not, beneath it, is"


def test_a_ramp_that_was_seen_to_fall_is_not_growth_the_next_time() -> None:
    flat_then_high = [1000.0] * 200 + [1300.0] * 2 + [1300.0 - n for n in range(300)]
    assert found(flat_then_high + [1000.0 + n for n in range(290)]) == []


def test_real_runs_of_go2_and_the_drone_are_flat() -> None:
    """Host memory of runs of 100 and 300 iterations, 512 and 256 envs, on a CPU: steps, most of them early."""
    go2 = {0: 1310.7, 1: 1332.5, 3: 1337.1, 5: 1341.4, 12: 1344.6, 50: 1346.2, 80: 1349.2, 90: 1352.2}
    hover = {0: 946.4, 1: 949.0, 2: 949.9, 30: 950.1, 60: 950.3, 140: 950.4, 230: 952.0, 299: 952.1}
    for steps in (go2, hover):
        assert found(steps[max(at for at in steps if at <= n)] for n in range(300)) == []


def test_each_row_is_said_once_and_what_is_missing_is_skipped() -> None:
    watch = FlatMemoryWatch()
    warned = []
    for n in range(300):
        rows = {
            HOST: 1000.0 + n,
            "Memory/resident_mib": None if n % 2 else 100.0 + n,
            "Memory/reserved_mib": math.nan if n == 30 else 1000.0 + n,
        }
        warned += [(n, warning.split()[5]) for warning in watch.warnings(n, rows)]
    assert warned == [(49, HOST), (50, "Memory/reserved_mib"), (88, "Memory/resident_mib")]


def test_what_is_free_for_a_row_of_the_host_is_the_hosts_and_else_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=7))
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda device: (5, 9))
    cuda = torch.device("cuda:0")
    assert [free_bytes(device, HOST) for device in (CPU, cuda)] == [7, 7]
    assert [free_bytes(device, "Memory/resident_mib") for device in (CPU, cuda)] == [7, 5]


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


def test_every_row_is_explained_in_the_docs() -> None:
    page = (REPOSITORY / "docs" / "glossary.md").read_text()
    assert [name for name in ROWS if f"`{tag(name)}`" not in page] == []


def test_a_cpu_without_counted_tensors_has_the_rows_of_the_host_alone() -> None:
    with MemoryMonitor(CPU) as monitor:
        assert {name_of(key) for key in monitor.scalars()} == {n for n, row in ROWS.items() if row.source == "host"}


def test_a_cpu_with_counted_tensors_has_all_rows_but_the_gpus() -> None:
    with MemoryMonitor(CPU, count_tensors=True) as monitor:
        for name in ("rollout", "update"):
            with monitor.phase(name):
                pass
        assert {name_of(key) for key in monitor.scalars()} == {n for n, row in ROWS.items() if row.source != "gpu"}


def test_a_tag_is_read_back_as_its_name_and_a_prediction_is_no_row() -> None:
    assert tag("host_rss") == "Memory/host_rss_mib"
    assert predicted_tag("host_rss") == "Memory/predicted_host_rss_mib"
    assert name_of("Memory/host_rss_mib") == "host_rss"
    assert [name_of(key) for key in ("Memory/predicted_host_rss_mib", "Memory/host_rss", "Loss/value")] == [None] * 3
    assert {*STANDS_FOR_A_RUN, *WHOLE_RUN} <= set(ROWS)


def test_rows_of_several_ranks_are_their_sums_and_each_ranks_peaks() -> None:
    rows = [{"Memory/host_rss_mib": 100.0 + rank, "Memory/host_peak_rss_mib": 200.0 + rank} for rank in range(2)]
    assert of_all_ranks(rows) == {
        "Memory/host_rss_mib": 201.0,
        "Memory/host_peak_rss_mib": 401.0,
        "Memory/rank_0/host_peak_rss_mib": 200.0,
        "Memory/rank_1/host_peak_rss_mib": 201.0,
    }
    assert of_all_ranks(rows[:1]) == rows[0]
    assert name_of("Memory/rank_0/host_peak_rss_mib") is None  # or it would be taken for the run's
