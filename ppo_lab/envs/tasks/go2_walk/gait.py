"""The timing of a trot: pure functions of N envs and F feet."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def phase(steps: Tensor, steps_per_period: float) -> Tensor:
    """How much of the gait's period is behind, from 0 to 1 (N,). steps: (N,)."""
    return steps / steps_per_period % 1.0


def offsets(feet: Sequence[str], device: torch.device) -> Tensor:
    """How much later in the period each foot steps than the front left one (F,)."""
    return torch.tensor([0.0 if name[:2] in ("FL", "RR") else 0.5 for name in feet], device=device)


def clock(phase: Tensor, walks: Tensor) -> Tensor:
    """(N, 2): sine and cosine of the phase, 0 where the robot is to stand. phase, walks: (N,)."""
    angle = 2 * math.pi * phase
    return torch.stack([torch.sin(angle), torch.cos(angle)], dim=1) * walks.unsqueeze(1)


def swing(phase: Tensor, offsets: Tensor, stance_share: float, walks: Tensor) -> Tensor:
    """How much of its swing is behind each foot, from 0 to 1 (N, F); 0 where it is to be on the ground.

    Each foot begins its period with the stance.
    """
    of_foot = (phase.unsqueeze(1) + offsets) % 1.0
    behind = (of_foot - stance_share).clip(min=0.0) / max(1.0 - stance_share, 1e-6)
    return behind * walks.unsqueeze(1)


def swing_error(height: Tensor, swing: Tensor, ground: float, highest: float) -> Tensor:
    """How much lower than they are to be the feet are, summed (N,), in shares of the highest.

    In its swing a foot is to rise from `ground` to `highest` and come down, as half a wave. height, swing: (N, F).
    """
    wanted = ground + (highest - ground) * torch.sin(math.pi * swing)
    return ((wanted - height).clip(min=0.0) * (swing > 0)).sum(dim=1) / (highest - ground)
