"""The envs against traces of the public reference: the same actions give the same observations, step by step."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch

from ppo_lab.config import ExperimentConfig
from ppo_lab.envs import make_env
from tests.paths import TESTS

GOLDEN = TESTS / "golden"
RECORDED_WITH = {
    "go2": [],
    "hover": ["env.pos_x_range=[0.6,0.6]", "env.pos_y_range=[-0.4,-0.4]", "env.pos_z_range=[1.2,1.2]"],
}
ATOL = 1e-3


@pytest.mark.parametrize("name", RECORDED_WITH)
def test_replaying_the_recorded_actions_gives_the_recorded_steps(
    name: str, simulator: torch.device, experiment: Callable[..., ExperimentConfig]
) -> None:
    golden = np.load(GOLDEN / f"{name}_a.npz")
    _, num_envs, num_actions = golden["actions"].shape
    cfg = experiment(f"env={name}", *RECORDED_WITH[name])
    with torch.inference_mode():
        env = make_env(cfg.env, num_envs, simulator, seed=1)
        assert num_actions == len(env.spec.actions)
        assert golden["obs"].shape[-1] == env.spec.width("policy")
        observed = [env.get_observations()["policy"]]
        kept = [observed[0].clone()]
        rewards, dones, time_outs, episode_sums = [], [], [], []
        for action in torch.from_numpy(golden["actions"]):
            obs, reward, done, time_out, sums = env.step(action)
            observed.append(obs["policy"])
            kept.append(obs["policy"].clone())
            rewards.append(reward)
            dones.append(done)
            time_outs.append(time_out)
            episode_sums.append(sums)

    np.testing.assert_allclose(torch.stack(kept), golden["obs"], atol=ATOL, rtol=0)
    np.testing.assert_allclose(torch.stack(rewards), golden["rewards"], atol=ATOL, rtol=0)
    np.testing.assert_array_equal(torch.stack(dones), golden["dones"].astype(bool))
    np.testing.assert_array_equal(torch.stack(time_outs), golden["time_outs"].astype(bool))
    assert golden["dones"].sum() > 10, "a trace without resets would prove little"
    assert all(torch.equal(was, is_now) for was, is_now in zip(kept, observed, strict=True)), "a step wrote to old obs"

    # The reward terms of ended episodes sum up to what those episodes were rewarded with.
    rewarded = golden["rewards"].astype(np.float64)
    ended_before = np.cumsum(golden["dones"][::-1], axis=0)[::-1] > 0  # steps of episodes that ended later on
    summed = torch.stack(episode_sums).sum() * cfg.env.episode_length_s
    assert summed.item() == pytest.approx(rewarded[ended_before].sum(), abs=ATOL)


@pytest.mark.parametrize("name", RECORDED_WITH)
def test_an_episode_longer_than_its_limit_ends_as_a_time_out(
    name: str, simulator: torch.device, experiment: Callable[..., ExperimentConfig]
) -> None:
    cfg = experiment(f"env={name}", "env.episode_length_s=0.1")
    limit = cfg.env.max_episode_length  # 5 steps for Go2, 10 for the drone
    with torch.inference_mode():
        env = make_env(cfg.env, 3, simulator, seed=1)
        still = torch.zeros(3, len(env.spec.actions))
        lengths, time_outs = [], []
        for _ in range(limit + 1):
            _, _, dones, time_out, _ = env.step(still)
            time_outs.append(time_out.tolist())
            lengths.append(env.episode_length_buf.tolist())
    assert time_outs == [[False] * 3] * limit + [[True] * 3]
    assert dones.all()
    assert lengths == [[n] * 3 for n in [*range(1, limit + 1), 0]]


def test_go2_draws_new_commands_at_the_resampling_time_and_at_no_other_step(
    simulator: torch.device, experiment: Callable[..., ExperimentConfig]
) -> None:
    cfg = experiment("env.resampling_time_s=0.06", "env.lin_vel_x_range=[-1,1]", "env.clip_actions=0.1")
    commands = slice(6, 9)
    with torch.inference_mode():
        env = make_env(cfg.env, 4, simulator, seed=1)
        seen = [env.get_observations()["policy"][:, commands]]
        for _ in range(7):
            obs, _, dones, *_ = env.step(torch.zeros(4, 12))
            assert not dones.any()
            seen.append(obs["policy"][:, commands])
    changed = [not torch.equal(before, after) for before, after in pairwise(seen)]
    assert changed == [False, False, True, False, False, True, False]  # every third step
