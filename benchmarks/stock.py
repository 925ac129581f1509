"""rsl_rl's own runner on an env of ours, as its users have it: python benchmarks/stock.py FOLDER < experiment.json

Its logger writes to TensorBoard in FOLDER, torch has its default threads, numbers are float32. The experiment is JSON
as `ppo_lab.config.to_json` writes it, so that nobody waits for Hydra.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout, whatever is installed

if TYPE_CHECKING:
    import torch
    from tensordict import TensorDict

    from ppo_lab.config import ExperimentConfig
    from ppo_lab.contracts import Env


class StockEnv:
    """An env of ours as rsl_rl's runner takes it. `rsl_rl.env.VecEnv` is the contract.

    Sums of reward terms are left out of `extras`: most users log them, which costs the runner time.
    """

    def __init__(self, env: Env) -> None:
        self._env = env
        self.num_envs = env.num_envs
        self.num_actions = len(env.spec.actions)
        self.max_episode_length = env.spec.max_episode_length
        self.device = env.device
        self.cfg: dict[str, Any] = {}

    @property
    def episode_length_buf(self) -> torch.Tensor:
        return self._env.episode_length_buf

    @episode_length_buf.setter
    def episode_length_buf(self, lengths: torch.Tensor) -> None:
        self._env.episode_length_buf = lengths

    def get_observations(self) -> TensorDict:
        return self._env.get_observations()

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        result = self._env.step(actions)
        return result.observations, result.rewards, result.dones, {"time_outs": result.time_outs}


def stock_runner(cfg: ExperimentConfig, env: Env, folder: str) -> Any:
    """rsl_rl's OnPolicyRunner with the settings of `cfg` on `env`, which writes to `folder`."""
    from rsl_rl.runners import OnPolicyRunner

    from ppo_lab.learning.ppo import rsl_rl_config

    settings = rsl_rl_config(cfg) | {"save_interval": cfg.save_interval}
    return OnPolicyRunner(StockEnv(env), settings, folder, str(env.device))


def train(cfg: ExperimentConfig, folder: str) -> None:
    from ppo_lab.envs import make_env
    from ppo_lab.learning.random_state import seed_everything
    from ppo_lab.machine.devices import resolve_device

    seed_everything(cfg.seed)
    env = make_env(cfg.env, cfg.num_envs, resolve_device(cfg.device), cfg.seed)
    runner = stock_runner(cfg, env, folder)
    runner.learn(cfg.max_iterations, init_at_random_ep_len=True)
    runner.logger.writer.close()  # rsl_rl does not, and the last rows would be lost


if __name__ == "__main__":
    from ppo_lab.runs.config import from_json

    if len(sys.argv) != 2:
        sys.exit(__doc__)
    train(from_json(sys.stdin.read()), sys.argv[1])
