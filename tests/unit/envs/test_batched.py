"""What envs have in common: observations and rewards that match the spec, and a state that is whole or refused."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from ppo_lab.config import EnvConfig
from ppo_lab.contracts import EnvSpec
from ppo_lab.envs.batched import BatchedEnv
from ppo_lab.envs.conformance import violations

CPU = torch.device("cpu")
N = 4


@dataclass
class RewardScales:
    near: float = 1.0
    effort: float = -0.5


@dataclass
class TinyConfig(EnvConfig):
    reward_scales: RewardScales = field(default_factory=RewardScales)
    groups: dict[str, dict[str, int]] = field(default_factory=lambda: {"policy": {"pos": 2, "clock": 1}})

    def spec(self) -> EnvSpec:
        return EnvSpec(self.groups, ("x", "y"), ("near", "effort"), self.dt, self.max_episode_length)


class Wind:
    """A component with a state of its own."""

    def __init__(self) -> None:
        self.force = torch.zeros(N)
        self.gusts = 0

    def state(self) -> dict[str, Any]:
        return {"force": self.force.clone(), "gusts": self.gusts}

    def restore(self, state: dict[str, Any]) -> None:
        self.force, self.gusts = state["force"].clone(), state["gusts"]


class TinyEnv(BatchedEnv):
    """A point that is pushed. Observation: position (2) and a clock (1)."""

    cfg: TinyConfig

    def __init__(self, cfg: TinyConfig, num_envs: int, device: torch.device, seed: int) -> None:
        super().__init__(cfg, num_envs, device, seed)
        self._pos = self._draw(self._tensor([-1.0, -1.0]), self._tensor([1.0, 1.0]))
        self._clock = torch.zeros(num_envs, 1)
        self._level = 0
        self._wind = Wind()
        self._look()

    def step(self, actions: torch.Tensor) -> Any:
        self._pos = self._pos + 0.1 * actions + self._wind.force.unsqueeze(1)
        self._clock = self._clock + 0.1 * (1 + self._level)
        self._wind.force = self._draw(self._tensor([0.0]), self._tensor([0.01])).squeeze(1)
        self._wind.gusts += 1
        self._level = self._wind.gusts // 7
        self.episode_length_buf += 1
        rewards = self._weighted_rewards(self.terms(actions))
        time_outs = self.episode_length_buf > self.spec.max_episode_length
        dones = time_outs | (self._pos.norm(dim=1) > 2.0)
        sums = self._end_episodes(dones)
        fresh = self._draw(self._tensor([-1.0, -1.0]), self._tensor([1.0, 1.0]))
        self._pos = torch.where(dones.unsqueeze(1), fresh, self._pos)
        self._look()
        return self._result(rewards, dones, time_outs, sums)

    def terms(self, actions: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"near": torch.exp(-self._pos.norm(dim=1)), "effort": actions.square().sum(dim=1)}

    def _look(self) -> None:
        self._observe(policy={"pos": self._pos, "clock": self._clock})


def config(**changes: Any) -> TinyConfig:
    fixed = {"name": "tiny", "dt": 0.1, "substeps": 1, "episode_length_s": 1.0}
    return TinyConfig(**{**fixed, "clip_actions": 1.0, "performance_mode": False, **changes})


def tiny(cls: type[TinyEnv] = TinyEnv, seed: int = 1, **changes: Any) -> TinyEnv:
    return cls(config(**changes), N, CPU, seed)


def test_an_env_that_keeps_the_contract_has_no_violations() -> None:
    assert violations(TinyEnv, config(), N) == []


class Forgetful(TinyEnv):
    """Keeps its wind where no state is looked for."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._winds = (self._wind,)
        del self._wind

    def __getattr__(self, name: str) -> Any:
        if name == "_wind":
            return self._winds[0]
        raise AttributeError(name)


class Overwriting(TinyEnv):
    def _look(self) -> None:
        super()._look()
        before = self.__dict__.setdefault("_buffer", torch.zeros(N, 3))
        before.copy_(self._observations["policy"])
        self._observations = {"policy": before}


class GlobalDraws(TinyEnv):
    def step(self, actions: torch.Tensor) -> Any:
        torch.rand(1)
        return super().step(actions)


