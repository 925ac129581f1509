"""A short training of an env, through train.py, learns as well as it did when the bands were measured.

benchmarks/learning_bands.py measures the bands, from several seeds.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.learning_bands import BANDS, command, end_of_curve

MEASURED = json.loads(BANDS.read_text())


@pytest.mark.parametrize("env", MEASURED)
def test_a_short_training_ends_within_the_band_of_its_env(env: str, train: Callable[..., Any], tmp_path: Path) -> None:
    band = MEASURED[env]
    done = train(*command(env, band["overrides"], tmp_path / "run")[1:])
    assert done.returncode == 0, done.stderr
    found = end_of_curve(tmp_path / "run")
    too_low = {name: value for name, value in found.items() if value < band["lowest"][name]}
    assert too_low == {}, f"allowed: {band['lowest']}; the seeds that were measured: {band['seeds']}"


@pytest.mark.parametrize("env", MEASURED)
def test_a_learner_that_learns_nothing_ends_below_the_band(env: str) -> None:
    band = MEASURED[env]
    assert band["without_learning"]["mean_reward"] < band["lowest"]["mean_reward"]
