"""What an experiment is: types, ranges and rules of its settings. Standard library only.

ranges.py      which values a setting admits
schema.py      the settings themselves, and combinations that cannot work
overrides.py   settings as one types them
"""

from ppo_lab.config.overrides import as_text, did_you_mean, flat, leaves
from ppo_lab.config.ranges import INT32_MAX, Range, count, setting
from ppo_lab.config.schema import (
    ACTIVATIONS,
    STD_PARAMETERS,
    ActorConfig,
    AlgorithmConfig,
    CheckpointConfig,
    EntropyScheduleConfig,
    EnvConfig,
    ExperimentConfig,
    InitConfig,
    MemoryConfig,
    ModelConfig,
    NetworkConfig,
    SweepConfig,
    check,
    layers,
    nearest_divisors,
    split,
    to_json,
)
from ppo_lab.errors import ConfigError

__all__ = [
    "ACTIVATIONS",
    "INT32_MAX",
    "STD_PARAMETERS",
    "ActorConfig",
    "AlgorithmConfig",
    "CheckpointConfig",
    "ConfigError",
    "EntropyScheduleConfig",
    "EnvConfig",
    "ExperimentConfig",
    "InitConfig",
    "MemoryConfig",
    "ModelConfig",
    "NetworkConfig",
    "Range",
    "SweepConfig",
    "as_text",
    "check",
    "count",
    "did_you_mean",
    "flat",
    "layers",
    "leaves",
    "nearest_divisors",
    "setting",
    "split",
    "to_json",
]
