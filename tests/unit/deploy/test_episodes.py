"""One episode of each env: what is added up, and the statistics over the envs."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from ppo_lab.config import EnvConfig
from ppo_lab.contracts import EnvSpec, Measurement, StepDetails, StepResult
from ppo_lab.deploy.episodes import play, rate, statistics
from ppo_lab.envs.batched import BatchedEnv

CPU = torch.device("cpu")
N, LONGEST = 4, 5


@dataclass
class RewardScales:
    alive: float = 1.0
    action: float = -10.0


@dataclass
class CountdownConfig(EnvConfig):
    reward_scales: RewardScales = field(default_factory=RewardScales)

    def spec(self) -> EnvSpec:
        return EnvSpec({"policy": {"step": 1}}, ("x",), ("alive", "action"), self.dt, self.max_episode_length)


class CountdownEnv(BatchedEnv):
    """Env 0 falls in its 1st step, env 1 in its 2nd and so on; the time is out in the 3rd."""

    def __init__(self, num_envs: int = N, can_tell: bool = True) -> None:
        cfg = CountdownConfig("countdown", 0.1, 1, 0.2, 1.0, False)
        super().__init__(cfg, num_envs, CPU, seed=1)
        self._can_tell = can_tell
        self._falls_in = torch.arange(1, num_envs + 1)
        self._observe(policy={"step": self.episode_length_buf.float().unsqueeze(1)})

    def step(self, actions: Tensor) -> StepResult:
        self.episode_length_buf += 1
        step = self.episode_length_buf.float()
        rewards = self._weighted_rewards({"alive": torch.ones(self.num_envs), "action": actions[:, 0]})
        fell, time_out = self.episode_length_buf == self._falls_in, self.episode_length_buf > 2
        if self._can_tell:
            self._show({"time_out": time_out, "fell": fell}, lambda: self._measure(step))
        dones = fell | time_out
        sums = self._end_episodes(dones)
        self._observe(policy={"step": self.episode_length_buf.float().unsqueeze(1)})
        return self._result(rewards, dones, time_out, sums)

    def _measure(self, step: Tensor) -> dict[str, Measurement]:
        return {
            "mean_step": Measurement(step, "mean"),
            "summed_step": Measurement(step, "sum"),
            "largest_step": Measurement(-step, "max"),
            "second_step_s": Measurement(step == 2, "first_s"),
        }


def act(observations: dict[str, Tensor]) -> Tensor:
    return observations["policy"] + 1  # the number of the step, from 1


def test_each_env_plays_its_first_episode_and_no_more() -> None:
    episodes = play(CountdownEnv(), act)
    assert episodes.lengths.tolist() == [1, 2, 3, 3]
    assert episodes.endings["fell"].tolist() == [True, True, True, False]
    assert episodes.endings["time_out"].tolist() == [False, False, True, True]


def test_the_return_is_the_sum_of_the_weighted_terms_of_each_step() -> None:
    episodes = play(CountdownEnv(), act)
    assert episodes.rewards["alive"].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.3])
    assert episodes.rewards["action"].tolist() == pytest.approx([-1.0, -3.0, -6.0, -6.0])
    assert episodes.returns.tolist() == pytest.approx([-0.9, -2.8, -5.7, -5.7])


def test_an_episode_sums_up_what_is_measured_as_the_env_says() -> None:
    measured = play(CountdownEnv(), act).measured
    assert measured["mean_step"].tolist() == pytest.approx([1.0, 1.5, 2.0, 2.0])
    assert measured["summed_step"].tolist() == [1.0, 3.0, 6.0, 6.0]
    assert measured["largest_step"].tolist() == [-1.0, -1.0, -1.0, -1.0]
    assert math.isnan(measured["second_step_s"][0])
    assert measured["second_step_s"][1:].tolist() == pytest.approx([0.2, 0.2, 0.2])


def test_an_env_that_names_no_terminations_tells_time_outs_from_others() -> None:
    episodes = play(CountdownEnv(can_tell=False), act)
    assert episodes.endings["terminated"].tolist() == [True, True, False, False]
    assert episodes.endings["time_out"].tolist() == [False, False, True, True]
    assert episodes.measured == {}


def test_watch_none_ends_the_calls() -> None:
    env, seen = CountdownEnv(), list[StepDetails]()
    env.watch(seen.append)
    env.step(torch.zeros(N, 1))
    assert env.state()["own"].keys() == CountdownEnv().state()["own"].keys()
    env.watch(None)
    env.step(torch.zeros(N, 1))
    assert len(seen) == 1


def test_statistics_are_of_the_numbers_alone() -> None:
    found = statistics(torch.tensor([1.0, 2.0, 3.0, 4.0, math.nan]))
    assert (found["n"], found["mean"], found["min"], found["max"]) == (4, 2.5, 1.0, 4.0)
    assert found["std"] == pytest.approx(1.2909944)
    assert found["ci95"] == pytest.approx([2.5 - 2.0542603, 2.5 + 2.0542603], rel=1e-6)  # 3.182446 * std / 2


def test_one_number_has_no_interval_and_none_has_no_mean() -> None:
    assert statistics(torch.tensor([3.0]))["ci95"] is None
    assert statistics(torch.tensor([math.nan])) == {
        "n": 0, "mean": None, "std": None, "ci95": None, "min": None, "max": None,
    }  # fmt: skip


def test_a_rate_has_wilsons_interval() -> None:
    found = rate(torch.tensor([True] * 9 + [False]))
    assert (found["n"], found["count"], found["rate"]) == (10, 9, 0.9)
    assert found["ci95"] == pytest.approx([0.59585, 0.98212], abs=1e-5)  # Wilson, z = 1.959964
