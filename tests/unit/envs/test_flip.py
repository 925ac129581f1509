"""Timing and geometry of a backflip, against formulas by hand."""

import math

import pytest
import torch

from ppo_lab.envs.tasks.go2_backflip import flip


def test_the_phase_grows_from_0_to_pi_over_the_episode() -> None:
    found = flip.phase(torch.tensor([0, 50, 100]), 100)
    half = math.pi / 2
    expected = [
        [0.0, 1.0, 0.0, 1.0, 0.0, 1.0],
        [*(f(half / n) for n in (1, 2, 4) for f in (math.sin, math.cos))],
        [*(f(math.pi / n) for n in (1, 2, 4) for f in (math.sin, math.cos))],
    ]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_the_clock_of_the_second_flip_begins_when_the_first_stands_again() -> None:
    time_s = torch.tensor([0.1, 0.9, 1.39, 1.41, 1.9, 2.9])
    clock_s, behind = flip.clock(time_s, interval_s=1.0, flips=2, begins_s=0.4)
    torch.testing.assert_close(clock_s, torch.tensor([0.1, 0.9, 1.39, 0.41, 0.9, 1.9]))
    assert behind.tolist() == [0, 0, 0, 1, 1, 1]
    alone, none = flip.clock(time_s, interval_s=1.0, flips=1, begins_s=0.4)
    assert torch.equal(alone, time_s)
    assert none.tolist() == [0] * 6


@pytest.mark.parametrize(
    ("turns", "seen"), [(0.0, [0, 0, -1]), (0.25, [-1, 0, 0]), (0.5, [0, 0, 1]), (1.0, [0, 0, -1])]
)
def test_gravity_as_seen_by_a_base_that_turns_backwards(turns: float, seen: list[float]) -> None:
    torch.testing.assert_close(
        flip.projected_gravity(torch.tensor([turns])), torch.tensor([seen]).float(), atol=1e-6, rtol=0
    )


def test_mirrored_actions_are_no_asymmetry_and_each_pair_counts_once() -> None:
    joints = ["FR_hip_joint", "FR_thigh_joint", "FL_hip_joint", "FL_thigh_joint"]
    mirrored, sign = flip.mirror(joints, torch.device("cpu"))
    even, odd = torch.tensor([[0.3, 1.0, -0.3, 1.0]]), torch.tensor([[0.3, 1.0, -0.1, 1.5]])
    assert flip.asymmetry(even, mirrored, sign).item() == 0
    assert flip.asymmetry(odd, mirrored, sign).item() == pytest.approx(0.2**2 + 0.5**2)


def test_the_stance_error_counts_a_crossed_foot() -> None:
    apart = torch.tensor([[[0.2, -0.15, 0.0], [0.2, 0.15, 0.0]]])
    crossed = apart * torch.tensor([1.0, -1.0, 1.0])
    sides = torch.tensor([-1.0, 1.0])
    assert flip.stance_error(apart, sides, 0.3).item() == 0
    assert flip.stance_error(crossed, sides, 0.3).item() == pytest.approx(2 * 0.3**2)


def test_standing_is_worth_1_at_its_height_and_nothing_upside_down() -> None:
    gravity = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0], [-0.6, 0.0, -0.8]])
    found = flip.standing(gravity, torch.tensor([0.3, 0.3, 0.2]), target=0.3)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 0.8 / math.e]))
