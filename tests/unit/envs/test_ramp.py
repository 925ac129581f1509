"""Reward weights that grow in the course of a training."""

from types import SimpleNamespace

import pytest
import torch

from ppo_lab.envs.ramp import RewardRamp

CPU = torch.device("cpu")
WEIGHTS = torch.tensor([[2.0], [-4.0]])


def ramp(from_step: int, to_step: int) -> RewardRamp:
    return RewardRamp(SimpleNamespace(terms=["late"], from_step=from_step, to_step=to_step), ["early", "late"], CPU)


def test_a_weight_grows_from_0_and_others_stay() -> None:
    growing = ramp(2, 4)
    found = [growing.applied_to(WEIGHTS).squeeze(1).tolist() for _ in range(5)]
    assert found == [[2, 0], [2, 0], [2, -2], [2, -4], [2, -4]]


def test_a_ramp_without_length_is_a_step() -> None:
    sudden = ramp(2, 2)
    assert [sudden.applied_to(WEIGHTS)[1].item() for _ in range(4)] == [0, 0, -4, -4]


def test_a_restored_ramp_goes_on() -> None:
    first, second = ramp(2, 4), ramp(2, 4)
    for _ in range(2):
        first.applied_to(WEIGHTS)
    second.restore(first.state())
    assert torch.equal(first.applied_to(WEIGHTS), second.applied_to(WEIGHTS))


@pytest.mark.parametrize("steps", [(2, 4), (2, 2), (0, 0)])
def test_a_finished_ramp_has_whole_weights(steps: tuple[int, int]) -> None:
    finished = ramp(*steps)
    finished.finish()
    assert torch.equal(finished.applied_to(WEIGHTS), WEIGHTS)
