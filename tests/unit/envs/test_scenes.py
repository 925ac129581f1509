"""Several scenes of one rank look like one env to the learner."""

import io
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from ppo_lab.config import EnvConfig, ExperimentConfig
from ppo_lab.contracts import EnvSpec, StepResult
from ppo_lab.envs import scenes
from ppo_lab.envs.batched import BatchedEnv
from ppo_lab.envs.conformance import violations
from ppo_lab.envs.scenes import Scenes, added_up, make_scenes, scene_seeds
from ppo_lab.errors import SimulatorError

CPU = torch.device("cpu")


@dataclass
class RewardScales:
    near: float = 1.0


@dataclass
class PointConfig(EnvConfig):
    reward_scales: RewardScales = field(default_factory=RewardScales)

    def spec(self) -> EnvSpec:
        groups = {"policy": {"pos": 2}, "critic": {"pos": 2, "clock": 1}}
        return EnvSpec(groups, ("x", "y"), ("near",), self.dt, self.max_episode_length)


class PointEnv(BatchedEnv):
    """A point that is pushed, and blown about by a draw in every step."""

    def __init__(self, cfg: PointConfig, num_envs: int, device: torch.device, seed: int) -> None:
        super().__init__(cfg, num_envs, device, seed)
        self.counts: dict[str, float] = {}
        self._pos = self._drawn()
        self._look()

    def step(self, actions: torch.Tensor) -> StepResult:
        self._pos = self._pos + 0.1 * actions + 0.01 * self._drawn()
        self.episode_length_buf += 1
        rewards = self._weighted_rewards({"near": torch.exp(-self._pos.norm(dim=1))})
        time_outs = self.episode_length_buf > self.spec.max_episode_length
        dones = time_outs | (self._pos.norm(dim=1) > 2.0)
        sums = self._end_episodes(dones)
        self._pos = torch.where(dones.unsqueeze(1), self._drawn(), self._pos)
        self._look()
        return self._result(rewards, dones, time_outs, sums)

    def check(self) -> dict[str, float]:
        return self.counts

    def _drawn(self) -> torch.Tensor:
        return self._draw(self._tensor([-1.0, -1.0]), self._tensor([1.0, 1.0]))

    def _look(self) -> None:
        clock = self.episode_length_buf.float().unsqueeze(1)
        self._observe(policy={"pos": self._pos}, critic={"pos": self._pos, "clock": clock})


CONFIG = PointConfig(name="point", dt=0.1, substeps=1, episode_length_s=1.0, clip_actions=1.0, performance_mode=False)


def built(*sizes: int, seed: int = 1) -> Scenes:
    seeds = scene_seeds(seed, len(sizes))
    return Scenes([PointEnv(CONFIG, size, CPU, own) for size, own in zip(sizes, seeds, strict=True)])


def parts(result: StepResult) -> list[torch.Tensor]:
    observations, *rest = result
    return [*observations.values(), *rest]


