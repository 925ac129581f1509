"""Reward terms: pure functions from batched state to one number per env.

N envs, J joints. Velocities are in the robot's own frame, m/s and rad/s; angles are in rad, lengths in m.
Each returns (N,); weights, signs and the time step are applied by the caller.
"""

import math

import torch
from torch import Tensor


def tracking(command: Tensor, velocity: Tensor, sigma: float) -> Tensor:
    """exp(-|command - velocity|^2 / sigma), 1 at perfect tracking. command, velocity: (N, D); sigma: velocity^2."""
    return torch.exp(-torch.sum(torch.square(command - velocity), dim=1) / sigma)


def squared_deviation(value: Tensor, target: float = 0.0) -> Tensor:
    """(value - target)^2. value: (N,)."""
    return torch.square(value - target)


def squared_change(now: Tensor, before: Tensor) -> Tensor:
    """|now - before|^2. now, before: (N, A) actions."""
    return torch.sum(torch.square(now - before), dim=1)


def absolute_deviation(joint_pos: Tensor, default_joint_pos: Tensor) -> Tensor:
    """Sum over joints of |position - default|. joint_pos: (N, J); default_joint_pos: (J,)."""
    return torch.sum(torch.abs(joint_pos - default_joint_pos), dim=1)


def approach(rel_pos: Tensor, last_rel_pos: Tensor) -> Tensor:
    """How much nearer the target came, in squared distance, m^2. rel_pos, last_rel_pos: (N, 3)."""
    return torch.sum(torch.square(last_rel_pos), dim=1) - torch.sum(torch.square(rel_pos), dim=1)


def heading(yaw_deg: Tensor, decay: float) -> Tensor:
    """exp(decay * |yaw|) with yaw in rad, 1 when facing ahead. yaw_deg: (N,) degree; decay: negative, per rad."""
    yaw = torch.deg2rad(torch.where(yaw_deg > 180.0, yaw_deg - 360.0, yaw_deg))
    return torch.exp(decay * torch.abs(yaw))


def spin(base_ang_vel: Tensor) -> Tensor:
    """Angular speed in half turns per second. base_ang_vel: (N, 3)."""
    return torch.linalg.vector_norm(base_ang_vel / math.pi, dim=1)
