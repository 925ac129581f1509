"""The backflip's env: its frame against the public evaluation's, its rewards and its success against known motions."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ppo_lab.config import ExperimentConfig
from ppo_lab.contracts import StepDetails
from ppo_lab.envs import make_env

Experiment = Callable[..., ExperimentConfig]


def build(experiment: Experiment, device: torch.device, *overrides: str, num_envs: int = 3) -> Any:
    return make_env(experiment("env=go2_backflip", *overrides).env, num_envs, device, seed=1)


@torch.inference_mode()
def test_the_observation_is_laid_out_as_in_the_public_evaluation(
    simulator: torch.device, experiment: Experiment
) -> None:
    """In its order, by hand, with numpy: the actions stand twice, since it observes after it has kept the newest."""
    env = build(experiment, simulator)
    generator = torch.Generator().manual_seed(0)
    for number in range(1, 6):
        actions = torch.randn(3, 12, generator=generator)
        seen = env.step(actions).observations["policy"].numpy()
        entity = env._robot.entity
        quat, omega = entity.get_quat().numpy().astype(np.float64), entity.get_ang().numpy().astype(np.float64)
        joints = [entity.get_joint(name).dof_start for name in env.spec.actions]
        w, x, y, z = quat.T
        rotation = np.stack(  # of the base in the world
            [
                np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], axis=1),
                np.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], axis=1),
                np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], axis=1),
            ],
            axis=1,
        )
        phase = math.pi * number / 100
        waves = [f(phase / part) for part in (1, 2, 4) for f in (math.sin, math.cos)]
        pose = np.array([0.0, 0.8, -1.5, 0.0, 0.8, -1.5, 0.0, 1.0, -1.5, 0.0, 1.0, -1.5])
        expected = np.concatenate(
            [
                np.einsum("nij,ni->nj", rotation, omega) * 0.25,
                -rotation[:, 2],
                entity.get_dofs_position(joints).numpy() - pose,
                entity.get_dofs_velocity(joints).numpy() * 0.05,
                actions.numpy(),
                actions.numpy(),
                np.tile(waves, (3, 1)),
            ],
            axis=1,
        )
        np.testing.assert_allclose(seen, expected, atol=2e-5)
    critic = env.get_observations()["critic"].numpy()
    np.testing.assert_array_equal(critic[:, :60], seen)
    np.testing.assert_allclose(critic[:, 60], entity.get_pos().numpy()[:, 2], atol=1e-6)
    velocity = np.einsum("nij,ni->nj", rotation, entity.get_vel().numpy())
    np.testing.assert_allclose(critic[:, 61:], 2 * velocity, atol=1e-4)


@torch.inference_mode()
def test_after_a_reset_the_critic_sees_the_start(simulator: torch.device, experiment: Experiment) -> None:
    env = build(experiment, simulator)
    first = env.get_observations()["critic"].clone()
    for _ in range(101):
        result = env.step(torch.randn(3, 12))
    assert result.dones.all()
    torch.testing.assert_close(result.observations["critic"], first, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("flips", "steps"), [(1, 100), (2, 150)])
@torch.inference_mode()
def test_an_episode_has_two_seconds_and_one_more_for_a_second_flip(
    flips: int, steps: int, simulator: torch.device, experiment: Experiment
) -> None:
    env = build(experiment, simulator, f"env.flips={flips}")
    still = torch.zeros(3, 12)
    ended = [bool(env.step(still).time_outs.all()) for _ in range(steps + 1)]
    assert ended == [False] * steps + [True]


@torch.inference_mode()
def test_a_robot_that_stands_all_the_time_has_not_flipped(simulator: torch.device, experiment: Experiment) -> None:
    last = play(build(experiment, simulator), lambda env, step: None)
    assert not last["success"].any()
    assert not last["turned"].any()
    assert not last["stands_at_end"].any(), "it never left the ground"


@torch.inference_mode()
def test_a_robot_that_is_turned_once_in_the_air_and_put_on_its_feet_succeeds_and_one_on_its_back_does_not(
    simulator: torch.device, experiment: Experiment
) -> None:
    """The base is moved by hand: up, once around backwards in 0.5 s, and down; env 1 stays on its back."""

    def move(env: Any, step: int) -> None:
        entity = env._robot.entity
        if 25 <= step <= 50:
            turn = 2 * math.pi * (step - 25) / 25
            half = torch.tensor([turn, min(turn, math.pi), turn]) / 2
            quat = torch.stack([half * 0, half.sin(), half * 0, half.cos()], dim=1)  # after half a turn of yaw
            height = 0.8 if step < 50 else 0.33
            entity.set_pos(torch.tensor([[0.0, 0.0, height]]).expand(3, -1), zero_velocity=True)
            entity.set_quat(quat, zero_velocity=True)
            rate = torch.zeros(3, 6)
            rate[:, 4] = -2 * math.pi / 0.5 * (step < 50)  # about the base's own axis to the left
            rate[1] *= step <= 37
            entity.set_dofs_velocity(rate, list(range(6)))

    last = play(build(experiment, simulator), move)
    assert last["turned"].tolist() == [True, False, True]
    assert last["success"].tolist() == [True, False, True]
    assert last["trunk_touched"].tolist() == [False, True, False]


@torch.inference_mode()
def test_robots_that_lie_on_their_trunks_go_on_identically_in_another_process(
    simulator: torch.device, experiment: Experiment
) -> None:
    """Genesis orders the pairs of shapes that touch by those of the step before."""
    actions = torch.randn(360, 16, 12, generator=torch.Generator().manual_seed(0))
    env = build(experiment, simulator, num_envs=16)
    lengths = torch.randint(0, 100, (16,), generator=torch.Generator().manual_seed(1))
    env.episode_length_buf = lengths.int()
    states, walked = {}, []
    for number, action in enumerate(actions):
        if number in (120, 180, 220, 270, 340, 345):
            states[number] = env.state()
        walked.append(env.step(action).observations["critic"].clone())
    other = build(experiment, simulator, num_envs=16)
    for start, state in states.items():
        other.restore(state)
        for number in range(start, start + 14):
            assert torch.equal(other.step(actions[number]).observations["critic"], walked[number]), number


def play(env: Any, move: Callable[[Any, int], None]) -> dict[str, torch.Tensor]:
    """What is measured in the last step of an episode without actions, where `move` is called before each step."""
    seen: list[StepDetails] = []
    env.watch(seen.append)
    for step in range(101):
        move(env, step)
        env.step(torch.zeros(3, 12))
    return {name: measurement.values for name, measurement in seen[-1].measurements.items()}
