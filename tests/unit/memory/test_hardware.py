"""The cards that come with the framework."""

import dataclasses

import pytest
from omegaconf import OmegaConf

from ppo_lab.cli.compose import CONF
from ppo_lab.memory.predict.allocator import cublas_workspace_bytes
from ppo_lab.memory.predict.hardware import Hardware

SOLD_AS_GB = {
    "rtx_4060": 8,
    "rtx_3060": 12,
    "rtx_4080": 16,
    "rtx_4090": 24,
    "l40s": 48,
    "a100_80gb": 80,
    "h100": 80,
    "h200": 141,
}


def card(name: str) -> Hardware:
    settings = OmegaConf.load(CONF / "hardware" / f"{name}.yaml")
    found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Hardware), settings))
    assert isinstance(found, Hardware)
    return found


@pytest.mark.parametrize("name", SOLD_AS_GB)
def test_a_card_has_values_in_range_and_about_the_memory_it_is_sold_with(name: str) -> None:
    found = card(name)
    for f in dataclasses.fields(found):
        assert f.metadata["range"].admits(getattr(found, f.name)), f.name
    assert found.is_gpu
    assert found.multiprocessors > 0
    # of 1024 MiB per GB, the driver keeps some hundreds of MiB and error correction of GDDR6 one sixteenth
    assert 0.92 * 1024 <= found.memory_mib / SOLD_AS_GB[name] <= 0.995 * 1024


def test_the_card_decides_workspace_and_cores() -> None:
    # sm_90: 32 MiB; before: 8 MiB + 128 KiB. 132 multiprocessors x 128
    assert [cublas_workspace_bytes(card(name).compute_capability_major) for name in ("h100", "rtx_4090")] == [
        33_554_432,
        8_519_680,
    ]
    assert card("h200").cores == 16_896
