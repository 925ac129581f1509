"""Which cards there are, which one a run takes, and that CUDA shows it no other."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from ppo_lab.cli.choose_run import prepare
from ppo_lab.errors import MachineError
from ppo_lab.machine import devices
from ppo_lab.machine.devices import Card
from ppo_lab.memory.measure.monitor import AcceleratorMemory
from ppo_lab.memory.predict import hardware
from ppo_lab.runs.manifest import describe_machine
from ppo_lab.sweeps import executors
from tests.conftest import selects_gpu_tests
from tests.fake_nvml import MIB, Device
from tests.paths import REPOSITORY

Machine = Callable[..., None]
A, B, C = "GPU-8932f937-d72c", "GPU-8a1f0000-0001", "GPU-5c000000-0002"
SLOW_FIRST = [Device(A, "NVIDIA T1000", 4096, 400, 3500, (7, 5), 14), Device(B, "NVIDIA GeForce RTX 4090")]
PARTS = [
    Device("MIG-1a", "NVIDIA A100 MIG 3g.40gb", 40192, 64, 40000, (8, 0), 42),
    Device("MIG-2b", "NVIDIA A100 MIG 1g.10gb", 9728, 13, 9000, (8, 0), 14),
]


def identifiers() -> list[str]:
    return [card.identifier for card in devices.visible_cards()]


# which cards there are


def test_without_a_list_all_cards_are_visible_in_the_order_of_nvidia_smi(machine: Machine) -> None:
    machine([Device(A), Device(B)])
    assert [(card.number, card.uuid) for card in devices.visible_cards()] == [("0", A), ("1", B)]


@pytest.mark.parametrize(
    ("listed", "visible"),
    {
        "": [],
        " ": [],
        "2,0": [C, A],
        " 1 , 2": [B, C],
        f"{B},{A}": [B, A],
        "GPU-893,GPU-5": [A, C],  # as much of a UUID as one card alone has
        "GPU-8,0": [],  # two cards have it
        "1,GPU-8,0": [B],  # the list ends there
        "1,3,0": [B],
        "1,-1,0": [B],
        "0,nothing,1": [A],
        "NoDevFiles": [],
        "0,1,0": [],  # twice the same
        f"0,{A}": [],
    }.items(),
)
def test_a_list_is_read_as_cuda_reads_it(listed: str, visible: list[str], machine: Machine) -> None:
    machine([Device(A), Device(B), Device(C)], CUDA_VISIBLE_DEVICES=listed)
    assert identifiers() == visible


def test_a_card_is_described_in_the_terms_of_cuda(machine: Machine) -> None:
    machine(SLOW_FIRST)
    # 14 multiprocessors of 64 cores each; CUDA may use 4096 - 400 MiB
    described = Card(A, "0", A, "NVIDIA T1000", 3696 * MIB, 3500 * MIB, "7.5", 14)
    assert devices.visible_cards()[0] == described
    assert hardware.this_machine("cuda:1") == hardware.Hardware("NVIDIA GeForce RTX 4090", 7936, "8.9", 24)
    assert [hardware.free_bytes(device) for device in ("auto", "cuda:1")] == [3500 * MIB, 7000 * MIB]


def test_an_old_driver_tells_the_whole_memory_alone(machine: Machine) -> None:
    machine([Device(A)], has_v2=False)
    assert devices.visible_cards()[0].memory_bytes == 8188 * MIB
    assert hardware.free_bytes("cuda") == 7000 * MIB


def test_of_a_card_in_mig_mode_the_parts_are_visible(machine: Machine) -> None:
    machine([Device(A, capability=(8, 0), parts=PARTS), Device(B)])
    first, second, other = devices.visible_cards()
    assert (first.identifier, first.number, first.memory_bytes) == ("MIG-1a", "0:0", 40128 * MIB)
    assert (first.compute_capability, first.multiprocessors, second.multiprocessors) == ("8.0", 42, 14)
    assert other.identifier == B
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in executors.local_slots("auto", 1)] == [
        "MIG-1a",
        "MIG-2b",
        B,
    ]


@pytest.mark.parametrize(
    ("listed", "visible"), [("MIG-2b", ["MIG-2b"]), ("0", ["MIG-1a"]), ("MIG-2b,1", ["MIG-2b", B])]
)
def test_parts_are_named_by_uuid_and_a_number_means_the_first(
    listed: str, visible: list[str], machine: Machine
) -> None:
    machine([Device(A, capability=(8, 0), parts=PARTS), Device(B)], CUDA_VISIBLE_DEVICES=listed)
    assert identifiers() == visible


def test_numbers_are_refused_where_cuda_is_told_to_count_the_fastest_first(machine: Machine) -> None:
    fastest_first = {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    machine(SLOW_FIRST, **fastest_first)
    with pytest.raises(MachineError, match=r"NVIDIA GeForce RTX 4090, NVIDIA T1000.*unset CUDA_DEVICE_ORDER, or name"):
        devices.take("cuda:1")
    machine(SLOW_FIRST, **fastest_first, CUDA_VISIBLE_DEVICES="1")
    with pytest.raises(MachineError, match="unset CUDA_DEVICE_ORDER"):
        devices.take("auto")
    machine(SLOW_FIRST, **fastest_first, CUDA_VISIBLE_DEVICES=B)
    assert identifiers() == [B]
    machine([Device(A), Device(B)], **fastest_first)
    assert identifiers() == [A, B], "of equal cards none is faster"


# which one a run takes


@pytest.mark.parametrize(
    ("cards", "listed", "device", "taken"),
    [
        ([Device(A), Device(B)], None, "cuda:1", B),
        ([Device(A), Device(B)], None, "auto", A),
        ([Device(A), Device(B)], None, "cuda", A),
        (SLOW_FIRST, None, "cuda:1", B),
        (SLOW_FIRST, None, "auto", A),
        ([Device(A), Device(B), Device(C)], "2,1", "cuda:1", B),
        ([Device(A), Device(B), Device(C)], "GPU-5,GPU-893", "cuda:1", A),
        ([Device(A, capability=(8, 0), parts=PARTS)], None, "cuda:1", "MIG-2b"),
    ],
)
def test_the_process_is_shown_the_one_card_that_the_run_takes(
    cards: list[Device], listed: str | None, device: str, taken: str, machine: Machine
) -> None:
    machine(cards, **({} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}))
    for _ in range(2):  # the second time, only that one is there
        card = devices.take(device)
        assert card
        assert card.uuid == taken
        assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["CUDA_DEVICE_ORDER"]) == (taken, "PCI_BUS_ID")
        assert hardware.this_machine(device).name == card.name
    assert identifiers() == [taken]


def test_each_rank_is_shown_a_card_of_its_own(machine: Machine) -> None:
    machine([Device(A), Device(B), Device(C)], CUDA_VISIBLE_DEVICES="2,0")
    for _ in range(2):  # the second time, rank 0 has taken its card
        shown = devices.environments("auto", 2)
        assert [variables["CUDA_VISIBLE_DEVICES"] for variables in shown] == [C, A]
        devices.take("auto")
    machine([Device(A), Device(B)])
    assert [devices.of_rank("auto", index) for index in (0, 1)] == ["auto", "cuda:1"]  # torchrun shows each rank all
    assert devices.of_rank("cpu", 1) == "cpu"


def test_ranks_on_the_cpu_are_shown_what_the_run_is(machine: Machine) -> None:
    machine([Device(A)])
    assert devices.environments("cpu", 3) == [{}, {}, {}]


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("auto", "processes=3: each rank takes a GPU of its own. device=cuda:2: this machine has 2 CUDA GPUs to take"),
        ("cuda:1", "processes=3: each rank takes a GPU of its own, and device=cuda:1 is one. Try device=cuda."),
    ],
)
def test_more_ranks_than_cards_are_refused(device: str, message: str, machine: Machine) -> None:
    machine([Device(A), Device(B)])
    with pytest.raises(MachineError) as refused:
        devices.environments(device, 3)
    assert str(refused.value).startswith(message)


def test_a_run_on_the_cpu_is_shown_no_card(machine: Machine) -> None:
    machine([Device(A)])
    assert devices.take("cpu") is None
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert devices.resolve_device("cpu") == torch.device("cpu")


def test_without_a_card_auto_is_the_cpu_and_changes_nothing(machine: Machine) -> None:
    machine([])
    assert devices.take("auto") is None
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert hardware.this_machine("auto") == hardware.this_machine("cpu")


def test_a_card_beyond_those_that_are_visible_is_refused_before_torch_is_asked(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def asked() -> bool:
        raise AssertionError("torch.cuda.is_available would fix which cards CUDA shows")

    monkeypatch.setattr(torch.cuda, "is_available", asked)
    machine([Device(A), Device(B), Device(C)], CUDA_VISIBLE_DEVICES="0,2")
    with pytest.raises(MachineError) as refused:
        prepare(["experiment=smoke", "device=cuda:2", f"hydra.run.dir={tmp_path / 'run'}"])
    assert str(refused.value) == (
        "device=cuda:2: this machine has 2 CUDA GPUs with CUDA_VISIBLE_DEVICES=0,2 to take; "
        "allowed: auto, cpu, cuda:0, cuda:1."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("can", "is_found"), [(True, True), (False, False)])
def test_torch_calls_the_card_that_was_taken_the_first(
    can: bool, is_found: bool, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: can)
    machine([Device(A), Device(B)])
    if is_found:
        assert devices.resolve_device("cuda:1") == torch.device("cuda:0")
    else:
        with pytest.raises(MachineError, match=rf"device=cuda:1: torch \S+ cannot use .*\({B}\); needed: .*CUDA build"):
            devices.resolve_device("cuda:1")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == B


@pytest.mark.parametrize(("device", "sees"), [("cuda:1", B), ("auto", A), ("cuda", A), ("cpu", "")])
def test_the_command_hides_the_other_cards_before_torch_is_loaded(device: str, sees: str, tmp_path: Path) -> None:
    fakes = tmp_path / "fakes"
    fakes.mkdir()
    (fakes / "pynvml.py").write_text(
        "import sys\nfrom tests.fake_nvml import Device, module\n"
        f"sys.modules[__name__] = module([Device({A!r}), Device({B!r})])\n"
    )
    (fakes / "torch.py").write_text(
        "import os, sys\nsys.exit('torch sees ' + repr(os.environ.get('CUDA_VISIBLE_DEVICES')))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(
        [sys.executable, "train.py", "experiment=smoke", f"device={device}", f"hydra.run.dir={tmp_path / 'run'}"],
        cwd=REPOSITORY,
        env=environment | {"PYTHONPATH": f"{fakes}:{REPOSITORY}"},
        capture_output=True,
        text=True,
    )
    assert f"torch sees {sees!r}" in done.stderr


# where NVML is silent


def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *rows: dict[str, Any], has_driver: bool = True) -> None:
    """Lets torch answer so, in the process that asks it."""
    driver = tmp_path / "nvidiactl"
    if has_driver:
        driver.touch()
    monkeypatch.setattr(devices, "DRIVER_FILES", (str(driver),))

    def run(command: list[str], env: dict[str, str], **_: Any) -> SimpleNamespace:
        assert has_driver
        assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        return SimpleNamespace(stdout=json.dumps(rows))

    monkeypatch.setattr(subprocess, "run", run)


ORIN = {
    "uuid": "GPU-e5",
    "name": "Orin",
    "memory_bytes": 7620 * MIB,
    "free_bytes": 5000 * MIB,
    "compute_capability": "8.7",
    "multiprocessors": 8,
}


def test_torch_is_asked_where_there_is_a_driver_and_nvml_is_silent(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine(None)
    answers(monkeypatch, tmp_path, ORIN, ORIN | {"name": "other", "uuid": None})
    assert hardware.this_machine("auto") == hardware.Hardware("Orin", 7620, "8.7", 8)
    assert hardware.free_bytes("auto") == 5000 * MIB
    assert [(slot.name, slot.environment["CUDA_VISIBLE_DEVICES"]) for slot in executors.local_slots("cuda", 1)] == [
        ("gpu 0", "0"),
        ("gpu 1", "1"),
    ]
    assert str(devices.take("cuda:1")) == "other (1)"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert devices.reader_of_process_bytes(0) is None
    assert devices.driver_version() is None


def test_where_torch_is_asked_a_card_keeps_its_name_in_the_list(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine(None, CUDA_VISIBLE_DEVICES="3, GPU-e5,nothing")
    answers(monkeypatch, tmp_path, ORIN, ORIN)
    assert identifiers() == ["3", "GPU-e5"]
    devices.take("cuda:1")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-e5"
    machine(None)
    with pytest.raises(MachineError, match=r"has 2 CUDA GPUs to take; allowed: auto, cpu, cuda:0, cuda:1\."):
        devices.take("cuda:2")


def test_without_driver_files_there_are_no_cards_and_torch_is_not_asked(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine(None)
    answers(monkeypatch, tmp_path, has_driver=False)
    assert identifiers() == []


def test_the_question_to_torch_is_one_that_torch_answers(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine(None, CUDA_VISIBLE_DEVICES="7")
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(devices, "DRIVER_FILES", (str(tmp_path / "nvidiactl"),))
    assert identifiers() == [], "there is no such card here, and the question itself is no error"
    done = subprocess.run([sys.executable, "-c", devices.ASK_TORCH], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


# what is said of it


def test_the_process_is_looked_for_on_the_card_that_the_run_took(machine: Machine) -> None:
    ours, theirs = (psutil.Process().pid, 77 * MIB), (1, 5 * MIB)
    machine([Device(A, processes=[theirs]), Device(B, processes=[theirs, ours]), Device(C, processes=[theirs])])
    devices.take("cuda:1")
    read = AcceleratorMemory(torch.device("cuda:0"))._process_bytes
    assert read
    assert read() == 77 * MIB


def test_a_process_that_nvml_does_not_know_is_not_guessed(machine: Machine) -> None:
    machine([Device(A, processes=[(1, 5 * MIB)])])  # as in a container, where NVML has the host's numbers
    read = devices.reader_of_process_bytes(0)
    assert read
    assert read() is None


def test_the_manifest_names_the_card_and_keeps_what_the_user_said(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine([Device(A), Device(B)])
    properties = SimpleNamespace(name="a card", total_memory=2**30, major=8, minor=9, multi_processor_count=24)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    devices.take("cuda:1")
    found = describe_machine(torch.device("cuda:0"), "cuda:1")
    assert (found["device"], found["gpu_uuid"], found["driver"]) == ("cuda:1", B, "580.65.06")
    assert describe_machine(torch.device("cuda:0"))["device"] == "cuda:0"
    assert "gpu_uuid" not in describe_machine(torch.device("cpu"), "cpu")


# the tests themselves


def test_tests_and_what_they_start_see_no_gpu() -> None:
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("expression", "selects"),
    {
        "": False,
        "not slow": False,
        "not gpu": False,
        "gpu": True,
        "gpu and not slow": True,
        "slow or gpu": True,
    }.items(),
)
def test_pytest_shows_gpus_only_where_m_asks_for_gpu_tests(expression: str, selects: bool) -> None:
    assert selects_gpu_tests(expression) is selects
