"""An exported folder as a policy in the simulator.

Nothing in the folder is executed: manifest.json and policy.onnx are read, and our own runner drives them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ppo_lab.config import EnvConfig, as_text
from ppo_lab.deploy.interface import misfits
from ppo_lab.deploy.runner import ExportError, Runner
from ppo_lab.errors import ConfigError

if TYPE_CHECKING:
    from tensordict import TensorDict
    from torch import Tensor

    from ppo_lab.contracts import WatchedEnv


class RunnerPolicy:
    """An exported folder: observations are made of what the env's robots measure, as on a robot."""

    def __init__(self, folder: Path) -> None:
        """Loads no torch. Raises a ConfigError where `folder` is no export, or damaged."""
        try:
            self._runner = Runner(folder)
        except ExportError as error:
            raise ConfigError(f"policy={as_text(folder)}: {error}.") from None
        found = self._runner.manifest.get("iteration")
        self.iteration = found if isinstance(found, int) else None
        self.name = folder.resolve().name

    def check_fits(self, cfg: EnvConfig) -> None:
        """Raises a ConfigError that names what does not fit the env of `cfg`."""
        if wrong := list(misfits(self._runner.manifest, cfg)):
            raise ConfigError(
                f"policy={as_text(self._runner.folder)} does not fit the env {cfg.name}: {'; '.join(wrong)}."
            )

    def on(self, env: WatchedEnv) -> Callable[[TensorDict], Tensor]:
        """Actions (N, A) for `env`, whose robots start anew. The observations given are not looked at."""
        import torch

        self._runner.reset()

        def act(_: TensorDict) -> Tensor:
            self._runner.reset((env.episode_length_buf == 0).cpu().numpy())
            sensors = {source: values.cpu().numpy() for source, values in env.sensors().items()}
            return torch.from_numpy(self._runner.decide(self._runner.observe(sensors))).to(env.device)

        return act
