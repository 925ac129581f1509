"""A robot that Genesis refuses, and the end of a scene."""

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ppo_lab.config import ExperimentConfig
from ppo_lab.envs import make_env
from ppo_lab.envs.robots import asset
from ppo_lab.errors import SimulatorError


def test_an_impossible_inertia_is_an_error_that_names_the_urdf_and_does_not_quote_it(
    tmp_path: Path, simulator: torch.device, experiment: Callable[..., ExperimentConfig]
) -> None:
    urdf = tmp_path / "heavy.urdf"
    whole = asset("urdf/go2/urdf/go2.urdf").read_text()
    meshes = asset("urdf/go2/dae")
    urdf.write_text(whole.replace('iyy="0.098077"', 'iyy="9.8077"').replace("../dae", str(meshes)))
    with pytest.raises(SimulatorError, match=r"base.* morph file '.*heavy\.urdf'") as refused:
        make_env(experiment(f"env.robot.urdf={urdf}").env, 2, simulator, seed=1)
    assert len(str(refused.value)) < 1000


def test_a_scene_ends_with_its_env_before_its_parts_are_collected(
    simulator: torch.device, experiment: Callable[..., ExperimentConfig]
) -> None:
    from ppo_lab.envs.tasks.go2.env import Go2Env

    env = make_env(experiment().env, 1, simulator, seed=1)
    assert isinstance(env, Go2Env)
    scene = env._scene
    assert scene.is_built
    del env
    gc.collect()
    assert not scene.is_built
