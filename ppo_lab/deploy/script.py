"""Policies in TorchScript, which torch has deprecated and robots' programs still load.

A TorchScript file is a program: what it says about tensors runs when the policy acts. It cannot call Python.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ppo_lab.config import as_text
from ppo_lab.errors import ConfigError

if TYPE_CHECKING:
    from tensordict import TensorDict

    from ppo_lab.contracts import EnvSpec, WatchedEnv


def as_script(network: nn.Module) -> bytes:
    """What a file that `load_script` reads holds."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(network), content)
    return content.getvalue()


def load_script(path: Path, device: torch.device) -> nn.Module:
    """Raises a RuntimeError where the file is no TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        network = torch.jit.load(str(path), map_location=device).eval()
    for parameter in network.parameters():  # or its second call fails in inference mode
        parameter.requires_grad_(False)
    return network


class ScriptPolicy:
    """A TorchScript file that takes observations (N, W) and gives actions (N, A)."""

    iteration = None

    def __init__(self, path: Path, spec: EnvSpec, device: torch.device) -> None:
        """Raises a ConfigError where it cannot be loaded, or does not fit the env of `spec`."""
        self.name, self._path = path.name, path
        try:
            self._network = load_script(path, device)
        except RuntimeError:
            raise ConfigError(
                f"policy={as_text(path)} is not TorchScript, or damaged. Allowed: a TorchScript file, as policy.pt of "
                "an export; the folder of an export. A checkpoint of the run is named with checkpoint=."
            ) from None
        width, count = spec.width(), len(spec.actions)
        given = tuple(self._act(torch.zeros(2, width, device=device)).shape)
        if given != (2, count):
            raise ConfigError(f"policy={as_text(path)} gives actions {given} for 2 observations; needed: (2, {count}).")

    def on(self, env: WatchedEnv) -> Callable[[TensorDict], Tensor]:
        return lambda observations: self._act(observations["policy"])

    def _act(self, observations: Tensor) -> Tensor:
        try:
            actions = self._network(observations)
        except RuntimeError as error:
            raise ConfigError(
                f"policy={as_text(self._path)} does not take observations {tuple(observations.shape)}: "
                f"{str(error).strip().splitlines()[-1]}."
            ) from None
        if not isinstance(actions, Tensor):
            raise ConfigError(
                f"policy={as_text(self._path)} gives a {type(actions).__name__}; needed: a tensor of actions."
            )
        return actions
