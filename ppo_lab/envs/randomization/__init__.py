"""Randomization: what differs from env to env. Loads neither torch nor the simulator.

A term NAME is a key of `env.randomization` and the module `ppo_lab.envs.randomization.NAME`, with a class `Term` and,
where it has settings of its own, a dataclass `Config`. That is all that a new one needs. docs/randomization.md lists
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from ppo_lab.config import as_text, did_you_mean
from ppo_lab.envs.randomization.term import TermConfig

if TYPE_CHECKING:
    import torch

    from ppo_lab.config import EnvConfig
    from ppo_lab.envs.genesis.robot import JointedRobot
    from ppo_lab.envs.randomization.term import Term


def names() -> list[str]:
    """The terms there are."""
    return sorted(module.name for module in iter_modules(__path__) if module.name != "term")


def term_class(name: str) -> type[Term[Any]]:
    """Raises a ModuleNotFoundError where there is no such term."""
    found: type[Term[Any]] = import_module(f"{__name__}.{name}").Term
    return found


def config_class(name: str) -> type[TermConfig]:
    """The settings of the term: its module's Config, where there is one."""
    found: type[TermConfig] = getattr(import_module(f"{__name__}.{name}"), "Config", TermConfig)
    return found


def is_setting(key: str) -> bool:
    """Whether the dotted key is a setting of a term that there is."""
    match key.split("."):
        case ["env", "randomization", name, setting]:
            return name in names() and setting in {field.name for field in fields(config_class(name))}
    return False


def simulator_options(cfg: EnvConfig) -> dict[str, bool]:
    """What the simulator must keep for each env: Genesis' RigidOptions."""
    return {option: on for name in cfg.randomization for option, on in term_class(name).simulator_options.items()}


def told_ranges(cfg: EnvConfig) -> dict[str, tuple[float, float]]:
    """Command -> the lowest and the highest that a policy is told, by the env or by a term."""
    ranges = {name: (low, high) for name, (low, high) in cfg.command_ranges.items()}
    for name, term in cfg.randomization.items():
        ranges = term_class(name).on_ranges(term, ranges)
    return ranges


def build_terms(cfg: EnvConfig, robot: JointedRobot, generator: torch.Generator) -> dict[str, Term[Any]]:
    """The terms of `cfg`, by name, of a robot whose scene is built; what is drawn once is drawn."""
    return {name: term_class(name)(term, cfg, robot, generator) for name, term in cfg.randomization.items()}


def unknown(name: str) -> str:
    """What to say of a term that there is not."""
    return f"{as_text(name)} is no term.{did_you_mean(name, names())} Allowed: {', '.join(names())}"


def problems(cfg: EnvConfig) -> Iterator[str]:
    """Why the terms of `cfg`, which are of the right types, cannot work."""
    for name, term in cfg.randomization.items():
        at = f"env.randomization.{name}"
        if not cfg.can_be_randomized:
            yield f"{at}: the env {cfg.name} cannot be randomized. Leave it out: randomization=none."
        for problem in term_class(name).problems(term, cfg):
            yield f"{at}.{problem}"
