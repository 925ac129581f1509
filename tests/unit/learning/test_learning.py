"""Episode statistics and checkpoints, on cases worked by hand."""

import math
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch

from ppo_lab.errors import CheckpointError
from ppo_lab.learning.checkpoint import Checkpoints, load, rename_newer, save
from ppo_lab.learning.episodes import EpisodeStatistics
from ppo_lab.learning.random_state import kind_of_device, random_state, reseed, set_random_state, stream
from ppo_lab.runs.files import write_atomically


def statistics() -> EpisodeStatistics:
    return EpisodeStatistics(
        num_envs=2, num_steps_per_env=3, reward_names=("speed", "falls"), device=torch.device("cpu")
    )


def scalars_of(episodes: EpisodeStatistics) -> dict[str, float]:
    return episodes.scalars([episodes.close_rollout()])


def step(episodes: EpisodeStatistics, rewards: list[float], dones: list[bool], sums: tuple[float, float]) -> None:
    episodes.add(torch.tensor(rewards), torch.tensor(dones), torch.tensor(sums))


def test_returns_and_lengths_are_those_of_the_episodes_that_ended() -> None:
    episodes = statistics()
    step(episodes, [1.0, 5.0], [False, False], (0.0, 0.0))
    step(episodes, [2.0, 5.0], [True, False], (4.0, -1.0))  # env 0: 1 + 2 in 2 steps
    step(episodes, [9.0, 5.0], [False, True], (2.0, 0.0))  # env 1: 15 in 3 steps
    assert scalars_of(episodes) == {
        "Episode/rew_speed": 3.0,  # (4 + 2) over two episodes
        "Episode/rew_falls": -0.5,
        "Train/mean_reward": 9.0,  # (3 + 15) / 2
        "Train/mean_episode_length": 2.5,
    }
    step(episodes, [1.0, 0.0], [True, False], (7.0, 0.0))  # env 0: 9 + 1 in 2 steps, begun in the rollout before
    step(episodes, [0.0, 0.0], [False, False], (0.0, 0.0))
    step(episodes, [0.0, 0.0], [False, False], (0.0, 0.0))
    scalars = scalars_of(episodes)
    assert scalars["Episode/rew_speed"] == 7.0
    assert scalars["Train/mean_reward"] == pytest.approx(28 / 3)


def test_reward_terms_weigh_every_episode_alike_however_the_steps_share_them() -> None:
    # One step ends one episode, another ends two: a mean of step means would be (1 + 4) / 2.
    episodes = statistics()
    step(episodes, [0.0, 0.0], [True, False], (1.0, 0.0))
    step(episodes, [0.0, 0.0], [True, True], (8.0, 0.0))
    assert scalars_of(episodes)["Episode/rew_speed"] == 3.0


def test_without_an_ended_episode_the_statistics_are_empty() -> None:
    episodes = statistics()
    step(episodes, [1.0, 1.0], [False, False], (0.0, 0.0))
    assert scalars_of(episodes) == {}


def test_only_the_last_hundred_episodes_count() -> None:
    episodes = EpisodeStatistics(1, 150, (), torch.device("cpu"))
    for n in range(150):
        episodes.add(torch.tensor([float(n)]), torch.tensor([True]), torch.zeros(0))
    assert scalars_of(episodes)["Train/mean_reward"] == sum(range(50, 150)) / 100


def test_the_episodes_of_two_ranks_count_as_those_of_one_rank_with_all_envs() -> None:
    steps = [([1.0, 2.0, 3.0, 4.0], [True, False, False, True]), ([5.0, 6.0, 7.0, 8.0], [False, True, True, False])]
    whole = EpisodeStatistics(4, 2, ["speed"], torch.device("cpu"))
    halves = [EpisodeStatistics(2, 2, ["speed"], torch.device("cpu")) for _ in range(2)]
    for rewards, dones in steps:
        whole.add(torch.tensor(rewards), torch.tensor(dones), torch.tensor([6.0]))
        for half, part in zip(halves, (slice(0, 2), slice(2, 4)), strict=True):
            half.add(torch.tensor(rewards[part]), torch.tensor(dones[part]), torch.tensor([3.0]))
    expected, rollouts = scalars_of(whole), [half.close_rollout() for half in halves]
    assert [half.scalars(rollouts) for half in halves] == [expected, expected]
    assert list(halves[1].last_returns) == [1.0, 4.0, 8.0, 10.0]  # first those of the first step


