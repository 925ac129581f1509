"""Pictures side by side. A picture is (H, W, 3) uint8, RGB; a size is width and height, in pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Size = tuple[int, int]


LEAST_CONTRAST = 8
"""Between the darkest and the brightest value of a picture, of 0 to 255, or else it shows nothing."""


def is_blank(picture: Picture) -> bool:
    """Whether it is black all over, or of any other colour."""
    lowest, highest = picture.min(axis=(0, 1)), picture.max(axis=(0, 1))
    return int((highest.astype(int) - lowest).max()) < LEAST_CONTRAST


def columns_of(count: int) -> int:
    """Of a grid of so many pictures: 1, 2, 2, 2, 3, 3, ..."""
    return math.ceil(math.sqrt(count))


def tile_size(size: Size, count: int) -> Size:
    """The size of each of so many pictures in a film, both even."""
    columns = columns_of(count)
    rows = -(-count // columns)
    return size[0] // columns // 2 * 2, size[1] // rows // 2 * 2


def tiled(tiles: Sequence[Picture], columns: int, size: Size | None = None) -> Picture:
    """Pictures of one size side by side, row by row, black where there is none.

    Args:
        tiles: one or more.
        columns: in a row.
        size: of the result, at least what the pictures take; None: just that.
    """
    height, width, _ = tiles[0].shape
    rows = -(-len(tiles) // columns)
    all_width, all_height = size or (columns * width, rows * height)
    whole = np.zeros((all_height, all_width, 3), dtype=np.uint8)
    for number, tile in enumerate(tiles):
        top, left = number // columns * height, number % columns * width
        whole[top : top + height, left : left + width] = tile
    return whole
