"""The camera keeps in view what it follows."""

import math

import numpy as np
import pytest

from ppo_lab.deploy.camera import DIRECTION, RIGHT, UP, FollowingCamera, Points, corners, distance_to_see

FIELD_DEG, ASPECT = 40.0, 16 / 9


def in_picture(points: Points, position: Points, look_at: Points) -> Points:
    """Where a camera sees points (P, 3): (P, 2), from -1 to 1 within the picture, right and up."""
    ahead = (look_at - position) / np.linalg.norm(look_at - position)
    right = np.cross(ahead, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    offsets = points - position
    half = math.tan(math.radians(FIELD_DEG) / 2)
    depth = offsets @ ahead
    assert (depth > 0).all()
    return np.stack([offsets @ right / depth / half / ASPECT, offsets @ np.cross(right, ahead) / depth / half], axis=1)


def test_from_the_distance_that_is_needed_the_outermost_point_is_at_the_edge() -> None:
    points = corners(np.array([[-0.3, -0.2, 0.0], [0.3, 0.2, 0.5]]))
    center = np.array([0.0, 0.0, 0.25])
    distance = distance_to_see(points, center, FIELD_DEG, ASPECT)
    seen = np.abs(in_picture(points, center + DIRECTION * distance, center))
    assert seen.max() == pytest.approx(1.0)
    assert np.dot(RIGHT, UP) == pytest.approx(0.0)


@pytest.mark.parametrize("speed_m_s", [0.0, 0.5, 3.0, 30.0])
def test_what_moves_at_any_speed_stays_in_view(speed_m_s: float) -> None:
    camera = FollowingCamera(FIELD_DEG, ASPECT)
    for frame in range(50):
        x = speed_m_s * frame * 0.04
        points = corners(np.array([[x - 0.3, -0.2, 0.0], [x + 0.3, 0.2, 0.5]]))
        assert np.abs(in_picture(points, *camera.follow(points, 0.04))).max() < 1


def test_a_target_that_jumps_away_is_in_view_at_once_and_the_camera_comes_nearer_again() -> None:
    camera, distances = FollowingCamera(FIELD_DEG, ASPECT), []
    robot = corners(np.array([[-0.05, -0.05, 1.0], [0.05, 0.05, 1.03]]))
    for frame in range(150):
        target = [[2.0, 1.0, 1.0]] if 25 <= frame < 75 else [[0.2, 0.0, 1.0]]
        points = np.concatenate([robot, target])
        position, look_at = camera.follow(points, 0.04)
        distances.append(float(np.linalg.norm(position - look_at)))
        assert np.abs(in_picture(points, position, look_at)).max() < 1
    assert distances[-1] == pytest.approx(distances[0], rel=0.1)
    assert max(distances) > 3 * distances[0]


def test_after_a_cut_the_camera_is_where_the_robot_is() -> None:
    camera = FollowingCamera(FIELD_DEG, ASPECT)
    points = corners(np.array([[-0.3, -0.2, 0.0], [0.3, 0.2, 0.5]]))
    at_start = camera.follow(points, 0.04)
    camera.follow(points + np.array([10.0, 0.0, 0.0]), 0.04)
    camera.cut()
    again = camera.follow(points, 0.04)
    assert np.array_equal(at_start, again)
