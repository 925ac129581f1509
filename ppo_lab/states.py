"""What an object holds that its coming steps depend on: gathered from its attributes, compared, and put back.

What counts as state: tensors, numbers, torch generators, objects with `state` and `restore` of their own, and dicts and
lists of these. Configurations, names and whatever else an attribute may hold are not state.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ppo_lab.contracts import State

GENERATOR_OF = "generator_of"
"""Key of a saved generator: its kind of device."""
MAX_NAMED = 4
"""Differences in a message."""


def gather(owner: object) -> State:
    """The state in the attributes of `owner`, by name: copies on the CPU."""
    return {name: _saved(value) for name, value in vars(owner).items() if _is_state(value)}


def put_back(owner: object, state: State, device: torch.device) -> None:
    """Gives the attributes of `owner` what `gather` read, tensors on `device`.

    A generator of another kind of device begins anew, as its numbers cannot go on.

    Raises a ValueError that names what does not fit, before anything is changed.
    """
    check_fits(type(owner).__name__, state, gather(owner))
    for name, value in state.items():
        setattr(owner, name, _restored(getattr(owner, name), value, device))


def check_fits(owner: str, saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raises a ValueError that names what only one of `saved` and `own` has, and tensors of another shape or dtype.

    Args:
        owner: who has `own`, for the message.
        saved: tensors and plain data by name, in dicts of dicts, as they are to be put back.
        own: the same of the owner as it is now.
    """
    differences = list(_differences(owner, saved, own, ""))
    if differences:
        more = len(differences) - MAX_NAMED
        raise ValueError("; ".join([*islice(differences, MAX_NAMED), *([f"and {more} more"] if more > 0 else [])]))


def _is_tensor(value: Any) -> bool:
    return "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor)


def _is_generator(value: Any) -> bool:
    return "torch" in sys.modules and isinstance(value, sys.modules["torch"].Generator)


def _is_stateful(value: Any) -> bool:
    return callable(getattr(value, "state", None)) and callable(getattr(value, "restore", None))


def _is_state(value: Any) -> bool:
    match value:
        case bool() | int() | float():
            return True
        case dict():
            return all(isinstance(key, str) for key in value) and any(map(_is_state, value.values()))
        case list():
            return any(map(_is_state, value))
    return _is_tensor(value) or _is_generator(value) or _is_stateful(value)


def _saved(value: Any) -> Any:
    if _is_tensor(value):
        return value.detach().cpu().clone()
    if _is_generator(value):
        return {GENERATOR_OF: value.device.type, "bytes": value.get_state()}
    match value:
        case dict():
            return {key: _saved(item) for key, item in value.items()}
        case list():
            return list(map(_saved, value))
    return value.state() if _is_stateful(value) else value


def _restored(own: Any, saved: Any, device: torch.device) -> Any:
    """What the attribute becomes whose value is `own` now."""
    if _is_tensor(own):
        return saved.to(device, copy=True)
    if _is_generator(own):
        if saved[GENERATOR_OF] == own.device.type:
            own.set_state(saved["bytes"])
        else:  # another kind of generator: its numbers begin anew, in a stream of their own for each state
            own.manual_seed(int(hashlib.sha256(bytes(saved["bytes"].tolist())).hexdigest()[:15], 16))
        return own
    if _is_stateful(own):
        own.restore(saved)
        return own
    match own:
        case dict():
            return {key: _restored(own[key], item, device) for key, item in saved.items()}
        case list() if _is_structure(own):
            return [_restored(one, item, device) for one, item in zip(own, saved, strict=True)]
    return saved


def _is_structure(items: list[Any]) -> bool:
    """Whether a list holds more than numbers and text, of which it may have any number."""
    return any(not isinstance(item, int | float | str | None) for item in items)


def _differences(owner: str, saved: Mapping[str, Any], own: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Sentences that name each difference, nested values by their dotted names."""
    yield from (f"the saved state has no {prefix}{name}, which {owner} has" for name in own if name not in saved)
    yield from (f"{owner} has no {prefix}{name}, which the saved state has" for name in saved if name not in own)
    for name in own:
        if name not in saved:
            continue
        ours, theirs = _items(own[name]), _items(saved[name])
        if ours is not None and theirs is not None:
            yield from _differences(owner, theirs, ours, f"{prefix}{name}.")
        elif (ours_is := _kind(own[name])) != (theirs_is := _kind(saved[name])):
            yield f"{prefix}{name} of {owner} is {ours_is}, and {theirs_is} in the saved state"


def _items(value: Any) -> Mapping[str, Any] | None:
    """What a dict or a list holds, by name; None of a generator's state and of a list of numbers, which are values."""
    if isinstance(value, list) and _is_structure(value):
        return {str(index): item for index, item in enumerate(value)}
    return value if isinstance(value, Mapping) and GENERATOR_OF not in value else None


def _kind(value: Any) -> str:
    """Shape and dtype of a tensor; the type of anything else."""
    if isinstance(value, Mapping) and GENERATOR_OF in value:
        return "a generator"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return "a number" if isinstance(value, int | float) else type(value).__name__
