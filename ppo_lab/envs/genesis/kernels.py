"""Says when the simulator compiles kernels, which takes most of a first start."""

from __future__ import annotations

import logging
from typing import Any

from quadrants.lang import impl

log = logging.getLogger(__name__)

FIRST = "compiling kernels of the simulator, which it keeps for later runs: a minute or so where it has none yet"


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
