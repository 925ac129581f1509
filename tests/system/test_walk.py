"""The walk's env: the commands grow with success, a robot that is to stand stands in time, feet are measured."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ppo_lab.config import ExperimentConfig
from ppo_lab.contracts import StepDetails
from ppo_lab.envs import make_env

Experiment = Callable[..., ExperimentConfig]


def build(experiment: Experiment, device: torch.device, *overrides: str, num_envs: int = 64) -> Any:
    return make_env(experiment("env=go2_walk", *overrides).env, num_envs, device, seed=1)


@torch.inference_mode()
def test_commands_come_from_a_share_of_their_ranges_that_grows_with_success_and_from_all_where_it_is_watched(
    simulator: torch.device, experiment: Experiment
) -> None:
    env = build(experiment, simulator, "env.curriculum={start:0.2,step:0.1,success:0.7}")
    highest = [env.get_commands()[:, 0].max().item()]
    shares = []
    for tracked in (0.6, 0.8):
        env._reward_sums[0] = tracked * 1.5 * 20  # its weight times the length of an episode in s
        env.episode_length_buf[:] = env.spec.max_episode_length
        assert env.step(torch.zeros(64, 12)).dones.all()
        shares.append(env._curriculum.share.item())
        highest.append(env.get_commands()[:, 0].max().item())
    assert shares == pytest.approx([0.2, 0.3])
    assert highest[1] <= 0.2 * 1.5 < highest[2] <= 0.3 * 1.5
    env.watch(lambda _: None)
    assert env.get_commands()[:, 0].max() > 1.2


@torch.inference_mode()
def test_a_robot_that_stands_is_in_time_where_it_is_to_stand_and_half_of_the_time_where_it_is_to_trot(
    simulator: torch.device, experiment: Experiment
) -> None:
    env = build(experiment, simulator, num_envs=2)
    seen: list[StepDetails] = []
    env.watch(seen.append)
    for command, share in (([0.0, 0.0, 0.0], 1.0), ([1.0, 0.0, 0.0], 0.55)):
        env.hold_commands(command)
        for _ in range(25):
            env.step(torch.zeros(2, 12))
        seen.clear()
        for _ in range(50):  # two periods
            env.step(torch.zeros(2, 12))
        in_time = torch.stack([details.rewards["gait"] for details in seen]).mean() / (0.5 * 0.02)
        assert in_time.item() == pytest.approx(share, abs=0.05)
        assert seen[-1].measurements["highest_foot_m"].values[0].item() == pytest.approx(0.02, abs=0.01)
        clock = env.sensors()["gait_clock"]
        assert clock.norm(dim=1).tolist() == pytest.approx([0.0 if share == 1 else 1.0] * 2)
