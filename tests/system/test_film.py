"""Films by the simulator's own camera: the robot is in every picture, and does what it does without one."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensordict import TensorDict

from ppo_lab.cli import film
from ppo_lab.cli.compose import compose
from ppo_lab.config import ExperimentConfig
from ppo_lab.contracts import Looks
from ppo_lab.deploy.camera import FollowingCamera, corners
from ppo_lab.deploy.grid import Picture
from ppo_lab.envs import make_env
from ppo_lab.learning.checkpoint import save
from ppo_lab.learning.ppo import build_ppo
from ppo_lab.machine import opengl
from ppo_lab.runs.config import as_yaml, to_experiment
from ppo_lab.runs.folder import RunFolder

Experiment = Callable[..., ExperimentConfig]
LOOKS = Looks(160, 120)


@pytest.fixture(scope="module")
def go2(simulator: torch.device) -> Any:
    return filmed("go2", simulator)


@pytest.fixture(scope="module")
def hover(simulator: torch.device) -> Any:
    return filmed("hover", simulator)


def filmed(name: str, device: torch.device, looks: Looks | None = LOOKS) -> Any:
    opengl.check()
    return make_env(to_experiment(compose([f"env={name}"])).env, 1, device, 3, looks)


def walk(env: Any, steps: int) -> torch.Tensor:
    """Observations and rewards (steps, D) under actions that are random, and the same each time."""
    generator, rows = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        result = env.step(torch.randn(1, len(env.spec.actions), generator=generator))
        rows.append(torch.cat([result.observations["policy"][0], result.rewards]))
    return torch.stack(rows)


def seen(env: Any, camera: FollowingCamera) -> Picture:
    points = np.concatenate([corners(env.robot_box()[0].double().numpy()), env.get_targets()[0].double().numpy()])
    return env.picture(*(point.tolist() for point in camera.follow(points, 0.04)))


def robot_mask(env: Any) -> np.ndarray:
    """Where the picture from before shows the robot, (H, W) bool."""
    *_, numbers, _ = env._camera.render(rgb=False, segmentation=True, force_render=True)
    robot = env._entities()[0].idx
    links = [n for n, key in env._scene.visualizer.segmentation_idx_dict.items() if np.ravel(key)[0] == robot]
    return np.isin(numbers, links)


@pytest.mark.parametrize("name", ["go2", "hover"])
@torch.inference_mode()
def test_the_whole_robot_is_in_every_picture_and_so_is_the_floor(name: str, request: pytest.FixtureRequest) -> None:
    env = request.getfixturevalue(name)
    camera, start = FollowingCamera(LOOKS.field_of_view_deg, 160 / 120), env.state()
    for steps in (1, 5, 15, 15):  # standing, falling, and anew
        walk(env, steps)
        picture, mask = seen(env, camera), robot_mask(env)
        assert picture.shape == (120, 160, 3)
        assert mask.sum() >= 5, "a drone is small beside the way to its target"
        edges = [mask[0], mask[-1], mask[:, 0], mask[:, -1]]
        assert not np.concatenate(edges).any(), steps
        floor = picture[~mask].astype(int)
        assert len(np.unique(floor.max(axis=1) // 16)) >= 3, "of two shades, and the sky"
    env.restore(start)


@torch.inference_mode()
def test_a_target_is_marked_where_it_is(hover: Any) -> None:
    hover.hold_commands([0.5, 0.5, 1.2])
    picture = hover.picture([0.5, -1.0, 1.2], [0.5, 0.5, 1.2]).astype(int)
    is_marked = (picture[..., 0] > 2 * picture[..., 2]) & (picture[..., 0] > 100)
    rows, columns = is_marked.nonzero()
    assert (rows.mean(), columns.mean()) == pytest.approx((60, 80), abs=2)
    hover.hold_commands(None)


@torch.inference_mode()
def test_a_camera_changes_nothing_that_the_robot_does(go2: Any, simulator: torch.device) -> None:
    start = go2.state()
    with_camera = walk(go2, 30)
    go2.restore(start)
    assert torch.equal(with_camera, walk(filmed("go2", simulator, looks=None), 30))


@torch.inference_mode()
def test_from_a_restored_state_the_pictures_are_the_same(go2: Any) -> None:
    start, films = go2.state(), []
    for _ in range(2):
        go2.restore(start)
        camera = FollowingCamera(LOOKS.field_of_view_deg, 160 / 120)
        pictures = []
        for steps in (1, 3, 3):
            walk(go2, steps)
            pictures.append(seen(go2, camera))
        films.append(np.stack(pictures))
    assert np.array_equal(films[0], films[1])
    assert not np.array_equal(films[0][0], films[0][1])


def test_the_command_films_two_checkpoints_side_by_side(
    simulator: torch.device, experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, folder = experiment("experiment=smoke", "env=hover"), RunFolder(tmp_path / "a run")
    folder.checkpoints.mkdir(parents=True)
    folder.config.write_text(as_yaml(cfg))
    observations = TensorDict({"policy": torch.randn(cfg.num_envs, 17)}, batch_size=[cfg.num_envs], device=simulator)
    for number in (0, 100):
        save(folder.checkpoints / f"model_{number}.pt", build_ppo(cfg, observations).save() | {"iter": number})
    overrides = ["checkpoint=six", "seconds=0.2", "fps=20", "width=320", "height=120", "device=cpu"]
    film.main([str(folder.path), *overrides])
    printed = capsys.readouterr().out
    assert re.search(r"^written: .*/a run/films/six\.mp4 \(0\.\d\d MB\)$", printed, re.MULTILINE), printed
    assert re.search(r"^4 frames of 320 x 120, 0\.2 s, in \d+ s; .* pictures/s, drawn by \w", printed, re.MULTILINE)
    names = sorted(path.name for path in folder.films.iterdir())
    assert [name for name in names if not name.startswith("events.")] == ["six.gif", "six.mp4", "six.png"]
    with Image.open(folder.films / "six.png") as sheet:
        assert sheet.size == (4 * 160, 2 * 120), "a row for each policy"