class UnlistedTerm(TinyEnv):
    """Adds to the rewards what no term says."""

    def _weighted_rewards(self, terms: Any) -> torch.Tensor:
        return super()._weighted_rewards(terms) + 1.0


class LateBuffer(TinyEnv):
    def step(self, actions: torch.Tensor) -> Any:
        self._late = torch.zeros(N)
        return super().step(actions)


class NoTimeOut(TinyEnv):
    def step(self, actions: torch.Tensor) -> Any:
        return super().step(actions)._replace(time_outs=torch.zeros(N, dtype=torch.bool))


class ResetsByCount(TinyEnv):
    """Draws for as many envs as end, so that the reset of one changes the draws of all."""

    def _end_episodes(self, ended: torch.Tensor) -> torch.Tensor:
        torch.rand(int(ended.sum()), generator=self._generator)
        return super()._end_episodes(ended)

    def _look(self) -> None:
        self._clock = self._draw(self._tensor([0.0]), self._tensor([1.0]))
        super()._look()


WRONG = {
    Forgetful: "from a restored state, observations differ from step 0 on: something that steps depend on is no tensor",
    Overwriting: "a later step wrote into the observations of an earlier one: return a fresh tensor each time",
    GlobalDraws: "it draws from torch's, numpy's or python's generator",
    UnlistedTerm: "a term has no weight, or is in no sum",
    LateBuffer: "its state has other names after some steps than at first: own._late. Make each in __init__",
    NoTimeOut: "an env of length spec.max_episode_length=10 does not time out in the next step",
    ResetsByCount: "the reset of one env changes what others observe or are rewarded with: reset by a mask",
}


@pytest.mark.parametrize("cls", WRONG)
def test_each_violation_of_the_contract_is_named(cls: type[TinyEnv]) -> None:
    found = violations(cls, config(), N)
    assert any(WRONG[cls] in sentence for sentence in found), found


def test_rewards_are_the_terms_times_their_weights_for_one_step() -> None:
    env = tiny()
    terms = {"near": torch.ones(N), "effort": torch.full((N,), 2.0)}
    assert env._weighted_rewards(terms).tolist() == pytest.approx([0.1 * (1.0 * 1.0 - 0.5 * 2.0)] * N)


WRONG_TERMS: dict[str, dict[str, torch.Tensor | None]] = {
    "no weight in reward_scales: upright, smooth": {"upright": torch.ones(N), "smooth": torch.ones(N)},
    "a weight, but not computed by step: effort": {"effort": None},
    "no weight in reward_scales: upright; a weight, but not computed by step: near, effort": {
        **{"near": None, "effort": None, "upright": torch.ones(N)}
    },
    "not of shape (4,): effort (4, 1)": {"effort": torch.ones(N, 1)},
    "not of shape (4,): near ()": {"near": torch.tensor(1.0)},
}


@pytest.mark.parametrize("what", WRONG_TERMS)
def test_reward_terms_that_do_not_match_their_weights_are_named_in_the_first_step(what: str) -> None:
    env = tiny()
    terms = {"near": torch.ones(N), "effort": torch.ones(N), **WRONG_TERMS[what]}
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        env._weighted_rewards({name: term for name, term in terms.items() if term is not None})
    assert str(refused.value) == (
        f"the reward terms of env tiny do not match its reward_scales: {what}. "
        "Give _weighted_rewards one term (N,) for each field of the dataclass reward_scales."
    )
    assert not env._reward_sums.any()


