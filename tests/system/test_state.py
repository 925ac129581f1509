"""An env put back in a state goes on from there, bit for bit; what does not fit an env is named and refused."""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from genesis.utils import array_class
from genesis.utils.array_class import ArrayItem, DataKind

from ppo_lab import envs
from ppo_lab.config import EnvConfig, ExperimentConfig
from ppo_lab.envs import VecEnv, make_env
from ppo_lab.envs.genesis.base import CARRIED_OVER, BatchedEnv
from ppo_lab.states import check_fits

STEPS, EVERY, AHEAD, N = 150, 15, 8, 16
"""Steps of the uninterrupted run, between the states kept of it, and walked again from each; envs."""


def step(env: VecEnv, actions: torch.Tensor) -> list[torch.Tensor]:
    obs, rewards, dones, extras = env.step(actions)
    return [obs["policy"], rewards, dones, *extras.values()]


def poison(env: Any) -> None:
    """Writes NaN into every array of the simulator that a state leaves out and a step should compute anew."""
    if env._scene is None:  # an env without the simulator
        return
    for item in env._scene._sim.data(frozenset({DataKind.DERIVED, DataKind.SCRATCH})):
        if isinstance(item, ArrayItem) and not (item.kind == DataKind.DERIVED and CARRIED_OVER.search(item.name)):
            view = array_class.data_to_array(item.array, to_torch=True, copy=False)
            if view.is_floating_point():
                view.fill_(float("nan"))


@pytest.mark.parametrize("name", envs.names())
@torch.inference_mode()
def test_steps_after_restoring_any_state_are_identical(
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


@dataclass
class RewardScales:
    near: float = 1.0
    effort: float = -0.5


@dataclass
class TinyConfig(EnvConfig):
    num_obs: ClassVar[int] = 3
    num_actions: ClassVar[int] = 2


class TinyEnv(BatchedEnv):
    """Without a simulator. Observation (3): position (2) and a clock; the terms of its rewards are given."""

    def __init__(self, cfg: EnvConfig, num_envs: int, device: torch.device) -> None:
        super().__init__(cfg, num_envs, device, RewardScales())
        self._pos = torch.zeros(num_envs, 2)
        self._clock = torch.zeros(num_envs, 1)
        self.terms = {"near": torch.ones(num_envs), "effort": torch.full((num_envs,), 2.0)}
        self._observe(self._pos, self._clock)

    def step(self, actions: torch.Tensor) -> Any:
        return self._pay(self.terms)


CPU = torch.device("cpu")
TINY = TinyConfig(name="tiny", dt=0.1, substeps=1, episode_length_s=1.0, clip_actions=1.0, performance_mode=False)


def tiny() -> TinyEnv:
    return TinyEnv(TINY, 4, CPU)


def made(monkeypatch: pytest.MonkeyPatch, env: Any) -> VecEnv:
    monkeypatch.setitem(sys.modules, "ppo_lab.envs.tasks.tiny", SimpleNamespace(make=lambda *_: env))
    return make_env(TINY, 4, CPU)


def test_rewards_are_the_terms_times_their_weights_for_one_step() -> None:
    assert tiny().step(torch.zeros(4, 2)).tolist() == pytest.approx([0.1 * (1.0 * 1.0 - 0.5 * 2.0)] * 4)


WRONG_TERMS: dict[str, dict[str, torch.Tensor | None]] = {
    "no weight in reward_scales: upright, smooth": {"upright": torch.ones(4), "smooth": torch.ones(4)},
    "a weight, but not computed by step: effort": {"effort": None},
    "no weight in reward_scales: upright; a weight, but not computed by step: near, effort": {
        **{"near": None, "effort": None, "upright": torch.ones(4)}
    },
    "not of shape (4,): effort (4, 1)": {"effort": torch.ones(4, 1)},
    "not of shape (4,): near ()": {"near": torch.tensor(1.0)},
}


@pytest.mark.parametrize("what", WRONG_TERMS)
def test_reward_terms_that_do_not_match_their_weights_are_named_in_the_first_step(what: str) -> None:
    env = tiny()
    terms = {**env.terms, **WRONG_TERMS[what]}
    env.terms = {name: term for name, term in terms.items() if term is not None}
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        env.step(torch.zeros(4, 2))
    assert str(refused.value) == (
        f"the reward terms of env tiny do not match its reward_scales: {what}. "
        "Give _pay one term (N,) for each field of the dataclass reward_scales."
    )
    assert not env._reward_sums.any()


def test_an_env_is_built_as_its_config_says(monkeypatch: pytest.MonkeyPatch) -> None:
    env = tiny()
    assert made(monkeypatch, env) is env
    env._observe(env._pos, env._clock, env._clock)
    with pytest.raises(ValueError, match=r"^env tiny has num_obs=4, and its Config says 3\. Set num_obs: ClassVar"):
        made(monkeypatch, env)
    env = tiny()
    env.num_actions = 5
    with pytest.raises(ValueError, match=r"^env tiny has num_actions=5, and its Config says 2\."):
        made(monkeypatch, env)


def lacking(buffers: dict[str, Any]) -> None:
    del buffers["_clock"]


def foreign(buffers: dict[str, Any]) -> None:
    buffers["_wind"] = torch.zeros(4, 2)


def of_another_size(buffers: dict[str, Any]) -> None:
    buffers["_clock"] = torch.zeros(1)  # would broadcast


def of_another_dtype(buffers: dict[str, Any]) -> None:
    buffers["episode_length_buf"] = buffers["episode_length_buf"].long()


MISFITS: dict[Callable[[dict[str, Any]], None], str] = {
    lacking: "the saved state has no _clock, which TinyEnv has",
    foreign: "TinyEnv has no _wind, which the saved state has",
    of_another_size: "_clock of TinyEnv is (4, 1) float32, and (1,) float32 in the saved state",
    of_another_dtype: "episode_length_buf of TinyEnv is (4,) int32, and (4,) int64 in the saved state",
}


@pytest.mark.parametrize("spoil", MISFITS)
def test_a_state_that_does_not_fit_an_env_is_refused_before_anything_is_changed(
    spoil: Callable[[dict[str, Any]], None],
) -> None:
    env, other = tiny(), tiny()
    other._pos = torch.full((4, 2), 7.0)
    state = other.state()
    spoil(state["buffers"])
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        env.restore(state)
    assert str(refused.value) == MISFITS[spoil]
    assert not env._pos.any()
    env.restore(other.state())
    assert env._pos.tolist() == [[7.0, 7.0]] * 4


def test_the_simulators_arrays_have_to_fit_as_well() -> None:
    state = tiny().state()
    state["simulator"] = {"rigid_solver.dofs.pos": torch.zeros(6, 4)}
    with pytest.raises(ValueError, match=r"^the simulator has no rigid_solver\.dofs\.pos, which the saved state has$"):
        tiny().restore(state)


def test_a_state_with_many_differences_names_a_few() -> None:
    with pytest.raises(ValueError, match=r"^the saved state has no a, which X has; (.*; ){3}and 2 more$"):
        check_fits("X", {}, dict.fromkeys("abcdef"))
