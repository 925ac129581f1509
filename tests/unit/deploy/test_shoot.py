"""Films of an env that draws itself, without a simulator: what they show, and films that show nothing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ppo_lab.contracts import EnvSpec, Measurement, StepDetails, StepResult
from ppo_lab.deploy import movie
from ppo_lab.deploy.film import Actor, Plan, shoot
from ppo_lab.deploy.grid import Picture, Size, columns_of, tile_size, tiled
from ppo_lab.deploy.overlay import Caption, quantity, written
from ppo_lab.errors import RunFailedError
from ppo_lab.runs.events import show_film

Paint = Callable[[Picture, float], None]
"""Draws on a black picture where the cart is, m."""
PLAN = Plan(
    seconds=1.0,
    fps=10,
    size=(240, 160),
    kinds=frozenset({"mp4", "gif", "png"}),
    gif_fps=5.0,
    gif_width_px=120,
    seed=0,
    driver="nothing",
)


class Cart:
    """Moves along x by the action, with a step of 0.05 s; at 1 m its episode ends. It paints its own pictures."""

    commands = {"speed_m_s": (0.0, 1.0)}
    spec = EnvSpec({"policy": {"x": 1}}, ("push",), ("moved",), 0.05, 1000)

    def __init__(self, paint: Paint, size: Size) -> None:
        self.x = 0.0
        self.size = size
        self.positions: list[float] = []
        self._paint = paint
        self._watcher: Callable[[StepDetails], None] | None = None

    def state(self) -> dict[str, Any]:
        return {"x": self.x}

    def restore(self, state: dict[str, Any]) -> None:
        self.x = state["x"]

    def watch(self, on_step: Callable[[StepDetails], None] | None) -> None:
        self._watcher = on_step

    def get_commands(self) -> torch.Tensor:
        return torch.ones(1, 1)

    def get_observations(self) -> Any:
        return {"policy": torch.tensor([[self.x]])}

    def get_targets(self) -> torch.Tensor:
        return torch.zeros(1, 0, 3)

    def robot_box(self) -> torch.Tensor:
        return torch.tensor([[[self.x - 0.1, -0.1, 0.0], [self.x + 0.1, 0.1, 0.2]]])

    def step(self, actions: torch.Tensor) -> StepResult:
        self.x += float(actions) * self.spec.dt
        self.positions.append(self.x)
        ended = torch.tensor([self.x >= 1.0])
        assert self._watcher
        self._watcher(
            StepDetails({"moved": torch.ones(1)}, {"at_the_end": ended}, {"x_m": Measurement(torch.ones(1), "mean")})
        )
        if ended:
            self.x = 0.0
        return StepResult(None, torch.ones(1), ended, ended, torch.zeros(1))

    def picture(self, position: Sequence[float], look_at: Sequence[float]) -> Picture:
        picture = np.zeros((self.size[1], self.size[0], 3), dtype=np.uint8)
        self._paint(picture, self.x)
        return picture


class Push:
    def __init__(self, speed: float) -> None:
        self._speed = speed

    def mean(self, observations: Any) -> torch.Tensor:
        return torch.tensor([[self._speed]])


def square(picture: Picture, x: float) -> None:
    height, left = len(picture), int(100 * x)
    picture[height // 3 : height // 2, left : left + 20] = 255


def film(tmp_path: Path, paint: Paint = square, speeds: Sequence[float] = (1.0,), plan: Plan = PLAN) -> Cart:
    """Films a cart for each speed, and gives the env, which played them all."""
    env: Any = Cart(paint, tile_size(plan.size, len(speeds)))
    policies: list[Any] = [Push(speed) for speed in speeds]
    actors = [Actor(f"iteration {number}", policy) for number, policy in enumerate(policies)]
    shoot(env, actors, plan, tmp_path / "best")
    return env


def test_a_film_has_the_frames_the_size_and_the_duration_that_were_asked_for(tmp_path: Path) -> None:
    env = film(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.gif", "best.mp4", "best.png"]
    with av.open(str(tmp_path / "best.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.frames) == ("h264", "yuv420p", 10)
        assert (stream.width, stream.height) == (240, 160)
        assert container.duration == 1_000_000  # microseconds
    assert len(env.positions) == 20, "1 s of steps of 0.05 s, two for a frame"
    assert env.positions[-1] == pytest.approx(1.0)


def test_an_mp4_can_be_played_before_all_of_it_is_there(tmp_path: Path) -> None:
    film(tmp_path)
    content = (tmp_path / "best.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_a_gif_plays_as_long_in_fewer_and_smaller_pictures(tmp_path: Path) -> None:
    film(tmp_path)
    with Image.open(tmp_path / "best.gif") as gif:
        assert (gif.n_frames, gif.size) == (5, (120, 80))
        assert gif.info["duration"] == 200  # ms
        assert gif.info["loop"] == 0, "for ever"


def test_frames_that_fall_between_steps_are_of_the_step_before_or_after(tmp_path: Path) -> None:
    env = film(tmp_path, plan=PLAN._replace(fps=15, seconds=2.0))
    assert len(env.positions) == 40


def test_several_policies_begin_alike_and_stand_side_by_side(tmp_path: Path) -> None:
    env = film(tmp_path, square, [0.2, 0.9, 0.5])
    assert [env.positions[number * 20] for number in range(3)] == pytest.approx([0.01, 0.045, 0.025])
    *_, last = movie.pictures(tmp_path / "best.mp4")
    rows = [last[top + 33, left : left + 120, 0] for top in (0, 80) for left in (0, 120)]
    assert [int(np.argmax(row > 128)) for row in rows[:3]] == pytest.approx([20, 90, 50], abs=2)
    assert rows[3].max() < 30, "three of four places are taken"


def test_the_contact_sheet_has_a_row_for_each_policy(tmp_path: Path) -> None:
    film(tmp_path, square, [0.2, 0.9])
    with Image.open(tmp_path / "best.png") as sheet:
        assert sheet.size == (4 * 120, 2 * 160)


@pytest.mark.parametrize("color", [0, 200])
def test_a_film_of_one_colour_is_an_error_with_the_reason_and_leaves_nothing(tmp_path: Path, color: int) -> None:
    with pytest.raises(RunFailedError, match=r"^no film: picture 1 of iteration 0 shows nothing.* libgl1-mesa-dri"):
        film(tmp_path, lambda picture, x: picture.fill(color))
    assert list(tmp_path.iterdir()) == []


def test_a_film_in_which_nothing_moves_is_an_error_whatever_is_written_on_it(tmp_path: Path) -> None:
    with pytest.raises(
        RunFailedError, match=r"^no film: all 10 pictures of iteration 0 are the same.* libgl1-mesa-dri"
    ):
        film(tmp_path, lambda picture, x: square(picture, 0.0))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_film_leaves_the_one_from_before(tmp_path: Path) -> None:
    film(tmp_path)
    before = (tmp_path / "best.mp4").read_bytes()
    with pytest.raises(RunFailedError):
        film(tmp_path, lambda picture, x: picture.fill(0))
    assert (tmp_path / "best.mp4").read_bytes() == before


def test_a_film_that_came_out_wrong_is_told_from_a_right_one(tmp_path: Path) -> None:
    film(tmp_path)
    path = tmp_path / "best.mp4"
    assert movie.flaw(path, 10, (240, 160), 1.0) is None
    assert movie.flaw(path, 11, (240, 160), 1.1) == "has 10 frames instead of 11"
    assert movie.flaw(path, 10, (240, 162), 1.0) == "is 240 x 160 instead of 240 x 162"
    assert movie.flaw(path, 10, (240, 160), 2.0) == "lasts 1.00 s instead of 2.00 s"
    path.write_bytes(path.read_bytes()[:-1000])
    assert movie.flaw(path, 10, (240, 160), 1.0)
    path.write_bytes(b"")
    assert str(movie.flaw(path, 10, (240, 160), 1.0)).startswith("cannot be read again: ")


def test_tensorboard_shows_the_newest_gif_as_it_is(tmp_path: Path) -> None:
    film(tmp_path)
    for step in (50, 149):
        show_film(tmp_path, "best", tmp_path / "best.gif", (120, 80), step)
    found = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    (image,) = found.Images("Film/best")
    assert (image.step, image.encoded_image_string) == (149, (tmp_path / "best.gif").read_bytes())


def test_grids_are_wider_than_high_and_their_pictures_even() -> None:
    assert [columns_of(count) for count in range(1, 8)] == [1, 2, 2, 2, 3, 3, 3]
    assert [tile_size((960, 540), count) for count in (1, 2, 4, 6)] == [(960, 540), (480, 540), (480, 270), (320, 270)]
    assert tile_size((100, 100), 7) == (32, 32)


def test_pictures_are_put_row_by_row() -> None:
    ones = [np.full((2, 3, 3), number, dtype=np.uint8) for number in (1, 2, 3)]
    whole = tiled(ones, 2, size=(7, 5))
    assert whole[:, :, 0].tolist() == [
        *([[1, 1, 1, 2, 2, 2, 0]] * 2),
        *([[3, 3, 3, 0, 0, 0, 0]] * 2),
        [0] * 7,
    ]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("speed_m_s", 0.5, "speed 0.50 m/s"),
        ("ang_vel_rad_s", -1.0, "ang vel -1.00 rad/s"),
        ("target_x_m", 0.126, "target x 0.13 m"),
        ("peak_torque_n_m", 20.0, "peak torque 20.00 N m"),
        ("targets_reached", 3.0, "targets reached 3"),
    ],
)
def test_a_quantity_is_written_with_the_unit_that_its_name_ends_with(name: str, value: float, text: str) -> None:
    assert quantity(name, value) == text


def test_a_caption_is_written_in_the_corners_and_leaves_the_middle() -> None:
    picture = np.full((270, 320, 3), 90, dtype=np.uint8)
    caption = Caption("iteration 5", 1.0, 0.3, {"lin_vel_x_m_s": 0.5}, {"speed_m_s": 0.4}, "ended: roll")
    changed = (written(picture, caption) != picture).any(axis=2)
    corners = changed[:50, :100], changed[:50, -100:], changed[-50:, :120], changed[-50:, -120:]
    assert all(corner.any() for corner in corners)
    assert not changed[60:200].any()
    assert (picture == 90).all(), "the picture itself is left as it is"
