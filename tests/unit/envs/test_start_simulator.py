"""How Genesis is started: what `deterministic` makes of its own switch, on a GPU and on a CPU."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from ppo_lab.machine import preflight

pytestmark = pytest.mark.xdist_group("simulator")


@pytest.mark.parametrize(
    ("device", "deterministic", "passed"),
    [
        ("cuda:0", True, True),
        ("cuda:0", False, False),  # None would turn it on, outside performance_mode
        ("cpu", True, True),
        ("cpu", False, None),  # there it changes nothing, and all results are with this
    ],
)
@pytest.mark.parametrize("performance_mode", [False, True])
def test_deterministic_false_turns_genesis_switch_off_on_a_gpu(
    device: str, deterministic: bool, passed: bool | None, performance_mode: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ppo_lab.envs.genesis import start

    started: dict[str, Any] = {}
    monkeypatch.setattr("genesis.init", lambda **settings: started.update(settings))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    start.start_simulator(torch.device(device), 3, performance_mode, deterministic)
    assert started["use_deterministic_algorithms"] is passed
    assert started["performance_mode"] is performance_mode


def test_genesis_asks_no_process_for_the_processors_name_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    import genesis as gs
    from genesis.utils import misc

    from ppo_lab.envs.genesis import start

    def asks() -> dict[str, str]:
        raise AssertionError("asked another process")

    named: list[str] = []
    monkeypatch.setattr(misc.cpuinfo, "get_cpu_info", asks)
    monkeypatch.setattr(gs, "init", lambda **settings: named.append(misc.get_device(gs.cpu)[1]))
    start.start_simulator(torch.device("cpu"), 3, False)
    assert named == [preflight.cpu_name()]
    assert misc.cpuinfo.get_cpu_info is asks, "it is as it was"


def test_the_engines_kernels_do_not_depend_on_the_seed_but_all_other_numbers_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ppo_lab.envs.genesis import start

    started: dict[str, Any] = {}
    monkeypatch.setattr("genesis.init", lambda **settings: started.update(settings))
    drawn = []
    for seed in (3, 4, 3):
        start.start_simulator(torch.device("cpu"), seed, False)
        drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))
    assert started.get("seed") is None
    assert drawn[0] == drawn[2]
    assert all(one != other for one, other in zip(drawn[0], drawn[1], strict=True))