def test_two_scenes_keep_the_contract() -> None:
    def make(cfg: Any, num_envs: int, device: torch.device, seed: int) -> Scenes:
        return built(num_envs // 2 + 1, num_envs - num_envs // 2 - 1, seed=seed)

    assert violations(make, CONFIG, 6) == []


def test_a_step_of_three_scenes_is_the_steps_of_each_side_by_side_and_their_episode_sums_add_up() -> None:
    together, alone = built(1, 3, 2), built(1, 3, 2).envs
    generator = torch.Generator().manual_seed(0)
    ended = 0
    for _ in range(30):
        actions = 3 * torch.randn(6, 2, generator=generator)
        result = together.step(actions)
        first, second, third = alone[0].step(actions[:1]), alone[1].step(actions[1:4]), alone[2].step(actions[4:])
        for group in ("policy", "critic"):
            side_by_side = torch.cat([part.observations[group] for part in (first, second, third)])
            assert torch.equal(result.observations[group], side_by_side)
            assert torch.equal(together.get_observations()[group], side_by_side)
        for name in ("rewards", "dones", "time_outs"):
            assert torch.equal(
                getattr(result, name), torch.cat([getattr(part, name) for part in (first, second, third)])
            )
        sums = first.episode_sums + second.episode_sums + third.episode_sums
        torch.testing.assert_close(result.episode_sums, sums)
        ended += int(result.dones.sum())
    assert ended > 6, "without episodes that end it would prove little"


def test_episode_lengths_are_read_and_set_across_all_scenes() -> None:
    env = built(1, 3, 2)
    env.episode_length_buf = torch.arange(6, dtype=torch.int32)
    assert [own.episode_length_buf.tolist() for own in env.envs] == [[0], [1, 2, 3], [4, 5]]
    env.step(torch.zeros(6, 2))
    assert env.episode_length_buf.tolist() == [1, 2, 3, 4, 5, 6]


def test_each_scene_draws_from_a_stream_of_its_own_and_the_first_draws_as_an_only_one() -> None:
    only = PointEnv(CONFIG, 4, CPU, seed=1)
    observations = built(4, 4, 4).get_observations()["policy"]
    assert torch.equal(observations[:4], only.get_observations()["policy"])
    assert not torch.equal(observations[:4], observations[4:8])
    assert not torch.equal(observations[4:8], observations[8:])


def test_no_scene_of_any_of_four_ranks_has_the_seed_of_another() -> None:
    from ppo_lab.learning.random_state import stream

    seeds = [seed for rank in range(4) for seed in scene_seeds(stream(1, rank), 8)]
    assert len(set(seeds)) == 32
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_a_count_of_0_or_nan_is_a_row_too() -> None:
    assert added_up([{"lost": 0.0, "stuck": 1.0}, {"lost": 0.0}]) == {"lost": 0.0, "stuck": 1.0}
    assert math.isnan(added_up([{"share": math.nan}])["share"])


def test_counts_of_several_scenes_add_up_and_an_error_of_one_is_raised() -> None:
    env: Any = built(1, 2, 3)
    assert env.check() == {}
    env.envs[0].counts, env.envs[2].counts = {"lost": 2.0}, {"lost": 3.0, "stuck": 1.0}
    assert env.check() == {"lost": 5.0, "stuck": 1.0}

    def fails() -> dict[str, float]:
        raise SimulatorError("too many contacts")

    env.envs[1].check = fails
    with pytest.raises(SimulatorError, match="too many contacts"):
        env.check()


def test_from_the_state_after_7_steps_scenes_of_another_seed_step_on_identically() -> None:
    env, actions = built(1, 3, 2), 3 * torch.randn(30, 6, 2, generator=torch.Generator().manual_seed(0))
    for now in range(7):
        env.step(actions[now])
    saved = io.BytesIO()
    torch.save(env.state(), saved)
    walked = [parts(env.step(now)) for now in actions[7:]]
    again = built(1, 3, 2, seed=99)
    again.restore(torch.load(io.BytesIO(saved.getvalue()), weights_only=True))
    for there, now in zip(walked, actions[7:], strict=True):
        for was, is_now in zip(there, parts(again.step(now)), strict=True):
            assert torch.equal(was, is_now)


def test_a_state_of_other_scenes_is_refused_before_anything_is_changed() -> None:
    env = built(2, 2)
    before = env.get_observations()["policy"]
    for saved in (built(1, 1, 2).state(), PointEnv(CONFIG, 4, CPU, 5).state()):
        with pytest.raises(ValueError, match=r"^the saved state is of [13] scenes, and this env has 2: go on with"):
            env.restore(saved)
    with pytest.raises(ValueError, match=r"scenes\.1\.own\.\w+ of an env of several scenes is \(2"):
        env.restore(built(2, 3, seed=5).state())
    assert torch.equal(env.get_observations()["policy"], before)


@pytest.mark.parametrize(
    ("overrides", "sizes"),
    [
        (["num_envs=7", "envs_per_scene=3"], [3, 2, 2]),
        (["num_envs=6", "envs_per_scene=6"], [6]),
        (["num_envs=12", "envs_per_scene=4", "processes=2"], [3, 3]),
    ],
)
def test_a_rank_builds_the_scenes_that_the_settings_say(
    overrides: list[str], sizes: list[int], experiment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes, "make_env", lambda cfg, *rest: PointEnv(CONFIG, *rest))
    cfg: ExperimentConfig = experiment("algorithm.num_mini_batches=1", *overrides)
    env: Any = make_scenes(cfg.of_one_rank(), CPU, 1)
    built_sizes = [own.num_envs for own in env.envs] if len(sizes) > 1 else [env.num_envs]
    assert built_sizes == sizes
