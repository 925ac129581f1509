"""The simulator's arrays: what they hold on a CPU, and what they would on a GPU."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import genesis as gs
import numpy as np
import quadrants as qd
import torch
from genesis.utils import array_class
from genesis.utils.array_class import ArrayItem, ConfigItem, DataItem, DataKind


def count_arrays(scene: Any) -> tuple[dict[str, int], int, dict[str, int]]:
    """Of a gs.Scene: bytes by kind, how many more on a GPU, and what is not 0 of what is told once."""
    arrays = list(scene._sim.data(frozenset(DataKind)))
    by_kind = _bytes_by_kind(arrays)
    if not scene.rigid_solver.is_active:
        return by_kind, 0, {"gpu_arrays": _count(arrays)}
    solver = scene.rigid_solver
    scratch = gpu_scratch(solver)
    difference_bytes = scratch.pop("difference_bytes") + _islands_difference_bytes(solver)
    scratch["gpu_arrays"] += _count(arrays)
    rows = {"len_constraints": solver.constraint_solver.len_constraints, "n_dofs": solver.n_dofs}
    return by_kind, difference_bytes, scratch | rows


def gpu_scratch(solver: Any) -> dict[str, int]:
    """How the collider's arrays would differ on a GPU, from Genesis' own allocators; gpu_arrays: how many come to them.

    On a CPU each env has one state of the GJK algorithm. On a GPU a queue takes its place, and the states belong to
    threads: small ones to those of the first contact pass (the fewest whole multiples of the envs that fill the
    cores), full ones to one thread per core; see genesis/engine/solvers/rigid/collider/collider.py.
    """
    collider = solver.collider
    if not collider.collider_config.has_non_box_plane_convex_convex:
        return {"difference_bytes": 0, "gpu_thread_bytes": 0, "gpu_core_bytes": 0, "gpu_arrays": 0}

    def full_state(threads: int) -> Any:
        return array_class.get_gjk_state(threads, solver.rigid_config, collider.gjk._gjk_info, False)

    mpr_bytes, _ = _bytes_per_thread(array_class.get_mpr_state)
    contact_bytes, contact_constant_bytes = _bytes_per_thread(array_class.get_gjk_state_contact_only)
    full_bytes, full_constant_bytes = _bytes_per_thread(full_state)
    queued = array_class.get_collider_state(
        solver,
        solver.rigid_config,
        max(collider._n_possible_pairs, 1),
        collider.collider_info,
        collider.collider_config,
        split_narrowphase=True,
    )
    queue_bytes = _struct_bytes(queued) - _struct_bytes(collider.collider_state)
    states_bytes = contact_constant_bytes + full_constant_bytes - _struct_bytes(collider.gjk.gjk_state)
    return {
        "difference_bytes": queue_bytes + states_bytes,
        "gpu_thread_bytes": contact_bytes + mpr_bytes,
        "gpu_core_bytes": full_bytes + mpr_bytes,
        "gpu_arrays": _count(_arrays(array_class.get_gjk_state_contact_only(1)))
        + 2 * _count(_arrays(array_class.get_mpr_state(1))),
    }


def _islands_difference_bytes(solver: Any) -> int:
    """How many bytes more the constraint islands' arrays take on a GPU: their contacts and work lists.

    From Genesis' own allocator under the switches that it sets for a GPU (RigidSolver._build_static_config). Where they
    depend on the card, the larger is taken: with performance_mode, few enough envs for the cooperative kernels; and
    work lists for islands of up to 256 dofs, more than the shared memory of any card holds.
    """
    config = solver.rigid_config
    is_generic = gs.use_ndarray
    is_tiled = not config.requires_grad and solver.n_dofs >= (1 if is_generic else 16)
    on_gpu = type(config)(
        **{name: getattr(config, name) for name in type(config).__annotations__}
        | {
            "sparse_solve": False,
            "enable_tiled_island_seed": is_tiled,
            "enable_cooperative_constraint_kernels": is_tiled,
            "constraint_layout_batch_first": is_tiled,
            "island_tile_cap_first": 32,
            "island_tile_cap_last": 256,
        }
    )
    needed = ("_B", "n_links", "n_dofs", "n_trees_", "_use_hibernation")
    as_on_gpu = SimpleNamespace(rigid_config=on_gpu, **{name: getattr(solver, name) for name in needed})
    constraints = solver.constraint_solver
    islands = array_class.get_island_state(as_on_gpu, solver.collider, constraints.len_constraints_)
    return _struct_bytes(islands) - _struct_bytes(constraints.constraint_state.island)


def _bytes_per_thread(allocate: Any) -> tuple[int, int]:
    """Bytes that one more thread takes, and those that do not depend on their number."""
    one, two = _struct_bytes(allocate(1)), _struct_bytes(allocate(2))
    return two - one, 2 * one - two


def _struct_bytes(struct: Any) -> int:
    return sum(_bytes_by_kind(_arrays(struct)).values())


def _arrays(struct: Any) -> Iterable[DataItem | ConfigItem]:
    return array_class.iter_data(SimpleNamespace(it=struct), "it")


def _count(items: Iterable[DataItem | ConfigItem]) -> int:
    """How many of `items` are arrays of the simulator."""
    return sum(isinstance(item, ArrayItem) and not isinstance(item.array, torch.Tensor) for item in items)


def _bytes_by_kind(items: Iterable[DataItem | ConfigItem]) -> dict[str, int]:
    """Bytes of the arrays among `items`, those of torch left out."""
    sizes: Counter[str] = Counter()
    for item in items:
        if isinstance(item, ArrayItem) and not isinstance(item.array, torch.Tensor):
            sizes[item.kind.name.lower()] += _nbytes(item.array)
    return dict(sizes)


def _nbytes(array: Any) -> int:
    element = array.element_shape if isinstance(array, (qd.VectorTensor, qd.MatrixTensor)) else ()
    return math.prod((*array.shape, *element)) * np.dtype(qd.lang.util.to_numpy_type(array.dtype)).itemsize
