"""Standard output and standard error that outlive their reader. Standard library only."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any

READER_IS_GONE = (errno.EPIPE, errno.EIO)
"""What writing gives on a pipe without a reader, and on a terminal that was closed."""


def outlive_readers(and_full_disks: bool = False) -> None:
    """From now on, what this process prints and nobody can read any more is dropped, and is no error.

    `and_full_disks`: neither is any other failure to print, as on a full disk. For programs whose output is not their
    result.
    """
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream: Any = getattr(sys, name)
        if stream is None:  # the process was started without it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123
        elif stream is getattr(sys, f"__{name}__") and not isinstance(stream.buffer, _Output):  # nor a test's
            stream.flush()
            output: Any = _Output(descriptor, and_full_disks)
            lasting = io.TextIOWrapper(output, stream.encoding, "backslashreplace", None, stream.line_buffering)
            setattr(sys, name, lasting)
            setattr(sys, f"__{name}__", lasting)  # or the simulator would take it for a notebook's


class _Output(io.FileIO):
    """The file of a standard stream. A write that fails as is foreseen counts as done.

    There is no BufferedWriter above it, which a signal handler must not enter while it writes.
    """

    def __init__(self, descriptor: int, may_fail: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._may_fail = may_fail

    def write(self, data: Any) -> int:
        left = memoryview(data)
        try:
            while left:
                written = super().write(left)
                if written is None:  # the reader made it non-blocking, and is slow
                    select.select([], [self], [])
                else:
                    left = left[written:]
        except OSError as error:
            if not self._may_fail and error.errno not in READER_IS_GONE:
                raise
        return len(data)
