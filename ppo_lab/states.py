"""Whether a saved state fits what is to take it. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

NAMED = 4
"""Differences in a message."""


def check_fits(owner: str, saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raises a ValueError that names what only one of `saved` and `own` has, and tensors of another shape or dtype.

    Args:
        owner: who has `own`, for the message.
        saved: tensors and plain data by name, as they are to be put back.
        own: the same of the owner as it is now.
    """
    differences = [f"the saved state has no {name}, which {owner} has" for name in own if name not in saved]
    differences += [f"{owner} has no {name}, which the saved state has" for name in saved if name not in own]
    for name in own:
        if name in saved and (ours := _kind(own[name])) != (theirs := _kind(saved[name])):
            differences.append(f"{name} of {owner} is {ours}, and {theirs} in the saved state")
    if differences:
        more = len(differences) - NAMED
        raise ValueError("; ".join([*islice(differences, NAMED), *([f"and {more} more"] if more > 0 else [])]))


def _kind(value: Any) -> str:
    """Shape and dtype of a tensor; the type of anything else."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__
