"""The benchmark for the day a GPU is at hand records whatever happens; here, without one, its parts are given fakes."""

import contextlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from benchmarks import gpu, gpu_checks
from benchmarks.gpu_checks import PARTS, Part
from ppo_lab.config import ExperimentConfig
from ppo_lab.errors import ConfigError
from ppo_lab.memory.predict import allocator
from ppo_lab.memory.predict.hardware import Hardware
from ppo_lab.memory.predict.trace import Allocation, Event, Free, trace
from ppo_lab.memory.rows import MIB
from tests.gpu_parts import broken, good, killed, stuck, this_machine_is
from tests.paths import REPOSITORY

TIMED = (
    *("ours over rsl_rl's", "float32: times as fast", "bfloat16: times as fast"),
    "of what as many single ranks would do",
)
"""Rows that a busy machine changes."""
H100 = Hardware("NVIDIA H100 80GB HBM3", 81559, "9.0", 132)


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs the benchmark in `tmp_path` with these parts alone, and reads gpu.json."""

    def run(*arguments: str, machine: str = "here", **parts: Part) -> dict[str, Any]:
        monkeypatch.setattr(gpu, "PARTS", parts)
        monkeypatch.setattr(gpu, "machine", partial(this_machine_is, machine))
        gpu.main(["device=cpu", f"out={tmp_path}", *arguments])
        return json.loads((tmp_path / "gpu.json").read_text())

    return run


def test_what_fails_in_a_part_is_recorded_and_the_next_goes_on(
    result: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {
        "broken": Part(broken, 60),
        "killed": Part(killed, 60),
        "stuck": Part(partial(stuck, tmp_path / "child"), 3),
        "elsewhere": Part(broken, 60, needs_gpu=True),
        "good": Part(partial(good, tmp_path / "marks"), 60),
    }
    found = result(**parts)["parts"]
    assert found["broken"]["error"] == "ValueError: no such [thing]"
    assert found["killed"]["error"] == "its process ended with -11, see gpu.log"
    assert found["stuck"]["error"] == "not done after 3 s"
    with contextlib.suppress(psutil.NoSuchProcess):
        child = psutil.Process(int((tmp_path / "child").read_text()))
        assert child.status() == psutil.STATUS_ZOMBIE, "what a part starts ends with it"
    for name in ("broken", "killed", "stuck"):
        assert [row["check"] for row in found[name]["rows"]] == ["before"], "what was found before is kept"
    assert found["elsewhere"] == {"needs_gpu": True, "error": None, "rows": []}
    assert [row["agrees"] for row in found["good"]["rows"]] == [False, True]
    assert "in broken\n    raise ValueError" in (tmp_path / "gpu.log").read_text()

    shown = (tmp_path / "gpu.txt").read_text()
    assert max(map(len, shown.splitlines())) <= 100
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "context 450.0 MiB .. 650.0 MiB 700.0 MiB the context" in lines
    assert "peak 1,024 B 1,024 B as expected" in lines
    assert "elsewhere needs a GPU" in lines
    assert "broken: " in capsys.readouterr().out


def test_a_part_that_is_in_the_json_is_not_run_again(result: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    parts = {"one": Part(partial(good, tmp_path / "one"), 60), "two": Part(partial(good, tmp_path / "two"), 60)}

    def run(*arguments: str, **also: str) -> str:
        result(*arguments, **parts, **also)
        return "".join(path.read_text() if path.exists() else "-" for path in (tmp_path / "one", tmp_path / "two"))

    assert run("parts=one") == "x-"
    assert run("seconds=5") == "x-", "there is no time for the other"
    assert run() == "xx"
    assert run("parts=t*", "again=true") == "xxx"
    with pytest.raises(ConfigError, match=r"gpu\.json is of another machine or code \(cpu was here and is there\)"):
        run(machine="there")


def test_a_part_that_the_whole_time_cut_short_is_run_again(
    result: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "LEAST_S", 1)
    part = Part(partial(stuck, tmp_path / "child"), 60)
    for _ in range(2):
        found = result("seconds=3", slow=part)["parts"]["slow"]
        assert found["cut"]
        assert found["seconds"] < 10
        (tmp_path / "child").unlink()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("parts=memory", "parts=memory: there is no part memory. Allowed: list, context, workspaces, "),
        ("parts=syncs,what", "parts=syncs,what: there is no part what. Allowed: list, context, "),
        (
            "gpu=0",
            "gpu=0 is not an argument of this benchmark. Allowed: device, parts, out, again, seconds, each with =.",
        ),
        ("device=cuda:1", "device=cuda:1: allowed: cuda or cpu."),
        ("seconds=ten", "seconds=ten: allowed: a whole number."),
    ],
)
def test_wrong_arguments_are_refused_by_name(argument: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        gpu.main([argument])
    assert str(refused.value).startswith(message)


def test_the_parts_are_listed_with_their_limits(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["parts=list"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(PARTS)
    assert "simulator               240 s  GPU  The simulator: its start," in lines[3]
    memory = [name for name in PARTS if name.startswith("memory_")]
    assert len(memory) == 14, "twelve sizes, and one of them twice more"


def run_without_a_gpu(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The program, started in `folder` as from anywhere."""
    command = [sys.executable, str(REPOSITORY / "benchmarks/gpu.py"), f"out={folder}", *overrides]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_without_a_gpu_it_is_refused_with_the_dry_run_that_goes(tmp_path: Path) -> None:
    refused = run_without_a_gpu(tmp_path)
    assert refused.returncode == 2
    assert "this machine has 0 CUDA GPUs" in refused.stderr
    assert refused.stderr.strip().endswith("A dry run without a GPU: device=cpu.")


