"""The timing of a trot."""

import math

import pytest
import torch

from ppo_lab.envs.tasks.go2_walk import gait

CPU = torch.device("cpu")
FEET = ["FR_foot", "FL_foot", "RR_foot", "RL_foot"]


def test_the_phase_begins_anew_after_a_period() -> None:
    assert gait.phase(torch.tensor([0, 5, 24, 25, 30]), 25.0).tolist() == pytest.approx([0.0, 0.2, 0.96, 0.0, 0.2])


def test_diagonal_feet_step_together() -> None:
    assert gait.offsets(FEET, CPU).tolist() == [0.5, 0.0, 0.0, 0.5]


def test_the_clock_is_sine_and_cosine_and_stands_still_for_a_robot_that_is_to_stand() -> None:
    clock = gait.clock(torch.tensor([0.25, 0.25]), torch.tensor([True, False]))
    torch.testing.assert_close(clock, torch.tensor([[1.0, math.cos(math.pi / 2)], [0.0, 0.0]]))


def test_a_foot_swings_after_its_stance_and_one_pair_at_a_time() -> None:
    phase, walks = torch.tensor([0.2, 0.8, 0.8]), torch.tensor([True, True, False])
    swing = gait.swing(phase, gait.offsets(FEET, CPU), 0.6, walks)
    early, late = (0.7 - 0.6) / 0.4, (0.8 - 0.6) / 0.4
    torch.testing.assert_close(
        swing, torch.tensor([[early, 0.0, 0.0, early], [0.0, late, late, 0.0], [0.0, 0.0, 0.0, 0.0]])
    )


def test_only_a_foot_that_is_too_low_in_its_swing_has_an_error() -> None:
    swing = torch.tensor([[0.5, 0.5, 0.0, 1 / 6]])  # in the middle the whole height, after a sixth half of it
    height = torch.tensor([[0.02, 0.2, 0.02, 0.04]])
    error = gait.swing_error(height, swing, ground=0.02, highest=0.1)
    torch.testing.assert_close(error, torch.tensor([1.0 + 0.25]))
