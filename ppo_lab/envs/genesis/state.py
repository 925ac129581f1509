"""The state of a Genesis scene: what its coming steps depend on."""

from __future__ import annotations

import re

import genesis as gs
import torch
from genesis.utils import array_class
from genesis.utils.array_class import DataItem, DataKind, ScalarItem
from torch import Tensor

CARRIED_OVER = re.compile(
    r"\.(collider_state\.(n_broad_pairs|broad_collision_pairs)|_is_forward_(pos|vel)_updated|"
    r"dyn_state\.geoms\.(pos|quat)|dyn_state\.dofs\.cdofd?_(ang|vel)|"
    r"dyn_state\.links\.(pos|quat|i_pos|i_quat|cd_ang|cd_vel|cinr_\w+|cfrc_coupling_\w+))$"
)
"""What Genesis derives in one step and reads in the next, beside what it calls STATE and INFO.

Recomputed instead, it would differ in the last bits. All else that is derived is written before it is read: a test
fills it with NaN and steps on, for every env. The pairs of shapes that may touch come in another order without those of
the step before, where a robot's trunk lies on the ground.
"""
NOT_KEPT_BEFORE = ("n_broad_pairs", "broad_collision_pairs")
"""What checkpoints from before it was found out lack."""

LOOKS = re.compile(r"\.links\.vgeom_(start|end)$")
"""Which of a scene's shapes for cameras belong to a link: a scene keeps its own, with looks or without."""


def simulator_state(scene: gs.Scene) -> dict[str, Tensor]:
    """What the coming steps of `scene` depend on, by the names of Genesis' arrays, on the CPU."""
    return {item.name: _read(item) for item in _carried_over(scene)}


def restore_simulator(scene: gs.Scene, state: dict[str, Tensor]) -> None:
    """Puts `scene`, built alike and not stepped since, in the `state` that `simulator_state` read.

    What Genesis' own `Scene.__setstate__` does, without the copy of all derived arrays that it needs.
    """
    scene._sim._restart()
    scene.rigid_solver._restart()
    items = _carried_over(scene)
    own = {item.name: _read(item) for item in items if LOOKS.search(item.name)}
    array_class.fill_data(items, state | own)


def from_older_version(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state that an older version may have read, with what it lacks of the scene's `own`."""
    return {name: value for name, value in own.items() if name.endswith(NOT_KEPT_BEFORE)} | state


def _carried_over(scene: gs.Scene) -> list[DataItem]:
    items = scene._sim.data(frozenset({DataKind.INFO, DataKind.STATE, DataKind.DERIVED, DataKind.SCRATCH}))
    return [item for item in items if item.kind in (DataKind.INFO, DataKind.STATE) or CARRIED_OVER.search(item.name)]


def _read(item: DataItem) -> Tensor:
    if isinstance(item, ScalarItem):
        return torch.tensor(getattr(item.owner, item.attr))
    return torch.as_tensor(array_class.data_to_array(item.array, to_torch=False, copy=True))