def test_weights_and_the_spec_have_the_same_names() -> None:
    @dataclass
    class Other:
        near: float = 1.0

    with pytest.raises(ValueError, match=r"reward_scales has near; spec\(\)\.rewards has near, effort\. Give both"):
        tiny(reward_scales=Other())


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ({"policy": {"pos": 2}}, "env tiny observes policy: pos 2, clock 1; spec().observations says policy: pos 2."),
        ({"policy": {"pos": 2, "clock": 2}}, "says policy: pos 2, clock 2. Make them equal."),
        ({"policy": {"clock": 1, "pos": 2}}, "observes pos, clock in group policy; spec().observations has another"),
        ({"policy": {"pos": 2, "clock": 1}, "critic": {"height": 1}}, "clock 1; critic: height 1. Make them equal."),
    ],
)
def test_observations_that_do_not_match_the_spec_are_refused_when_the_env_is_built(groups: Any, says: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        tiny(groups=groups)
    assert says in str(refused.value)


def test_each_group_is_its_terms_side_by_side() -> None:
    class TwoGroups(TinyEnv):
        def _look(self) -> None:
            self._observe(policy={"pos": self._pos}, critic={"clock": self._clock + 5.0, "pos": self._pos})

    env = tiny(TwoGroups, groups={"policy": {"pos": 2}, "critic": {"clock": 1, "pos": 2}})
    seen = env.get_observations()
    assert torch.equal(seen["policy"], env._pos)
    assert torch.equal(seen["critic"], torch.cat([torch.full((N, 1), 5.0), env._pos], dim=1))
    assert env.spec.critic_group == "critic"
    assert (env.spec.width(), env.spec.width("critic")) == (2, 3)


def test_an_env_draws_from_its_own_generator_which_its_seed_begins() -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    one, same, other = tiny(seed=1), tiny(seed=1), tiny(seed=2)
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(one._pos, same._pos)
    assert not torch.equal(one._pos, other._pos)


def lacking(own: dict[str, Any]) -> None:
    del own["_clock"]


def foreign(own: dict[str, Any]) -> None:
    own["_rain"] = torch.zeros(N, 2)


def of_another_size(own: dict[str, Any]) -> None:
    own["_clock"] = torch.zeros(1)  # would broadcast


def of_another_dtype(own: dict[str, Any]) -> None:
    own["episode_length_buf"] = own["episode_length_buf"].long()


def a_component_that_lacks_a_number(own: dict[str, Any]) -> None:
    del own["_wind"]["gusts"]


MISFITS: dict[Callable[[dict[str, Any]], None], str] = {
    lacking: "the saved state has no _clock, which TinyEnv has",
    foreign: "TinyEnv has no _rain, which the saved state has",
    of_another_size: "_clock of TinyEnv is (4, 1) float32, and (1,) float32 in the saved state",
    of_another_dtype: "episode_length_buf of TinyEnv is (4,) int32, and (4,) int64 in the saved state",
    a_component_that_lacks_a_number: "the saved state has no _wind.gusts, which TinyEnv has",
}


@pytest.mark.parametrize("spoil", MISFITS)
def test_a_state_that_does_not_fit_an_env_is_refused_before_anything_is_changed(
    spoil: Callable[[dict[str, Any]], None],
) -> None:
    env, other = tiny(seed=1), tiny(seed=2)
    before = env._pos.clone()
    state = other.state()
    spoil(state["own"])
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        env.restore(state)
    assert str(refused.value) == MISFITS[spoil]
    assert torch.equal(env._pos, before)
    env.restore(other.state())
    assert torch.equal(env._pos, other._pos)


def test_a_state_is_a_copy() -> None:
    env = tiny()
    state = env.state()
    env._reward_sums += 1.0
    assert not state["own"]["_reward_sums"].any()


def test_the_state_of_an_older_version_is_taken_and_the_draws_begin_anew(caplog: pytest.LogCaptureFixture) -> None:
    env = tiny()
    own = {name: value for name, value in env.state()["own"].items() if isinstance(value, torch.Tensor)}
    older = {"buffers": {**own, "_clock": torch.ones(N, 1), "_obs": torch.full((N, 3), 8.0)}, "simulator": {}}
    env.restore(older)
    assert env._clock.tolist() == [[1.0]] * N
    assert env.get_observations()["policy"].tolist() == [[8.0] * 3] * N
    assert "the env's draws begin anew" in caplog.messages[0]
    again = tiny()
    again.restore(older)
    assert torch.equal(env._draw(env._pos[0], env._pos[1]), again._draw(again._pos[0], again._pos[1]))
    del older["buffers"]["_pos"]
    with pytest.raises(ValueError, match=r"^the saved state has no _pos, which TinyEnv has$"):
        env.restore(older)
