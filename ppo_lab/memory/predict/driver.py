"""Asks the CUDA driver about a GPU, without torch."""

from __future__ import annotations

import ctypes

MEMORY_POOLS_SUPPORTED = 115
"""CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED of cuda.h."""


def has_memory_pools() -> bool | None:
    """Whether the first visible GPU, which the simulator uses, has memory pools; None where the driver does not say.

    Creates no CUDA context.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    gpu, answer = ctypes.c_int(), ctypes.c_int()
    refused = (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(gpu), 0)
        or cuda.cuDeviceGetAttribute(ctypes.byref(answer), MEMORY_POOLS_SUPPORTED, gpu)
    )
    return None if refused else bool(answer.value)
