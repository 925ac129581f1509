"""Says when the simulator compiles kernels, which takes most of a first start."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import Any

from quadrants.lang import impl

log = logging.getLogger(__name__)

LOCKED_S = 10.0
"""A lock that is older is nobody's."""
FIRST = "compiling kernels of the simulator, which it keeps for later runs: a minute or so where it has none yet"


def remove_stale_lock() -> None:
    """Removes the lock of the kernels' cache that a killed process has left.

    Quadrants neither reads nor writes a locked cache, and never removes another's lock: each start would compile anew.
    It holds the lock for the moment in which it reads or writes its list of kernels.
    """
    lock = Path(impl.default_cfg().offline_cache_file_path) / "kernel_compilation_manager" / "qdcache.lock"
    with contextlib.suppress(OSError):  # there is none, or another process has just removed it
        if time.time() - lock.stat().st_mtime > LOCKED_S:
            lock.unlink()
            log.debug("removed %s, which a killed process has left", lock)


def tell_when_compiled() -> None:
    """From now on the first kernel that is compiled, and not found in the cache, is an info, and each one a debug line.

    To be called once in a process, before a scene is built. Quadrants tells with every kernel that it looks up whether
    it had to compile it.
    """
    look_up, compiled = impl.Program.compile_kernel, 0

    def compile_kernel(*args: Any) -> Any:
        nonlocal compiled
        result = look_up(*args)
        if not result.cache_hit:
            compiled += 1
            if compiled == 1:
                log.info(FIRST)
            log.debug("kernels compiled: %d", compiled)
        return result

    impl.Program.compile_kernel = compile_kernel