def test_each_rank_has_a_stream_of_random_numbers_of_its_own() -> None:
    assert stream(7, 0) == 7  # a run of one rank draws as before there were several
    assert len({stream(seed, rank) for seed in range(20) for rank in range(20)}) == 400


def model(iteration: int) -> dict[str, Any]:
    return {"iter": iteration, "actor_state_dict": {"weight": torch.full((3,), float(iteration))}}


def save_if_due(checkpoints: Checkpoints, iteration: int, reward: float | None = None, last: bool = False) -> None:
    state = {"iteration": iteration} if last or checkpoints.is_due(iteration) else None
    checkpoints.maybe_save(iteration, lambda: model(iteration), state, reward, last)


def test_checkpoints_come_at_intervals_and_at_the_end_with_the_state_of_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", save_interval=3, keep_state=2)
    for iteration, reward in enumerate([None, 1.0, 5.0, 2.0, 3.0]):
        save_if_due(checkpoints, iteration, reward, last=iteration == 4)
    folder = checkpoints.folder
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["best.pt", "model_0.pt", "model_3.pt", "model_4.pt", "state_3.pt", "state_4.pt"]
    assert load(folder / "best.pt")["iter"] == 2
    assert load(folder / "model_4.pt")["iter"] == 4
    assert load(folder / "state_4.pt") == {"iteration": 4, "best_reward": 5.0}


def test_a_checkpoint_comes_also_when_the_time_has_passed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", save_interval=10**9, every_seconds=1e-9)
    save_if_due(checkpoints, 1)
    checkpoints.every_seconds = 1e9
    save_if_due(checkpoints, 2)
    checkpoints.wait()
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["model_1.pt", "state_1.pt"]


