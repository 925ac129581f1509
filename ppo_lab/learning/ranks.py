"""The processes that train one run together: today there is one."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ppo_lab.contracts import Ranks, State

log = logging.getLogger(__name__)


class SingleProcess:
    """A run of one process. `ppo_lab.contracts.Ranks` is the contract."""

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


def current_ranks() -> Ranks:
    """The ranks of this process. A WORLD_SIZE that no launcher set, as some cluster images do, is ignored."""
    world_size = os.environ.get("WORLD_SIZE", "")
    if world_size.isdecimal() and int(world_size) > 1:
        log.info("WORLD_SIZE=%s is ignored: one process trains this run", world_size)
    return SingleProcess()
