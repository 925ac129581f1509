"""The processes that train one run together: today there is one."""

from __future__ import annotations

from torch import Tensor


class SingleProcess:
    """A run of one process. `ppo_lab.contracts.Ranks` is the contract."""

    rank = 0
    world_size = 1

    def reduce_mean(self, values: Tensor) -> None:
        pass

    def broadcast(self, values: Tensor) -> None:
        pass

    def barrier(self) -> None:
        pass
