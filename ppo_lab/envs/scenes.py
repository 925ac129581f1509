"""The envs that one rank steps: one, or several of the same kind that look like one to the learner.

Fewer envs in a scene have smaller arrays, which may fit into a smaller cache; each scene launches every kernel anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from ppo_lab.config import ExperimentConfig
from ppo_lab.contracts import Env, State, StepResult
from ppo_lab.envs import make_env
from ppo_lab.states import check_fits


def make_scenes(cfg: ExperimentConfig, device: torch.device, seed: int) -> Env:
    """Builds what one rank steps: the env itself where it has one scene, or else the scenes behind one `Env`.

    Args:
        cfg: of the whole run, or of one rank; `cfg.scene_sizes` is the same.
        device: where the envs are.
        seed: of this rank. The first scene draws as the only one of a run would.
    """
    sizes = cfg.scene_sizes
    envs = [
        make_env(cfg.env, size, device, scene_seed)
        for size, scene_seed in zip(sizes, scene_seeds(seed, len(sizes)), strict=True)
    ]
    return envs[0] if len(envs) == 1 else Scenes(envs)


def scene_seeds(seed: int, count: int) -> list[int]:
    """A seed for each scene of a rank that has `seed`: streams that differ from each other, and from other ranks'."""
    spawned = [np.random.SeedSequence(seed, spawn_key=(index,)) for index in range(1, count)]
    return [seed, *(int(sequence.generate_state(1, np.uint32)[0]) for sequence in spawned)]


def added_up(counts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What `Env.check` gave of several scenes or ranks, by name."""
    total: dict[str, float] = {}
    for of_one in counts:
        for name, count in of_one.items():
            total[name] = total.get(name, 0) + count
    return total


class Scenes:
    """Several envs of one kind, each with its own scene and generator, stepped in turn.

    `ppo_lab.contracts.Env` is the contract. Env 0 of the second scene follows the last env of the first, and so on.
    """

    def __init__(self, envs: Sequence[Env]) -> None:
        """`envs`: of the same settings, on the same device; of any sizes."""
        self.envs = list(envs)
        self.spec = envs[0].spec
        self.device = envs[0].device
        self.num_envs = sum(env.num_envs for env in envs)
        ends = np.cumsum([0, *(env.num_envs for env in envs)]).tolist()
        self._parts = [slice(start, end) for start, end in pairwise(ends)]

    @property
    def episode_length_buf(self) -> Tensor:
        """(N,) int32. A copy: to change it, set it."""
        return torch.cat([env.episode_length_buf for env in self.envs])

    @episode_length_buf.setter
    def episode_length_buf(self, lengths: Tensor) -> None:
        for env, part in zip(self.envs, self._parts, strict=True):
            env.episode_length_buf = lengths[part].clone()

    def get_observations(self) -> TensorDict:
        return self._joined([env.get_observations() for env in self.envs])

    def step(self, actions: Tensor) -> StepResult:
        results = [env.step(actions[part]) for env, part in zip(self.envs, self._parts, strict=True)]
        return StepResult(
            self._joined([result.observations for result in results]),
            torch.cat([result.rewards for result in results]),
            torch.cat([result.dones for result in results]),
            torch.cat([result.time_outs for result in results]),
            torch.stack([result.episode_sums for result in results]).sum(dim=0),
        )

    def check(self) -> dict[str, float]:
        return added_up([env.check() for env in self.envs])

    def state(self) -> State:
        return {"scenes": [env.state() for env in self.envs]}

    def restore(self, state: State) -> None:
        saved = len(state["scenes"]) if "scenes" in state else 1
        if saved != len(self.envs):
            raise ValueError(
                f"the saved state is of {saved} scenes, and this env has {len(self.envs)}: "
                "go on with the num_envs, processes and envs_per_scene that it was saved with"
            )
        check_fits("an env of several scenes", state, self.state())  # of all, before any is changed
        for env, own in zip(self.envs, state["scenes"], strict=True):
            env.restore(own)

    def _joined(self, observations: Sequence[TensorDict]) -> TensorDict:
        joined = {group: torch.cat([part[group] for part in observations]) for group in self.spec.observations}
        return TensorDict(joined, batch_size=[self.num_envs], device=self.device)
