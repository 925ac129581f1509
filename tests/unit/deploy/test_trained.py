"""What a run folder offers to be looked at: its checkpoints by name, and its env under other conditions."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ppo_lab.config import ExperimentConfig
from ppo_lab.deploy.trained import Trained, read_conditions
from ppo_lab.errors import ConfigError
from ppo_lab.learning.checkpoint import save
from ppo_lab.runs.config import as_yaml
from ppo_lab.runs.folder import find_checkpoints


def run_with(folder: Path, *iterations: int, best: bool = True) -> Path:
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True)
    for iteration in iterations:
        save(checkpoints / f"model_{iteration}.pt", {"iter": iteration})
    if best:
        save(checkpoints / "best.pt", {"iter": 1})
    return folder


def names(paths: list[Path]) -> list[str]:
    return [path.stem.removeprefix("model_") for path in paths]


def test_checkpoints_are_found_by_name_and_by_iteration(tmp_path: Path) -> None:
    run = run_with(tmp_path / "a run", 0, 9, 10, 100)
    assert names(find_checkpoints(run, "best")) == ["best"]
    assert names(find_checkpoints(run, "last")) == ["100"]
    assert names(find_checkpoints(run, "all")) == ["0", "9", "10", "100"]
    assert names(find_checkpoints(run, "10,0")) == ["10", "0"]


@pytest.mark.parametrize(
    ("count", "chosen"),
    [(3, [0, 1, 2]), (6, [0, 1, 2, 3, 4, 5]), (7, [0, 1, 2, 4, 5, 6]), (11, [0, 2, 4, 6, 8, 10])],
)
def test_six_are_evenly_spread_with_the_first_and_the_last(tmp_path: Path, count: int, chosen: list[int]) -> None:
    run = run_with(tmp_path, *range(count))
    assert names(find_checkpoints(run, "six")) == list(map(str, chosen))


@pytest.mark.parametrize("wanted", ["7", "0,7", "best"])
def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path, wanted: str) -> None:
    run = run_with(tmp_path, 0, 50, best=False)
    with pytest.raises(ConfigError, match=rf"has no checkpoint {wanted.split(',')[-1]}. Allowed: last, 0, 50\."):
        find_checkpoints(run, wanted)


@pytest.mark.parametrize("wanted", ["best", "last", "all", "six", "0"])
def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path, wanted: str) -> None:
    with pytest.raises(ConfigError, match="has no checkpoint: nothing was saved yet"):
        find_checkpoints(run_with(tmp_path, best=False), wanted)


def test_a_checkpoint_that_is_cut_short_is_refused_by_name(tmp_path: Path) -> None:
    run = run_with(tmp_path, 0, 50)
    path = run / "checkpoints" / "model_50.pt"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ConfigError, match=r"model_50\.pt is cut short"):
        find_checkpoints(run, "last")


@pytest.fixture
def trained(tmp_path: Path, experiment: Callable[..., ExperimentConfig]) -> Trained:
    run = run_with(tmp_path / "a run", 0)
    (run / "config.yaml").write_text(as_yaml(experiment("env=go2")))
    return Trained.read(run)


def test_the_env_is_the_runs_own_but_for_what_is_changed(trained: Trained) -> None:
    changed = trained.changed({"env.lin_vel_x_range": [1.0, 1.0]})
    assert changed.cfg.env.lin_vel_x_range == [1.0, 1.0]  # type: ignore[attr-defined]
    assert trained.cfg.env.lin_vel_x_range == [0.5, 0.5]  # type: ignore[attr-defined]
    assert changed.changes == {"env.lin_vel_x_range": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("env.lin_vel_x_rang", [1, 1], "Did you mean env.lin_vel_x_range"),
        ("env.lin_vel_x_range", [2, 1], "low above high"),
        ("env.dt", 0, "out of range"),
    ],
)
def test_what_is_no_setting_of_the_env_is_refused(trained: Trained, key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trained.changed({key: value})


def test_a_term_of_randomization_or_all_of_them_replace_what_the_training_had(
    tmp_path: Path, experiment: Callable[..., ExperimentConfig]
) -> None:
    (tmp_path / "config.yaml").write_text(
        as_yaml(experiment("randomization=light", "+env.randomization.friction.share=0.5"))
    )
    trained, friction = Trained.read(tmp_path), {"when": "build", "operation": "set", "range": [0.3, 0.3]}
    slippery = trained.changed({"env.randomization.friction": friction}).cfg.env.randomization
    assert (slippery["friction"].range, slippery["friction"].share) == ([0.3, 0.3], 1.0)
    assert list(slippery) == list(trained.cfg.env.randomization)
    alone = trained.changed({"env.randomization": {"friction": friction}}).cfg.env.randomization
    assert alone == {"friction": slippery["friction"]}
    assert trained.changed({"env.randomization": {}}).cfg.env.randomization == {}


def test_conditions_come_by_name_from_a_file(trained: Trained, tmp_path: Path) -> None:
    assert list(read_conditions(trained, None)) == ["as trained"]
    assert list(read_conditions(trained.changed({"env.dt": 0.01}), None)) == ["env.dt=0.01"]
    file = tmp_path / "conditions.yaml"
    file.write_text("slow: {env.lin_vel_x_range: [0.2, 0.2]}\nas it was: {}\n")
    conditions = read_conditions(trained, file)
    assert {name: dict(condition.changes) for name, condition in conditions.items()} == {
        "slow": {"env.lin_vel_x_range": [0.2, 0.2]},
        "as it was": {},
    }


@pytest.mark.parametrize("text", ["", "[1, 2]", "slow: 3", "slow: {env.nothing: 3}", "5: {env.dt: 0.1}", "a: ["])
def test_a_file_that_has_no_conditions_is_refused(trained: Trained, tmp_path: Path, text: str) -> None:
    file = tmp_path / "conditions.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError):
        read_conditions(trained, file)
    with pytest.raises(ConfigError, match="is missing"):
        read_conditions(trained, tmp_path / "nothing.yaml")
