"""rsl_rl's own runner trains on our envs as benchmarks/stock.py adapts them, and its TensorBoard file is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import speed
from benchmarks.stock import StockEnv, stock_runner
from ppo_lab.config import ExperimentConfig
from ppo_lab.contracts import StepResult
from ppo_lab.envs import make_env


def test_rsl_rls_runner_stores_what_our_env_gave_and_logs_what_the_benchmark_reads(
    experiment: Callable[..., ExperimentConfig],
    simulator: torch.device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GIT_PYTHON_REFRESH", "quiet")
    cfg = experiment("env=go2", "num_envs=16", "num_steps_per_env=8")
    env = make_env(cfg.env, cfg.num_envs, simulator, cfg.seed)
    given: list[StepResult] = []
    began_with: list[torch.Tensor] = []
    step = env.step

    def noted(actions: torch.Tensor) -> StepResult:
        began_with.append(env.get_observations()["policy"].clone())
        result = step(actions)
        given.append(StepResult(*(value.clone() for value in result)))
        return result

    monkeypatch.setattr(env, "step", noted)
    runner = stock_runner(cfg, env, str(tmp_path))
    runner.alg.storage.clear = lambda: None
    runner.learn(1, init_at_random_ep_len=True)
    assert env.episode_length_buf.unique().numel() > 8, "episodes begin at random lengths in the env itself"
    storage = runner.alg.storage
    assert torch.equal(storage.observations["policy"], torch.stack(began_with))
    assert torch.equal(storage.dones[..., 0].bool(), torch.stack([result.dones for result in given]))
    values = storage.values[..., 0]
    time_outs = torch.stack([result.time_outs for result in given])
    rewards = torch.stack([result.rewards for result in given]) + cfg.algorithm.gamma * values * time_outs
    assert torch.equal(storage.rewards[..., 0], rewards)

    storage.step = 0
    runner.learn(1)
    runner.logger.writer.close()
    assert len(given) == 16
    found: list[Any] = speed.read_iterations(tmp_path, started_s=0.0)
    assert found[-1].ended_s > 1.6e9, "seconds since 1970"
    assert all(iteration.collect_s > 0 and iteration.update_s > 0 for iteration in found)


def test_the_adapter_names_what_rsl_rls_runner_asks_an_env_for(
    experiment: Callable[..., ExperimentConfig], simulator: torch.device
) -> None:
    cfg = experiment("env=hover", "num_envs=16")
    env = make_env(cfg.env, cfg.num_envs, simulator, cfg.seed)
    adapted = StockEnv(env)
    assert (adapted.num_envs, adapted.num_actions, adapted.max_episode_length) == (16, 4, 1500)
    adapted.episode_length_buf = torch.full_like(env.episode_length_buf, 7)
    assert env.episode_length_buf.tolist() == [7] * 16
