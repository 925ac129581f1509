"""The processes that train one run together, over torch.distributed. `ppo_lab.contracts.Ranks` is the contract."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore
from torch.distributed.rendezvous import rendezvous

from ppo_lab.errors import RankLostError
from ppo_lab.learning.shared_mean import SharedMean, reserve
from ppo_lab.machine.launch import Position

if TYPE_CHECKING:
    from torch import Tensor

    from ppo_lab.contracts import State

TIMEOUT = timedelta(minutes=30)
"""The longest that ranks wait for each other, as when one compiles the simulator's kernels and the others do not."""
HERE = "ppo_lab/here/{}"
LARGE = 10_000
"""Numbers from which on sharing memory is faster than gloo."""
SIZE_BYTES, SMALL_BYTES = 8, 8192
"""What `exchange` sends: the size, and as much as fits; all of it where that is not all. An iteration's record has
some 2000 bytes."""
POLL_S = 0.02
REPORT = "ppo_lab/failed/{}"
"""Where a rank that fails leaves its report, in the store of the process group."""


class SingleProcess:
    """A run of one process."""

    rank = 0
    world_size = 1

    def reduce_mean(self, values: Tensor) -> None:
        pass

    def broadcast(self, values: Tensor) -> None:
        pass

    def exchange(self, value: State) -> list[State]:
        return [value]

    def gather(self, value: State) -> list[State]:
        return [value]

    def scatter(self, values: Sequence[State]) -> State:
        return values[0]


class TorchRanks:
    """The ranks of torch's default process group: gloo for tensors on the CPU, NCCL for those on GPUs.

    Ranks of one machine reduce large tensors on the CPU in memory that they share.
    """

    def __init__(
        self,
        position: Position,
        on_gpu: bool,
        listener: int | None = None,
        raise_if_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """Connects with the other ranks, by the variables that torchrun sets; returns when all are there.

        Args:
            position: of this process.
            on_gpu: whether tensors on a GPU are reduced, too.
            listener: on rank 0 of ranks that it started, the socket that they connect to.
            raise_if_lost: asked while they are not there yet.
        """
        self.rank, self.world_size = position.rank, position.world_size
        self._can_share = position.local_world_size == position.world_size
        self._shared: SharedMean | None = None
        if listener is None:
            self._store, *_ = next(rendezvous("env://", position.rank, position.world_size, timeout=TIMEOUT))
        else:
            self._store = TCPStore(
                *("127.0.0.1", 0, position.world_size, True, TIMEOUT), wait_for_workers=False, master_listen_fd=listener
            )
        self._store.set(HERE.format(position.rank), b"")
        everyone = [HERE.format(rank) for rank in range(position.world_size)]
        while not self._store.check(everyone):
            raise_if_lost()
            time.sleep(POLL_S)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=self._store,
            rank=position.rank,
            world_size=position.world_size,
            timeout=TIMEOUT,
        )

    def reduce_mean(self, values: Tensor) -> None:
        is_suitable = values.dtype == torch.float32 and values.device.type == "cpu" and values.is_contiguous()
        if self._can_share and is_suitable and values.numel() >= LARGE:
            shared = self._shared_mean(values.numel())
            if shared:
                shared(values)
                return
        self._try(lambda: dist.all_reduce(values))
        values /= self.world_size

    def _shared_mean(self, numbers: int) -> SharedMean | None:
        """For so many numbers; made when it is first asked for, by all ranks. None where they cannot share memory."""
        if self._shared is None or self._shared.numbers != numbers:
            path = None if self.rank else reserve(self.world_size, numbers)
            name = self.exchange({"path": str(path) if path else None})[0]["path"]
            self._shared = None
            with contextlib.suppress(OSError):
                self._shared = name and SharedMean(Path(name), self.rank, self.world_size, numbers, self._meet)
            self._can_share = all(seen["open"] for seen in self.exchange({"open": bool(self._shared)}))
            if path:
                path.unlink()
        return self._shared if self._can_share else None

    def _meet(self) -> None:
        self._try(lambda: dist.all_reduce(torch.zeros(1)))

    def broadcast(self, values: Tensor) -> None:
        self._try(lambda: dist.broadcast(values, src=0))

    def exchange(self, value: State) -> list[State]:
        content = _to_text(value) or _to_bytes(value)
        own = len(content).to_bytes(SIZE_BYTES, "big") + content
        all_bytes = self._all_gather(own, SMALL_BYTES)
        ends = [SIZE_BYTES + int.from_bytes(each[:SIZE_BYTES], "big") for each in all_bytes]
        if max(ends) > SMALL_BYTES:
            all_bytes = self._all_gather(own, max(ends))
        return [_from_bytes(each[SIZE_BYTES:end]) for each, end in zip(all_bytes, ends, strict=True)]

    def _all_gather(self, own: bytes, count: int) -> list[bytes]:
        """The first `count` bytes of all ranks' `own`, which is padded where it has fewer."""
        parts = [torch.empty(count, dtype=torch.uint8) for _ in range(self.world_size)]
        self._try(lambda: dist.all_gather(parts, _as_tensor(own[:count].ljust(count, b"\0"))))
        return [part.numpy().tobytes() for part in parts]

    def gather(self, value: State) -> list[State]:
        if self.rank:
            self._send(value, to=0)
            return []
        return [value, *(self._receive(rank) for rank in range(1, self.world_size))]

    def scatter(self, values: Sequence[State]) -> State:
        if self.rank:
            return self._receive(0)
        for rank in range(1, self.world_size):
            self._send(values[rank], to=rank)
        return values[0]

    def report(self, failure: State) -> None:
        """Tells rank 0, through the store, why this rank ends."""
        self._store.set(REPORT.format(self.rank), _to_bytes(failure))

    def failure(self) -> tuple[int, State] | None:
        """The first rank that reported a failure, and its report."""
        for rank in range(self.world_size):
            try:
                if self._store.check([REPORT.format(rank)]):
                    content = self._store.get(REPORT.format(rank))
                    return rank, _from_bytes(content)
            except RuntimeError:  # rank 0 had the store, and is gone
                return None
        return None

    def close(self) -> None:
        """Leaves the process group."""
        dist.destroy_process_group()

    def _send(self, value: State, to: int) -> None:
        content = _as_tensor(_to_bytes(value))
        self._try(lambda: dist.send(torch.tensor([len(content)]), to))
        self._try(lambda: dist.send(content, to))

    def _receive(self, rank: int) -> State:
        size = torch.zeros(1, dtype=torch.int64)
        self._try(lambda: dist.recv(size, rank))
        content = torch.zeros(int(size), dtype=torch.uint8)
        self._try(lambda: dist.recv(content, rank))
        return _from_bytes(content.numpy().tobytes())

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except RuntimeError as error:
            raise RankLostError("another rank is gone") from error


def is_loss(error: BaseException) -> bool:
    """Whether `error` says that another rank is gone: ours, or gloo's own where rsl_rl reduces a normalizer."""
    return isinstance(error, RankLostError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _to_text(value: State) -> bytes | None:
    """As JSON, a tenth of the work; None where it holds tensors. Tuples would come back as lists: there are none."""
    try:
        return json.dumps(value).encode()
    except TypeError:
        return None


def _to_bytes(value: State) -> bytes:
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


def _from_bytes(content: bytes) -> State:
    """What `_to_text` or `_to_bytes` was given. A file of torch is a zip archive, and does not begin with a brace."""
    if content.startswith(b"{"):
        return json.loads(content)
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _as_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
