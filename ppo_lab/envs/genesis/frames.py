"""Rotations between world and body frames, of N bodies at once. Quaternions are w x y z."""

from __future__ import annotations

from genesis.utils.geom import inv_quat, quat_to_xyz, transform_by_quat, transform_quat_by_quat
from torch import Tensor


def in_frame(quat: Tensor, vector: Tensor) -> Tensor:
    """World vectors (N, 3) or (3,) as seen from frames with orientations `quat` (N, 4)."""
    return transform_by_quat(vector, inv_quat(quat))


def euler_deg(quat: Tensor, init_quat: Tensor) -> Tensor:
    """Roll, pitch and yaw (N, 3) in degree of `quat` (N, 4) relative to `init_quat` (4,)."""
    return quat_to_xyz(transform_quat_by_quat(inv_quat(init_quat), quat), rpy=True, degrees=True)
