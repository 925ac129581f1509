"""A short training of an env, through train.py, learns as well as it did when the bands were measured.

benchmarks/learning_bands.py measures the bands, from several seeds.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.learning_bands import BANDS, command, end_of_curve, lowest_to_accept

MEASURED = json.loads(BANDS.read_text())


@pytest.mark.parametrize("env", [pytest.param(env, marks=[pytest.mark.slow] * (env != "go2")) for env in MEASURED])
def test_a_short_training_ends_within_the_band_of_its_env(env: str, train: Callable[..., Any], tmp_path: Path) -> None:
    band = MEASURED[env]
    done = train(*command(env, band["overrides"], tmp_path / "run")[1:])
    assert done.returncode == 0, done.stderr
    found = end_of_curve(tmp_path / "run")
    too_low = {name: found[name] for name, lowest in band["lowest"].items() if found[name] < lowest}
    assert too_low == {}, f"allowed: {band['lowest']}; the seeds that were measured: {band['seeds']}"


def test_the_lowest_to_accept_is_halfway_between_no_learning_and_the_worst_seed() -> None:
    seeds = [{"mean_reward": 5.0, "mean_episode_length": 30.0}, {"mean_reward": 3.0, "mean_episode_length": 50.0}]
    assert lowest_to_accept(seeds, {"mean_reward": -1.0, "mean_episode_length": 20.0}) == {
        "mean_reward": 1.0,
        "mean_episode_length": 25.0,
    }
    assert lowest_to_accept(seeds, {"mean_reward": -1.0, "mean_episode_length": 40.0}) == {"mean_reward": 1.0}
    with pytest.raises(ValueError, match="give the env more iterations"):
        lowest_to_accept(seeds, {"mean_reward": 4.0, "mean_episode_length": 20.0})
