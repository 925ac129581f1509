"""Ranges of commands that grow with success."""

from types import SimpleNamespace

import pytest
import torch

from ppo_lab.envs.curriculum import Curriculum

CPU = torch.device("cpu")


def curriculum() -> Curriculum:
    return Curriculum(SimpleNamespace(start=0.5, step=0.3, success=0.7), CPU)


def test_it_grows_where_the_episodes_that_ended_were_successful_on_average_and_never_beyond_1() -> None:
    growing = curriculum()
    ended = torch.tensor([True, True, False])
    shares = []
    for success in ([0.6, 0.7, 1.0], [0.7, 0.8, 0.0], [0.9, 0.9, 0.0], [0.9, 0.9, 0.0]):
        growing.learn(torch.tensor(success), ended)
        shares.append(growing.share.item())
    assert shares == pytest.approx([0.5, 0.8, 1.0, 1.0])


def test_a_step_in_which_no_episode_ends_changes_nothing() -> None:
    growing = curriculum()
    growing.learn(torch.ones(3), torch.zeros(3, dtype=torch.bool))
    assert growing.share.item() == 0.5


def test_a_restored_one_goes_on() -> None:
    first, second = curriculum(), curriculum()
    first.learn(torch.ones(3), torch.ones(3, dtype=torch.bool))
    second.restore(first.state())
    assert second.share.item() == pytest.approx(0.8)
    first.learn(torch.ones(3), torch.ones(3, dtype=torch.bool))
    assert second.share.item() == pytest.approx(0.8), "they share nothing"
