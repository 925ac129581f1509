"""An env put back in a state goes on from there, bit for bit."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from genesis.utils import array_class
from genesis.utils.array_class import ArrayItem, DataKind

from ppo_lab import envs
from ppo_lab.config import ExperimentConfig
from ppo_lab.envs import VecEnv, make_env
from ppo_lab.envs.base import CARRIED_OVER

STEPS, EVERY, AHEAD, N = 150, 15, 8, 16
"""Steps of the uninterrupted run, between the states kept of it, and walked again from each; envs."""


def step(env: VecEnv, actions: torch.Tensor) -> list[torch.Tensor]:
    obs, rewards, dones, extras = env.step(actions)
    return [obs["policy"], rewards, dones, *extras.values()]


def poison(env: Any) -> None:
    """Writes NaN into every array that a state leaves out and a step should compute anew."""
    for item in env._scene._sim.data(frozenset({DataKind.DERIVED, DataKind.SCRATCH})):
        if isinstance(item, ArrayItem) and not (item.kind == DataKind.DERIVED and CARRIED_OVER.search(item.name)):
            view = array_class.data_to_array(item.array, to_torch=True, copy=False)
            if view.is_floating_point():
                view.fill_(float("nan"))


@pytest.mark.parametrize("name", envs.names())
@torch.inference_mode()
def test_from_any_state_the_coming_steps_are_the_same_bit_for_bit(
    name: str, simulator: torch.device, experiment: Callable[..., ExperimentConfig]
) -> None:
    cfg = experiment(f"env={name}", "env.episode_length_s=1.0")
    env = make_env(cfg.env, N, simulator)
    actions = torch.randn(STEPS, N, env.num_actions, generator=torch.Generator().manual_seed(0))
    states, walked = {}, []
    for now in range(STEPS):
        if now % EVERY == EVERY - 1:
            states[now] = io.BytesIO()
            torch.save((env.state(), torch.get_rng_state()), states[now])
        walked.append(step(env, actions[now]))
    assert sum(int(dones.sum()) for _, _, dones, *_ in walked) > N, "without resets it would prove little"

    for start in [104, 14, 134, 59]:  # back and forth
        poison(env)
        state, random_state = torch.load(io.BytesIO(states[start].getvalue()), weights_only=True)
        env.restore(state)
        torch.set_rng_state(random_state)
        for now in range(start, start + AHEAD):
            for there, here in zip(walked[now], step(env, actions[now]), strict=True):
                assert torch.equal(there, here), f"{now - start} steps after step {start}"
