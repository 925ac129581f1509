"""Counts the bytes of live tensors, operation by operation: what an allocator's counters say, on a CPU."""

from __future__ import annotations

import gc
import weakref
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveTensors(TorchDispatchMode):
    """While entered, knows how many bytes of tensor storage are alive on `device`, now and at the peak.

    A storage counts once, however many tensors view it, from the operation that returns it until it is freed, at
    the size it asked for. Storages that were alive on entry count too. Not seen: what an operation allocates and
    frees inside itself, and memory that torch only borrows (the simulator's arrays, numpy's).

    A subclass may answer an operation itself (`perform`) and follow each storage (`allocated`, `freed`); one that is
    resized goes, then comes.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.current_bytes = 0
        self.peak_bytes = 0
        self._alive: dict[int, int] = {}  # storage's key -> bytes

    def __enter__(self) -> Self:
        self.see_what_is_alive()
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self.perform(func, args, kwargs or {})
        for leaf in tree_iter(result):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf)
        return result

    def reset_peak(self) -> None:
        """Starts a new peak from what is alive now."""
        self.peak_bytes = self.current_bytes

    def see_what_is_alive(self) -> None:
        """Counts the tensors that were there before."""
        for thing in gc.get_objects():
            if issubclass(type(thing), torch.Tensor):
                self._see(thing)

    def perform(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The operation's result."""
        return func(*args, **kwargs)

    def allocated(self, key: int, size: int) -> None:
        """The storage `key` has come alive with `size` bytes. No other has this key until it is freed."""

    def freed(self, key: int) -> None:
        """The storage `key` is no more."""

    def _see(self, tensor: torch.Tensor) -> None:
        if tensor.device != self.device or tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        if not storage.resizable():  # borrowed
            return
        key = storage._cdata
        size = storage.nbytes()
        known = self._alive.get(key)
        if known == size:
            return
        if known is None:
            weakref.finalize(storage, self._forget, key).atexit = False
        else:  # resized
            self._forget(key)
        self._alive[key] = size
        self.current_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.current_bytes)
        self.allocated(key, size)

    def _forget(self, key: int) -> None:
        self.current_bytes -= self._alive.pop(key)
        self.freed(key)
