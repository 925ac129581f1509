"""The generators that a learner draws from: torch's, numpy's and python's."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from ppo_lab.contracts import State


def seed_everything(seed: int) -> None:
    """Seeds python, numpy and torch, on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def stream(seed: int, *path: int) -> int:
    """The seed of one of a run's streams of random numbers, named by numbers: its rank, say. The first has `seed`."""
    if not any(path):
        return seed
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint32)[0])


def random_state(device: torch.device) -> State:
    """The state of every generator that training draws from."""
    version, numbers, gauss = random.getstate()
    of_numpy: Any = np.random.get_state(legacy=False)
    of_numpy["state"]["key"] = of_numpy["state"]["key"].tolist()
    state = {"torch": torch.get_rng_state(), "numpy": of_numpy, "python": (version, list(numbers), gauss)}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: State, device: torch.device) -> None:
    """Puts back what `random_state` gave, as far as `device` has a use for it; see `kind_of_device`.

    Nothing may be drawn between this and the next iteration.
    """
    torch.set_rng_state(state["torch"])
    of_numpy = state["numpy"]
    key = np.array(of_numpy["state"]["key"], dtype=np.uint32)
    np.random.set_state(of_numpy | {"state": of_numpy["state"] | {"key": key}})
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def kind_of_device(state: State) -> str:
    """The kind of device, cpu or cuda, of which `random_state` gave `state`."""
    return "cuda" if "cuda" in state else "cpu"


def reseed(device: torch.device, seed: int, iteration: int) -> None:
    """Begins the random numbers of `device` anew, as only `seed` and `iteration` say: no two parts of a run share them.

    Nothing may be drawn between this and the iteration.
    """
    (number,) = np.random.SeedSequence([seed, iteration]).generate_state(1, np.uint64).tolist()
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)
