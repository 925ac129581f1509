"""The settings that may be `auto`: what they become on this machine, or on the one that is asked about.

They are resolved when a configuration is composed, so that config.yaml has the numbers, and a run is repeated with them
on whatever machine.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ppo_lab.config import as_text
from ppo_lab.errors import ConfigError, MachineError
from ppo_lab.machine import cores, devices
from ppo_lab.memory.predict.hardware import this_machine

AUTO = "auto"
BFLOAT16_CAPABILITY = 8
"""The first generation of NVIDIA's cards that multiplies matrices of bfloat16."""
ALLOWED = {
    "processes": "a whole number >= 1, or auto",
    "envs_per_scene": "a whole number >= 1, or auto",
    "algorithm.use_mixed_precision": "true, false or auto",
}


def resolve(cfg: DictConfig) -> None:
    """Replaces every `auto` in `cfg`, which OmegaConf checks no more than that. Raises a ConfigError for other text."""
    for key, allowed in ALLOWED.items():
        value = _select(cfg, key)
        if value == AUTO:
            OmegaConf.update(cfg, key, _choose(key, cfg))
        elif isinstance(value, str):
            raise ConfigError(f"{key}={as_text(value)} is of the wrong kind. Allowed: {allowed}.")


def _select(cfg: DictConfig, key: str) -> Any:
    """The value at `key`; None where it cannot be looked up, which whoever types the configuration refuses."""
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None


def _choose(key: str, cfg: DictConfig) -> int | bool:
    capability = _compute_capability(cfg)
    num_envs = _select(cfg, "num_envs")
    if key == "algorithm.use_mixed_precision":
        return cores.has_bfloat16() if capability is None else capability >= BFLOAT16_CAPABILITY
    if type(num_envs) is not int or num_envs < 1:
        return 1  # it is refused
    if key == "processes":
        return _processes(cfg, num_envs, capability is not None)
    return num_envs  # one scene: a second saved no time on any processor that was measured (DECISIONS.md)


def _compute_capability(cfg: DictConfig) -> float | None:
    """Of the card that the run is meant for; None: a CPU."""
    try:
        capability = _select(cfg, "hardware.compute_capability")
        return float(capability or this_machine(str(_select(cfg, "device"))).compute_capability)
    except (MachineError, TypeError, ValueError):  # a CPU has none; others refuse the rest
        return None


def _processes(cfg: DictConfig, num_envs: int, is_gpu: bool) -> int:
    """As many as there are cores, or GPUs, and as divide num_envs."""
    most = 1
    if not is_gpu:
        most = cores.usable_cores()
    elif "hardware" not in cfg and ":" not in str(_select(cfg, "device")):
        most = len(devices.visible_cards())
    return next(n for n in range(min(max(1, most), num_envs), 0, -1) if num_envs % n == 0)
