"""Moving pictures in files, written and read picture by picture: memory does not grow with their length.

Pictures and sizes are those of `ppo_lab.deploy.grid`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image

from ppo_lab.deploy.grid import Picture, Size, is_blank

GIF_COLORS = 64


class _Format(NamedTuple):
    codec: str
    pixels: str
    options: Mapping[str, str] = MappingProxyType({})
    of_container: Mapping[str, str] = MappingProxyType({})


H264 = _Format("libx264", "yuv420p", {"crf": "23", "preset": "faster"}, {"movflags": "+faststart"})
LOSSLESS = _Format("libx264rgb", "rgb24", {"crf": "0", "preset": "ultrafast"})
GIF = _Format("gif", "pal8")


class Writer:
    """A film that is being written."""

    def __init__(self, container: Any, stream: Any, given: str) -> None:
        self._container, self._stream, self._given = container, stream, given

    def add(self, picture: Any) -> None:
        """The next picture; for a GIF, the numbers of its colours (H, W), and the colours (256, 4)."""
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(picture, format=self._given)))

    def end(self) -> None:
        self._container.mux(self._stream.encode(None))


def mp4(path: Path, fps: Fraction, size: Size) -> AbstractContextManager[Writer]:
    """Opens a film in H.264, which every browser plays, and begins to before all is loaded. Both of `size` are even."""
    return _open(path, H264, fps, size)


def lossless(path: Path, fps: Fraction, size: Size) -> AbstractContextManager[Writer]:
    """Opens an mkv that gives back what it was given."""
    return _open(path, LOSSLESS, fps, size)


@contextmanager
def _open(path: Path, kind: _Format, fps: Fraction, size: Size, given: str = "rgb24") -> Iterator[Writer]:
    with av.open(str(path), "w", options=dict(kind.of_container)) as container:
        stream: Any = container.add_stream(kind.codec, rate=fps, options=dict(kind.options))
        stream.width, stream.height = size
        stream.pix_fmt = kind.pixels
        writer = Writer(container, stream, given)
        yield writer
        writer.end()


def pictures(path: Path) -> Iterator[Picture]:
    """The pictures of a film, in order. Raises an av.FFmpegError where it cannot be read."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)


def write_gif(path: Path, film: Path, samples: Sequence[Picture], fps: Fraction, every: int, width: int) -> None:
    """A GIF of one picture in `every` of the film, as long as the film and no wider than `width`.

    Args:
        path: the GIF's.
        film: the film's.
        samples: pictures of the film, whose colours stand for all of its.
        fps: the film's.
        every: as above.
        width: as above, pixels.
    """
    colors = Image.fromarray(np.concatenate([np.asarray(_narrow(sample, width)) for sample in samples]))
    palette = colors.quantize(GIF_COLORS, method=Image.Quantize.MAXCOVERAGE, kmeans=2)  # keeps those of little text
    table = np.full((256, 4), 255, dtype=np.uint8)  # opaque; then red, green, blue
    rows = np.reshape(palette.getpalette() or [], (-1, 3))
    table[: len(rows), 1:] = rows
    size = _narrow(samples[0], width).size
    with _open(path, GIF, fps / every, size, given="pal8") as writer:
        for number, picture in enumerate(pictures(film)):
            if number % every == 0:
                numbers = _narrow(picture, width).quantize(palette=palette, dither=Image.Dither.NONE)
                writer.add((np.asarray(numbers), table))


def _narrow(picture: Picture, width: int) -> Image.Image:
    image = Image.fromarray(picture)
    if image.width <= width:
        return image
    return image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)


def flaw(path: Path, frames: int, size: Size, seconds: float) -> str | None:
    """What is wrong with a film that should have all this; None where nothing is. It is read to its end."""
    try:
        are_blank = [is_blank(picture) for picture in pictures(path)]
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            found = stream.width, stream.height
            lasts_s = float(container.duration or 0) / 1e6
    except (av.FFmpegError, IndexError) as error:
        return f"cannot be read again: {error}"
    if len(are_blank) != frames:
        return f"has {len(are_blank)} frames instead of {frames}"
    if any(are_blank):
        return f"shows nothing in {sum(are_blank)} of {frames} frames"
    if found != size:
        return f"is {found[0]} x {found[1]} instead of {size[0]} x {size[1]}"
    if abs(lasts_s - seconds) > seconds / frames:
        return f"lasts {lasts_s:.2f} s instead of {seconds:.2f} s"
    return None
