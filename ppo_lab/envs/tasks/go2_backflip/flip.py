"""The geometry and the timing of a backflip: pure functions of N envs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

STANDING_M = 0.1
"""The error of the height at which standing is worth 1/e."""


def phase(steps: Tensor, max_episode_length: int) -> Tensor:
    """(N, 6): sine and cosine of f, f/2 and f/4, where f grows from 0 to pi over the episode. steps: (N,)."""
    f = math.pi * steps.unsqueeze(1) / max_episode_length
    return torch.cat([wave(f / part) for part in (1, 2, 4) for wave in (torch.sin, torch.cos)], dim=1)


def clock(time_s: Tensor, interval_s: float, flips: int, begins_s: float) -> tuple[Tensor, Tensor]:
    """Seconds on the clock of the present flip (N,), and the flips that are behind (N,). time_s: (N,).

    A flip begins `begins_s` before its clock says so: the clock of the second goes on from there.
    """
    behind = ((time_s - begins_s) / interval_s).floor().clip(0, flips - 1)
    return time_s - behind * interval_s, behind


def within(clock_s: Tensor, window: Sequence[float]) -> Tensor:
    """1 within the window, else 0 (N,)."""
    return ((clock_s > window[0]) & (clock_s < window[1])).float()


def progress(clock_s: Tensor, window: Sequence[float]) -> Tensor:
    """How much of the window is behind, 0 to 1 (N,)."""
    return ((clock_s - window[0]) / (window[1] - window[0])).clip(0.0, 1.0)


def projected_gravity(turns: Tensor) -> Tensor:
    """Gravity (N, 3) in the frame of a base that stood level and has turned backwards so often. turns: (N,)."""
    angle = 2 * math.pi * turns
    return torch.stack([-torch.sin(angle), torch.zeros_like(angle), -torch.cos(angle)], dim=1)


def mirror(joints: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each joint the one on the other side (J,), and the sign that its motion has there (J,): -1 for hips."""
    mirrored = [joints.index(name[0] + {"L": "R", "R": "L"}[name[1]] + name[2:]) for name in joints]
    signs = [-1.0 if "hip" in name else 1.0 for name in joints]
    return torch.tensor(mirrored, device=device), torch.tensor(signs, device=device)


def sides(feet: Sequence[str], device: torch.device) -> Tensor:
    """1 for a left foot, -1 for a right one (F,)."""
    return torch.tensor([1.0 if name[1] == "L" else -1.0 for name in feet], device=device)


def asymmetry(actions: Tensor, mirrored: Tensor, sign: Tensor) -> Tensor:
    """Squared distance between left and right actions (N,), each pair once. actions: (N, J)."""
    return (actions - actions[:, mirrored] * sign).square().sum(dim=1) / 2


def stance_error(feet: Tensor, sides: Tensor, width: float) -> Tensor:
    """Squared distance of the feet's sideways places from half the width on their sides, summed (N,), m^2.

    feet: (N, F, 3) in the base's frame; sides: (F,), see `sides`.
    """
    return (feet[..., 1] - sides * width / 2).square().sum(dim=1)


def standing(gravity: Tensor, height: Tensor, target: float) -> Tensor:
    """Cosine of the tilt, 0 where it is upside down, times exp(-|height - target| / STANDING_M) (N,).

    The slope is as steep near the target as far from it. gravity: (N, 3) in the base's frame; height: (N,), m.
    """
    return (-gravity[:, 2]).clip(min=0.0) * torch.exp(-(height - target).abs() / STANDING_M)