def test_best_pt_keeps_the_weights_of_the_iteration_with_the_best_reward(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", save_interval=10)
    living = model(0)
    checkpoints.maybe_save(1, lambda: living, None, reward=1.0)
    living["actor_state_dict"]["weight"].fill_(99.0)  # training goes on
    checkpoints.maybe_save(2, lambda: living, {}, reward=0.0, last=True)
    assert load(checkpoints.folder / "best.pt")["actor_state_dict"]["weight"].tolist() == [0.0, 0.0, 0.0]


def test_without_any_reward_best_pt_is_the_last_model(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", save_interval=1)
    save_if_due(checkpoints, 0)
    save_if_due(checkpoints, 1, last=True)
    assert load(checkpoints.folder / "best.pt")["iter"] == 1


def test_a_reward_that_is_not_finite_is_never_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", save_interval=10)
    checkpoints.best_reward = math.inf  # of a state that an older version saved
    for iteration, reward in enumerate([1.0, math.nan, math.inf, -math.inf, 2.0, 1.5, math.inf]):
        save_if_due(checkpoints, iteration, reward, last=iteration == 6)
    assert load(checkpoints.folder / "best.pt")["iter"] == 4
    assert load(checkpoints.folder / "state_6.pt")["best_reward"] == 2.0


def test_checkpoints_newer_than_the_resumed_one_are_renamed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", save_interval=1)
    for iteration in range(3):
        save_if_due(checkpoints, iteration, last=iteration == 2)
    (checkpoints.folder / ".model_2.pt.77.tmp").write_bytes(b"half")
    rename_newer(checkpoints.folder, after=1)
    names = {path.name for path in checkpoints.folder.iterdir()}
    assert names == {"best.pt", "model_0.pt", "model_1.pt", "model_2.pt.old", "state_1.pt", "state_2.pt.old"}


BREAK = {
    "is empty": lambda content: b"",
    "is cut short": lambda content: content[:-100],
    "does not match its checksum": lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:],
}


@pytest.mark.parametrize("why", BREAK)
def test_a_broken_file_is_refused_by_name(tmp_path: Path, why: str) -> None:
    path = tmp_path / "model_3.pt"
    save(path, model(3))
    assert load(path)["iter"] == 3
    path.write_bytes(BREAK[why](path.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"model_3\.pt {why}"):
        load(path)


def test_a_file_of_another_program_or_with_code_in_it_is_refused(tmp_path: Path) -> None:
    path, ran = tmp_path / "model_3.pt", tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> Any:
            return Path.touch, (ran,)

    torch.save(model(3), path)
    with pytest.raises(CheckpointError, match="not written by this project"):
        load(path)
    save(path, {"iter": Hostile()})
    with pytest.raises(CheckpointError, match="holds more than tensors and plain data"):
        load(path)
    assert not ran.exists()


class OnAnotherDevice(torch.Tensor):
    """Stands in for a tensor on a GPU: what a machine without one can read is made by `cpu` alone."""

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        return self.as_subclass(torch.Tensor)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise AssertionError("it was saved where it is")


def on_another_device(*values: float) -> torch.Tensor:
    return torch.tensor(values).as_subclass(OnAnotherDevice)


def test_tensors_are_saved_as_those_of_a_cpu_wherever_they_are(tmp_path: Path) -> None:
    def parts(tensor: Callable[..., torch.Tensor]) -> dict[str, Any]:
        moments = {0: {"step": torch.tensor(3.0), "exp_avg": tensor(0.1)}}
        return {
            "actor_state_dict": OrderedDict(weight=tensor(1.0, 2.0)),
            "optimizer_state_dict": {"state": moments, "param_groups": [{"betas": (0.9, 0.999), "params": [0]}]},
            "episodes": {"return": tensor(4.0), "last_returns": [5.0]},
            "more": [(tensor(6.0), None)],
        }

    save(tmp_path / "model.pt", parts(on_another_device))
    found = torch.load(tmp_path / "model.pt", weights_only=True)
    assert repr(found) == repr(parts(lambda *values: torch.tensor(values)))


def test_a_module_comes_back_with_the_versions_of_its_parts(tmp_path: Path) -> None:
    saved = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict()
    save(tmp_path / "model.pt", {"actor_state_dict": saved})
    found = load(tmp_path / "model.pt")["actor_state_dict"]
    assert type(found) is OrderedDict
    assert found._metadata == saved._metadata  # type: ignore[attr-defined]
    assert found._metadata["1"] == {"version": 2}  # type: ignore[attr-defined]
    assert list(found) == list(saved)
    assert all(map(torch.equal, found.values(), saved.values()))


def test_the_best_is_the_model_as_it_was_then_however_it_changes_before_it_is_written(tmp_path: Path) -> None:
    weight = torch.tensor([1.0])
    store = Checkpoints(tmp_path / "checkpoints", save_interval=10)
    for iteration, reward in enumerate((1.0, 3.0, 2.0)):
        weight.fill_(reward)
        state = {"iteration": iteration} if iteration == 2 else None
        model: dict[str, Any] = {"iter": iteration, "weights": [weight]}
        store.maybe_save(iteration, model.copy, state, reward)
    store.wait()
    assert load(tmp_path / "checkpoints" / "best.pt") == {"iter": 1, "weights": [torch.tensor([3.0])]}
    assert load(tmp_path / "checkpoints" / "model_2.pt") == {"iter": 2, "weights": [torch.tensor([2.0])]}


CUDA = torch.device("cuda", 0)


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The random numbers of a GPU that is not there: their state, and the seeds given."""
    fake = SimpleNamespace(state=torch.tensor([7, 7], dtype=torch.uint8), seeds=[])
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: fake.state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: setattr(fake, "state", state))
    monkeypatch.setattr(torch.cuda, "manual_seed", fake.seeds.append)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    return fake


def test_random_numbers_continue_on_the_device_they_were_drawn_on(generator: SimpleNamespace) -> None:
    here, there = random_state(torch.device("cpu")), random_state(CUDA)
    assert [kind_of_device(state) for state in (here, there)] == ["cpu", "cuda"]
    drawn = torch.rand(3)
    generator.state = torch.zeros(2, dtype=torch.uint8)
    set_random_state(there, CUDA)
    assert generator.state.tolist() == [7, 7]
    assert torch.equal(torch.rand(3), drawn)
    generator.state = torch.zeros(2, dtype=torch.uint8)
    set_random_state(here, CUDA)  # of a run on a CPU, which had none of a GPU
    assert generator.state.tolist() == [0, 0]
    assert torch.equal(torch.rand(3), drawn)
    set_random_state(there, torch.device("cpu"))
    assert torch.equal(torch.rand(3), drawn)


def test_random_numbers_that_reseed_depend_on_seed_and_iteration_alone(generator: SimpleNamespace) -> None:
    places = [(1, 12), (1, 12), (1, 13), (2, 12), (2, 11)]
    drawn = []
    for seed, iteration in places:
        reseed(CUDA, seed, iteration)
        reseed(torch.device("cpu"), seed, iteration)
        drawn.append(tuple(torch.rand(4).tolist()))
    assert drawn[0] == drawn[1]
    assert generator.seeds[0] == generator.seeds[1]
    assert len(set(drawn)) == len(set(generator.seeds)) == 4


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"old and whole")

    def half(file: Any) -> None:
        file.write(b"new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert path.read_bytes() == b"old and whole"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]
