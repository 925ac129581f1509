"""Recognizes that a run ran out of memory, by its error; and frees what the failed calls held."""

from __future__ import annotations

import errno
import gc
import re
import traceback
from collections.abc import Iterator

import torch

MESSAGES = re.compile(
    r"out[ _]of[ _]memory|out of cuda pre-allocated memory|(cannot|can't) allocate memory|alloc_failed|bad_alloc", re.I
)
"""Of torch, CUDA, cuBLAS, LLVM, the system and the simulator, which raises a RuntimeError."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, or an error that caused it, says that a GPU or the host had no memory left."""
    return any(
        isinstance(one, MemoryError | torch.OutOfMemoryError)
        or (isinstance(one, OSError) and one.errno == errno.ENOMEM)
        or MESSAGES.search(str(one))
        for one in _with_causes(error)
    )


def free_memory_held_by(error: BaseException) -> None:
    """Frees the local variables of the calls that raised `error`, which have ended, and torch's cache of the GPU."""
    for one in _with_causes(error):
        traceback.clear_frames(one.__traceback__)
    gc.collect()
    torch.cuda.empty_cache()


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    left, seen = [error], {id(error)}
    while left:
        one = left.pop()
        yield one
        more = [cause for cause in (one.__cause__, one.__context__) if cause and id(cause) not in seen]
        seen.update(map(id, more))
        left += more