@pytest.mark.slow
def test_from_a_checkout_without_a_gpu_it_runs_dry(tmp_path: Path) -> None:
    done = run_without_a_gpu(tmp_path, "device=cpu", "parts=context,memory_hover_512x4")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["parts"]["context"]["needs_gpu"]
    assert found["machine"]["torch"] == torch.__version__
    memory = found["parts"]["memory_hover_512x4"]
    assert memory["error"] is None
    agrees = {row["check"]: row["agrees"] for row in memory["rows"]}
    assert agrees["rollout_peak"] and agrees["update_peak"] and agrees["resident"]  # noqa: PT018


@pytest.mark.slow
@pytest.mark.parametrize("part", ["repeat", "state", "speed", "update", "ranks"])
def test_the_larger_parts_agree_with_their_models_in_a_dry_run(part: str) -> None:
    record = gpu.run(PARTS[part], "cpu", 600, Path(os.devnull))
    assert record["error"] is None
    rows = [row for row in record["rows"] if row["check"] not in TIMED]
    assert rows
    assert all(row["agrees"] is not False for row in rows), rows


def test_all_that_is_expected_of_a_card_is_worked_out_for_it(
    experiment: Callable[..., ExperimentConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = experiment("env=go2", "num_envs=64", "num_steps_per_env=24")
    traced = trace(cfg, "cuda")
    monkeypatch.setattr("ppo_lab.memory.predict.estimate.trace", lambda *_: traced)
    spans = gpu_checks.memory_spans(cfg, H100)
    assert spans.keys() == {"rollout_peak", "update_peak", "resident", "reserved", "process"}
    assert spans["resident"][0] > gpu_checks.workspace_bytes(H100)
    assert spans["rollout_peak"][1] < spans["update_peak"][1] <= spans["reserved"][1]
    smaller = gpu_checks.memory_spans(cfg, Hardware("RTX 3060", 12288, "8.6", 28))
    assert all(smaller[name][1] < spans[name][1] for name in spans), "another card, other figures"


class Driver:
    """libcuda as far as it is asked."""

    def __init__(self, **values: int) -> None:
        self.values = values

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        return ordinal

    def cuDeviceGetDefaultMemPool(self, pool: Any, device: Any) -> int:
        return 0

    def cuMemPoolGetAttribute(self, pool: Any, attribute: int, value: Any) -> int:
        value._obj.value = self.values[{5: "reserved", 7: "used"}[attribute]]
        return self.values.get("error", 0)

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = {106: 32}[attribute]
        return 0


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An H100 whose counters never move, as far as torch and libcuda tell."""
    properties = SimpleNamespace(name=H100.name, total_memory=81559 * MIB, major=9, minor=0, multi_processor_count=132)
    properties.max_threads_per_multi_processor = 2048
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert gpu_checks.card("cuda") == H100
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (80_000 * MIB, 80_500 * MIB))
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda: 2 * MIB)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(gpu_checks, "card", lambda _: H100)
    monkeypatch.setattr(gpu_checks, "_driver", lambda: Driver(reserved=608 * MIB, used=576 * MIB))
    return monkeypatch


def test_the_drivers_pool_is_asked_and_its_errors_are_told(cuda: pytest.MonkeyPatch) -> None:
    assert gpu_checks.pool_bytes(gpu_checks.POOL_RESERVED) == 608 * MIB
    assert gpu_checks.pool_bytes(gpu_checks.POOL_USED) == 576 * MIB
    assert gpu_checks.blocks_per_multiprocessor() == 32
    cuda.setattr(gpu_checks, "_driver", lambda: Driver(used=0, error=801))
    with pytest.raises(RuntimeError, match="cuMemPoolGetAttribute returned CUDA error 801"):
        gpu_checks.pool_bytes(gpu_checks.POOL_USED)


def test_the_context_is_what_is_used_beyond_torch(cuda: pytest.MonkeyPatch) -> None:
    cuda.setattr(gpu_checks, "this_machine", lambda _: H100)
    capacity, context = gpu_checks.context("cpu")
    assert (capacity.measured, capacity.agrees) == (80_500 * MIB, False)
    assert (context.measured, context.agrees) == (498 * MIB, True)


@pytest.mark.parametrize("more", [0, MIB])
def test_workspaces_are_what_is_allocated_beyond_tensors(cuda: pytest.MonkeyPatch, more: int) -> None:
    workspace, gradients, outputs = gpu_checks.workspace_bytes(H100), MIB + 2048, 2 * MIB
    kept = 1000 + gradients + 2 * workspace + more
    counters = iter([1000, 1000 + outputs + workspace + more, kept, kept])
    cuda.setattr(torch.cuda, "memory_allocated", lambda: next(counters))
    rows = list(gpu_checks.workspaces("cpu"))
    assert [row.measured for row in rows] == [workspace + more, workspace, 0]
    assert [row.agrees for row in rows] == [not more, True, True]


@pytest.mark.parametrize("wrong_from", [None, 1])
def test_the_first_event_at_which_the_allocator_differs_is_told(
    cuda: pytest.MonkeyPatch, wrong_from: int | None
) -> None:
    events: list[Event] = [
        Allocation(0, 3 * MIB, ""),
        Allocation(1, 12 * MIB, ""),
        Free(0),
        Allocation(2, 100, ""),
        Free(1),
    ]
    expected = allocator.replay(events)
    reserved = list(expected.reserved[1:])
    if wrong_from is not None:
        reserved[wrong_from] += 20 * MIB
    cuda.setattr(gpu_checks, "trace", lambda *_: SimpleNamespace(events=events))
    allocated, reserved_now = iter(expected.allocated[1:]), iter(reserved)
    cuda.setattr(torch.cuda, "memory_allocated", lambda: next(allocated))
    cuda.setattr(torch.cuda, "memory_reserved", lambda: next(reserved_now))
    cuda.setattr(torch.cuda, "max_memory_allocated", lambda: max(expected.allocated))
    cuda.setattr(torch.cuda, "max_memory_reserved", lambda: max(reserved))
    peak, segments, alike = gpu_checks.caching_allocator("cpu")
    assert peak.agrees
    assert segments.agrees == (wrong_from is None)
    assert alike.measured == (len(events) if wrong_from is None else wrong_from)


@pytest.mark.slow
def test_the_simulators_part_runs_to_its_end_with_a_fake_card(
    cuda: pytest.MonkeyPatch, simulator: torch.device
) -> None:
    rows = {row.check: row for row in gpu_checks.simulator("cpu")}
    assert rows["gs.init takes"].expected == (174_063_616, 174_063_616 + 36_000_000)
    assert rows["the pool's bytes in use"].measured == 576 * MIB
    assert rows["the pool's bytes in use"].agrees is False
    assert rows["reserved beyond"].agrees
    assert rows["first step, outside the pool"].measured == 0


@pytest.mark.slow
def test_reads_of_the_host_are_counted_by_phase(cuda: pytest.MonkeyPatch, simulator: torch.device) -> None:
    from ppo_lab.learning import guard

    mode = ["default"]
    check = guard.check

    def read(*args: Any) -> None:
        if mode[-1] == "warn":
            for _ in range(9):
                warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
            warnings.warn("something else", UserWarning, stacklevel=1)
        check(*args)

    cuda.setattr(guard, "check", read)
    cuda.setattr(torch.cuda, "set_sync_debug_mode", mode.append)
    rows = {row.check: row for row in gpu_checks.syncs("cpu")}
    assert mode[1:] == ["warn", "default"]
    assert rows["rollout"].expected == (0, 5)
    assert rows["update"].expected == (1, 4)
    assert (rows["the rest"].measured, rows["the rest"].agrees) == (9, True)
    assert [row.measured for row in rows.values() if row.check.startswith("at ")] == [9]


@pytest.mark.parametrize("process_row", ["process_device", "device_used"])
def test_memory_on_a_gpu_stands_beside_each_of_its_models(cuda: pytest.MonkeyPatch, process_row: str) -> None:
    rows = {f"Memory/{name}_mib": 100.0 for name in ("rollout_peak", "update_peak", "resident", "reserved")}
    rows |= {"Memory/device_used_mib": 3000.0, f"Memory/{process_row}_mib": 2500.0}
    rows |= {"Perf/collection_time": 0.7, "Perf/learning_time": 0.1, "Perf/total_fps": 120_000.0}
    spans = dict.fromkeys(("rollout_peak", "update_peak", "resident", "reserved", "process"), (99 * MIB, 101 * MIB))
    cuda.setattr(gpu_checks, "train_here", lambda *_, **__: [rows] * 6)
    cuda.setattr(gpu_checks, "memory_spans", lambda *_: spans)
    found = {row.check: row for row in gpu_checks.memory(gpu_checks.GO2, "cuda")}
    assert [name for name, row in found.items() if row.agrees is False] == ["process", "the pool's bytes in use"]
    assert found["process"].measured == 2500 * MIB
    pool = found["the pool's bytes in use"]
    at_least = 1_174_092_680 + 432 * 4096  # with the islands' arrays of each env; a page for each array
    assert (pool.expected, pool.measured) == ((at_least, 1.02 * at_least + 671 * 4096), 576 * MIB)
    assert [found[f"Perf/{name}"].agrees for name in ("collection_time", "learning_time", "total_fps")] == [True] * 3


@pytest.mark.parametrize(
    ("code", "stdout", "rows"),
    [
        (0, '{"card": {"context_bytes": 5}, "runs": [1]}', [("card.context_bytes", 5), ("runs", "[1]")]),
        (2, "", [("it said", "error: calibrate is not a setting.")]),
    ],
)
def test_the_calibrations_exit_code_and_figures_are_kept(
    monkeypatch: pytest.MonkeyPatch, code: int, stdout: str, rows: list[tuple[str, Any]]
) -> None:
    done = SimpleNamespace(returncode=code, stdout=stdout, stderr="error: calibrate is not a setting.\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    first, *rest = gpu_checks.calibrate("cuda")
    assert (first.measured, first.agrees) == (code, code == 0)
    assert [(row.check, row.measured) for row in rest] == rows
