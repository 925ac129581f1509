"""A trained policy, read from its run folder: the experiment, the checkpoints, the policy. Loads no torch by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ppo_lab.config import ExperimentConfig, as_text, did_you_mean, flat
from ppo_lab.config.overrides import first_line
from ppo_lab.errors import CheckpointError, ConfigError
from ppo_lab.runs.config import read_experiment, read_plain, to_experiment
from ppo_lab.runs.folder import AS_TRAINED, RunFolder, find_checkpoints

if TYPE_CHECKING:
    import torch

    from ppo_lab.learning.policy import ActorPolicy


@dataclass(frozen=True)
class Trained:
    """A run, and the env in which its policies are looked at."""

    folder: Path
    cfg: ExperimentConfig
    """As it was trained, but for `changes`."""
    changes: Mapping[str, Any]
    """Settings of the env that differ from the training's: "env.KEY" -> value."""

    @classmethod
    def read(cls, folder: Path, changes: Mapping[str, Any] | None = None) -> Trained:
        """The run in `folder`; the present conf/ plays no part. Raises a ConfigError."""
        if not folder.is_dir():
            raise ConfigError(f"{as_text(folder)}: there is no such folder. Name a run; ppo-lab runs lists them.")
        if not RunFolder(folder).config.is_file():
            raise ConfigError(
                f"{as_text(folder)} is no run folder: it has no config.yaml. Name a run; ppo-lab runs lists them."
            )
        return cls(folder, read_experiment(RunFolder(folder).config), {}).changed(changes or {})

    def changed(self, changes: Mapping[str, Any]) -> Trained:
        """The same run in an env with other settings. Raises a ConfigError where there is no such setting or value."""
        known = flat(asdict(self.cfg))
        cfg = DictConfig(asdict(self.cfg))
        for key, value in changes.items():
            is_known = key in known or any(name.startswith(f"{key}.") for name in known)
            is_of_randomization = f"{key}.".startswith("env.randomization.")
            if not is_known and not is_of_randomization:
                raise ConfigError(
                    f"{as_text(key)} is not a setting of {self.cfg.env.name}.{did_you_mean(key, known)} "
                    "Allowed: settings of the env, env.KEY=VALUE."
                )
            try:
                OmegaConf.update(cfg, key, value, merge=not is_of_randomization)
            except OmegaConfBaseException as error:
                raise ConfigError(f"{as_text(key)}={as_text(value)}: {first_line(error)}.") from None
        return Trained(self.folder, to_experiment(cfg), {**self.changes, **changes})

    def checkpoints(self, wanted: str) -> list[Path]:
        """See `find_checkpoints`."""
        return find_checkpoints(self.folder, wanted)

    def policy(self, checkpoint: Path, device: torch.device) -> ActorPolicy:
        """The policy in that file. Raises a ConfigError where it cannot be read, or does not fit."""
        from ppo_lab.learning.policy import load_policy

        try:
            return load_policy(self.cfg, checkpoint, device)
        except CheckpointError as error:
            raise ConfigError(str(error)) from None


def read_conditions(trained: Trained, file: Path | None) -> dict[str, Trained]:
    """Name -> the run in an env with those settings; without a file the run as it is. Raises a ConfigError.

    The file is YAML: {name: {"env.KEY": value, ...}, ...}; {} changes nothing.
    """
    if file is None:
        changed = ", ".join(f"{key}={as_text(value)}" for key, value in trained.changes.items())
        return {changed or AS_TRAINED: trained}
    try:
        found = read_plain(file)
    except ConfigError as error:
        why = str(error).partition(" Allowed:")[0]
        raise ConfigError(f"conditions={as_text(file)} {why} {AS_CONDITIONS}") from None
    if not found:
        raise ConfigError(f"{file} has no condition. {AS_CONDITIONS}")
    for name, changes in found.items():
        if not isinstance(name, str) or not isinstance(changes, dict):
            raise ConfigError(f"{file}: {as_text(name)} is no condition. {AS_CONDITIONS}")
    return {name: trained.changed(changes) for name, changes in found.items()}


AS_CONDITIONS = "Allowed: lines like   fast: {env.lin_vel_x_range: [1.0, 1.0]}"
