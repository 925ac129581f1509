"""That a run ran out of memory, whoever says so and however; and that what it held is let go."""

from __future__ import annotations

import errno
import gc
import re
import traceback
from collections.abc import Iterator

import torch

SAYS_SO = re.compile(
    r"out[ _]of[ _]memory|out of cuda pre-allocated memory|(cannot|can't) allocate memory|alloc_failed|bad_alloc", re.I
)
"""torch, CUDA, cuBLAS, LLVM, the system and the simulator, which raises a RuntimeError, each in its own words."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, or what it came of, says that there was no memory left, of a GPU or of the host."""
    return any(
        isinstance(one, MemoryError | torch.OutOfMemoryError)
        or (isinstance(one, OSError) and one.errno == errno.ENOMEM)
        or SAYS_SO.search(str(one))
        for one in _and_its_causes(error)
    )


def let_go(error: BaseException) -> None:
    """Frees what is held by the calls that `error` came through, which have ended, and torch's cache of the GPU."""
    for one in _and_its_causes(error):
        traceback.clear_frames(one.__traceback__)
    gc.collect()
    torch.cuda.empty_cache()


def _and_its_causes(error: BaseException) -> Iterator[BaseException]:
    left, seen = [error], {id(error)}
    while left:
        one = left.pop()
        yield one
        more = [cause for cause in (one.__cause__, one.__context__) if cause and id(cause) not in seen]
        seen.update(map(id, more))
        left += more
