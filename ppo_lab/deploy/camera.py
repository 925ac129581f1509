"""A camera that keeps a robot and its targets in view, without turning. Lengths in m, times in s."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

DIRECTION = np.array([0.45, -1.0, 0.4]) / math.hypot(0.45, 1.0, 0.4)
"""From what is looked at to the camera, in the world's axes: from the side that is on the right of a robot that walks
along x, a little ahead of it and above."""
RIGHT = np.cross([0.0, 0.0, 1.0], DIRECTION) / math.hypot(DIRECTION[0], DIRECTION[1])
UP = np.cross(DIRECTION, RIGHT)
"""In the picture, in the world's axes."""
CENTER_TIME_S, DISTANCE_TIME_S = 0.2, 0.6
"""After which the camera has followed by 63 %."""
MARGIN, LEAST_MARGIN = 1.4, 1.15
"""The distance, by the one from which all is just in view: at rest, and while the camera lags behind."""


def corners(box: Points) -> Points:
    """The corners (8, 3) of a box, of which the lowest and the highest are given (2, 3)."""
    return np.array(list(itertools.product(*box.T)))


def distance_to_see(points: Points, center: Points, field_of_view_deg: float, aspect: float) -> float:
    """How far from `center` a camera in `DIRECTION` sees all of `points` just so.

    Args:
        points: (P, 3).
        center: (3,), in the middle of the picture.
        field_of_view_deg: from the lower to the upper edge.
        aspect: width by height of the picture.
    """
    tangent = math.tan(math.radians(field_of_view_deg) / 2)
    offsets = points - center
    towards_camera = offsets @ DIRECTION
    beside = np.maximum(np.abs(offsets @ UP) / tangent, np.abs(offsets @ RIGHT) / (tangent * aspect))
    return float((beside + towards_camera).max())


class FollowingCamera:
    """Where the camera is and looks at, from one picture to the next."""

    def __init__(self, field_of_view_deg: float, aspect: float) -> None:
        self._field_of_view_deg, self._aspect = field_of_view_deg, aspect
        self._center: Points | None = None
        self._distance = 0.0

    def cut(self) -> None:
        """The next picture follows nothing, as the robot was put elsewhere."""
        self._center = None

    def follow(self, points: Points, passed_s: float) -> tuple[Points, Points]:
        """Position (3,) of the camera, and where it looks at (3,), so that all the points (P, 3) are in view."""
        middle = (points.min(axis=0) + points.max(axis=0)) / 2
        if self._center is None:
            self._center, self._distance = middle, self._needed(points, middle)
        self._center = self._center + (middle - self._center) * (1 - math.exp(-passed_s / CENTER_TIME_S))
        needed = self._needed(points, self._center)
        self._distance += (needed - self._distance) * (1 - math.exp(-passed_s / DISTANCE_TIME_S))
        distance = max(MARGIN * self._distance, LEAST_MARGIN * needed)
        return self._center + DIRECTION * distance, self._center

    def _needed(self, points: Points, center: Points) -> float:
        return distance_to_see(points, center, self._field_of_view_deg, self._aspect)
