"""What is written on the pictures of a film: which policy it is, what it is told and does, and its reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ppo_lab.deploy.grid import Picture

UNITS = {
    **{"_rad_s": "rad/s", "_m_s": "m/s", "_n_m": "N m"},
    **{"_deg": "deg", "_rad": "rad", "_m": "m", "_s": "s", "_w": "W"},
}
"""How a name ends that has the unit in it -> the unit."""
SMALLEST_FONT_PX = 10
LINES_PER_PICTURE = 22
MOST_LINES = 4
WHITE, GREEN, ORANGE = (255, 255, 255), (150, 230, 160), (255, 180, 80)


class Caption(NamedTuple):
    """The text on one picture."""

    title: str
    time_s: float
    reward: float
    """Summed up over the episode so far."""
    commands: Mapping[str, float]
    """Name, with its unit -> value."""
    measured: Mapping[str, float]
    ended: str
    """How an episode ended a moment ago; empty where none did."""


def quantity(name: str, value: float) -> str:
    """ "speed_m_s", 0.5 -> "speed 0.50 m/s" """
    for ending, unit in UNITS.items():
        if name.endswith(ending):
            return f"{name.removesuffix(ending).replace('_', ' ')} {value:.2f} {unit}"
    return f"{name.replace('_', ' ')} {value:.4g}"


def written(picture: Picture, caption: Caption) -> Picture:
    """A copy of the picture (H, W, 3): above title, time, reward and how an episode ended; below the rest."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    font = _font(max(SMALLEST_FONT_PX, image.height // LINES_PER_PICTURE))
    size = round(font.size)
    edge, line, outline = size // 2, round(1.25 * size), max(1, size // 8)

    def write(lines: Sequence[str], is_right: bool, top: int, color: tuple[int, int, int]) -> None:
        x, anchor = (image.width - edge, "ra") if is_right else (edge, "la")
        for number, text in enumerate(lines):
            at = x, top + number * line
            draw.text(at, text, color, font, anchor, stroke_width=outline, stroke_fill=(0, 0, 0))

    told = _listed("command", caption.commands)
    done = _listed("measured", caption.measured)
    write([caption.title], False, edge, WHITE)
    write([caption.ended], False, edge + line, ORANGE)
    write([f"{caption.time_s:.1f} s", f"reward {caption.reward:.2f}"], True, edge, WHITE)
    write(told, False, image.height - edge - len(told) * line, GREEN)
    write(done, True, image.height - edge - len(done) * line, WHITE)
    return np.asarray(image)


def _listed(heading: str, quantities: Mapping[str, float]) -> list[str]:
    rows = [quantity(name, value) for name, value in quantities.items()]
    return [heading, *rows[:MOST_LINES]] if rows else []


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    """The font that comes with Pillow."""
    font = ImageFont.load_default(size_px)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font
