"""Event files of TensorBoard that hold one thing, and are replaced as a whole."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from ppo_lab.runs.files import write_atomically


def replace_events(folder: Path, pattern: str, values: Mapping[int, Sequence[Summary.Value]]) -> None:
    """Writes an event of values for each step, and removes the files of `pattern` from before. Raises an OSError.

    The file is a new one each time, which an open TensorBoard reads: `pattern` with the time in the place of its star.
    """

    def write(file: IO[bytes]) -> None:
        records = RecordWriter(file)
        records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        for step, of_step in values.items():
            event = Event(wall_time=time.time(), step=step, summary=Summary(value=of_step))
            records.write(event.SerializeToString())

    before = list(folder.glob(pattern))
    write_atomically(folder / pattern.replace("*", str(time.time_ns())), write)
    for path in before:
        path.unlink()


def show_scalars(folder: Path, rows: Mapping[int, Mapping[str, float]]) -> None:
    """Puts rows, step -> tag -> value, into `folder`, which has no others, instead of those before."""
    values = {
        step: [Summary.Value(tag=tag, simple_value=value) for tag, value in row.items()] for step, row in rows.items()
    }
    replace_events(folder, "events.out.tfevents.*", values)


def show_film(folder: Path, name: str, gif: Path, size: tuple[int, int], step: int) -> None:
    """Puts a GIF among TensorBoard's images as Film/<name>, where it moves, instead of the one before.

    Its event file lies in `folder`, beside the films, and not in the run's: while a run trains, TensorBoard may read
    only the newest file of a folder.
    """
    image = Summary.Image(width=size[0], height=size[1], colorspace=3, encoded_image_string=gif.read_bytes())
    replace_events(
        folder, f"events.out.tfevents.*.film_{name}", {step: [Summary.Value(tag=f"Film/{name}", image=image)]}
    )
