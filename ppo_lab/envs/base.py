"""What every env on Genesis shares: starting the simulator, episode books, random draws, the body's frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import genesis as gs
import torch
from genesis.utils.geom import inv_quat, quat_to_xyz, transform_by_quat, transform_quat_by_quat
from tensordict import TensorDict
from torch import Tensor

from ppo_lab.config import EnvConfig


def start_simulator(device: torch.device, seed: int, performance_mode: bool) -> None:
    """Starts Genesis on `device`, once in a process. Seeds torch, numpy and python along with the simulator."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    gs.init(
        backend=gs.cuda if device.type == "cuda" else gs.cpu,
        seed=seed,
        performance_mode=performance_mode,
        logging_level="error",
    )


class BatchedEnv:
    """The buffers and books of N envs. A subclass builds its scene, then defines `step`.

    A `step` is written out in the order that its MDP prescribes. What it calls here: `_pay` for the rewards,
    `_end_episodes` for the books and counters of the envs that are reset, `_observe`, and `_extras`.
    """

    def __init__(self, cfg: EnvConfig, num_envs: int, device: torch.device, reward_scales: Any) -> None:
        """`reward_scales`: a dataclass of weights per second, one field per reward term."""
        self.cfg = cfg
        self.num_envs = num_envs
        self.num_actions = cfg.num_actions
        self.max_episode_length = cfg.max_episode_length
        self.device = device
        weights = dataclasses.asdict(reward_scales)
        self.reward_names = tuple(weights)
        self.episode_length_buf = torch.zeros(num_envs, dtype=torch.int32, device=device)
        self._weights = self._tensor(list(weights.values())).unsqueeze(1) * cfg.dt  # (K, 1)
        self._reward_sums = torch.zeros(len(weights), num_envs, device=device)  # (K, N), of the episode so far

    def get_observations(self) -> TensorDict:
        return TensorDict({"policy": self._obs}, batch_size=[self.num_envs], device=self.device)

    def _observe(self, *parts: Tensor) -> None:
        """Sets the observations to a fresh tensor, the parts (N, D_i) side by side."""
        self._obs = torch.cat(parts, dim=-1)

    def _pay(self, terms: dict[str, Tensor]) -> Tensor:
        """The step's rewards (N,), from every term (N,); enters them in the episode's books."""
        weighted = torch.stack([terms[name] for name in self.reward_names]) * self._weights
        self._reward_sums += weighted
        return weighted.sum(dim=0)

    def _end_episodes(self, ended: Tensor) -> Tensor:
        """Closes the books of the envs in `ended` (N,) bool and returns their sums, (K,) per second."""
        sums = torch.where(ended, self._reward_sums, 0.0).sum(dim=1) / self.cfg.episode_length_s
        self._reward_sums.masked_fill_(ended, 0.0)
        self.episode_length_buf.masked_fill_(ended, 0)
        return sums

    def _extras(self, time_outs: Tensor, episode_sums: Tensor) -> dict[str, Tensor]:
        return {"time_outs": time_outs.float(), "episode_sums": episode_sums}

    def _draw(self, low: Tensor, high: Tensor) -> Tensor:
        """A uniform draw for every env, (N, D), between low (D,) and high (D,). Costs no host sync."""
        return (high - low) * torch.rand(self.num_envs, len(low), device=self.device) + low

    def _tensor(self, values: Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)


def in_frame(quat: Tensor, vector: Tensor) -> Tensor:
    """World vectors (N, 3) or (3,) as seen from frames with orientations `quat` (N, 4), w x y z."""
    return transform_by_quat(vector, inv_quat(quat))


def euler_deg(quat: Tensor, init_quat: Tensor) -> Tensor:
    """Roll, pitch and yaw (N, 3) in degree of `quat` (N, 4) relative to `init_quat` (4,)."""
    return quat_to_xyz(transform_quat_by_quat(inv_quat(init_quat), quat), rpy=True, degrees=True)
