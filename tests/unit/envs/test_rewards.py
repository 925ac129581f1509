"""Reward terms at states where their value can be worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from ppo_lab.envs import rewards


def row(*values: float) -> Tensor:
    return torch.tensor([values])


@pytest.mark.parametrize(
    ("reward", "by_hand"),
    [
        (rewards.tracking(row(0.5, 0.0), row(0.5, 0.0), 0.25), 1.0),
        (rewards.tracking(row(0.5, 0.0), row(0.0, 0.5), 0.25), math.exp(-2.0)),  # (0.25 + 0.25) / 0.25
        (rewards.squared_deviation(torch.tensor([0.4]), 0.3), 0.01),
        (rewards.squared_deviation(torch.tensor([-3.0])), 9.0),
        (rewards.squared_change(row(1.0, 2.0), row(0.0, 4.0)), 5.0),
        (rewards.absolute_deviation(row(0.5, -1.0), torch.tensor([0.0, 1.0])), 2.5),
        (rewards.approach(row(0.0, 0.0, 1.0), row(0.0, 0.0, 2.0)), 3.0),  # from 4 to 1 square metres
        (rewards.heading(torch.tensor([0.0]), -10.0), 1.0),
        (rewards.heading(torch.tensor([-18.0]), -10.0), math.exp(-math.pi)),
        (rewards.heading(torch.tensor([342.0]), -10.0), math.exp(-math.pi)),  # the same, the long way round
        (rewards.spin(row(0.0, 3 * math.pi, 4 * math.pi)), 5.0),
    ],
)
def test_a_reward_term_has_the_value_worked_out_by_hand(reward: Tensor, by_hand: float) -> None:
    assert reward.shape == (1,)
    assert reward.item() == pytest.approx(by_hand, rel=1e-5)
