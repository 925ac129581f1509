"""From `train.py -m ...` to the experiments of a sweep, which `ppo_lab.sweeps` plans and runs."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from ppo_lab.cli import argv as command_line
from ppo_lab.cli.argv import Source, is_multirun, parse
from ppo_lab.cli.compose import TRAIN, compose, folder_of, loader
from ppo_lab.config import ExperimentConfig, SweepConfig, setting
from ppo_lab.config.overrides import SWEEP_DIR
from ppo_lab.errors import ConfigError
from ppo_lab.machine import commands
from ppo_lab.machine.launch import position_by_launcher
from ppo_lab.runs import ancestry
from ppo_lab.runs.config import to_experiment, to_settings
from ppo_lab.sweeps import plan
from ppo_lab.sweeps.plan import SweepRequest, job_names

MAX_JOBS = 10_000


@dataclass
class _Own:
    """What a sweep reads of the composed configuration beside the experiments."""

    sweep: SweepConfig = setting()


def prepare(argv: list[str]) -> Path:
    """Checks `argv` (without the program's name), plans the sweep and returns its folder.

    Raises what `plan.prepare` raises, and a ConfigError where no key has several values or a job's overrides do not
    make an experiment.
    """
    if position_by_launcher():
        raise ConfigError("a sweep starts its own processes. Start it with python alone, without torchrun.")
    overrides, source = command_line.read([argument for argument in argv if not is_multirun(argument)])
    of_jobs, own = _split(overrides)
    combinations = expand(of_jobs, source)
    experiments = _of_each(combinations, lambda one: to_experiment(compose(one, source)))
    cfg = compose([*combinations[0], *own], source)
    settings: SweepConfig = to_settings(OmegaConf.masked_copy(cfg, ["sweep"]), OmegaConf.structured(_Own)).sweep
    if settings.resume is None and not any(parse(text, several=True).is_sweep_override() for text in of_jobs):
        raise ConfigError(
            "-m asks for a sweep, and no key has several values. Give some, as in: python train.py -m seed=1,2; "
            "or leave out -m to train once."
        )
    if settings.resume is None:  # or else a job may have begun long ago, with what is there no more
        composed = dict(zip(combinations, experiments, strict=True))
        experiments = _of_each(combinations, lambda one: ancestry.with_ancestor(composed[one])[0])
    return plan.prepare(
        SweepRequest(
            combinations=[(*source.options, *combination) for combination in combinations],
            experiments=experiments,
            settings=settings,
            folder=folder_of(cfg, SWEEP_DIR),
            may_be_renamed=not any(text.startswith(SWEEP_DIR) for text in own),
            command=commands.portable("train", *argv),
        )
    )


def expand(overrides: list[str], source: Source = TRAIN) -> list[tuple[str, ...]]:
    """Every combination of the values that `overrides` give, as one job's overrides each; the last key varies fastest.

    Each job has an override for each of `overrides`, in their order, so that a key given twice means what it means to
    a single run. Raises a ConfigError.
    """
    for text in overrides:
        parse(text, several=True)
    with loader(source) as config_loader:
        parser = OverridesParser.create(config_loader=config_loader)
        try:
            parsed = parser.parse_overrides(overrides)
            count = math.prod(map(_count, parsed))
            if count > MAX_JOBS:
                raise ConfigError(f"that is more than {MAX_JOBS:,} jobs. Give fewer values.")
            combinations = list(itertools.product(*map(_single_overrides, parsed)))
        except ConfigError:
            raise
        except Exception as error:  # Hydra has its own, and lets those of range() and of decimal numbers out as well
            raise ConfigError(f"cannot sweep over {' '.join(overrides)}: {str(error).partition(chr(10))[0]}") from None
    if not combinations:
        raise ConfigError(f"{' '.join(overrides)} gives no job at all. Give each key a value.")
    twice = [combination for combination, times in Counter(combinations).items() if times > 1]
    if twice:
        raise ConfigError(f"{' '.join(twice[0])} is given twice. Give each value once.")
    return combinations


def _single_overrides(override: Override) -> list[str]:
    """An override for each of its values, written as Hydra writes it."""
    key = override.get_key_element()
    if override.is_sweep_override():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [key if override.value_type is None else f"{key}={override.get_value_element_as_str()}"]


def _count(override: Override) -> int:
    if not override.is_sweep_override():
        return 1
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line} has no end of values. Allowed: a,b,c, choice(), range() and glob().")
    if getattr(override.value(), "shuffle", False):
        raise ConfigError(f"{override.input_line}: jobs run in the order given. Leave shuffle out.")
    return sum(1 for _ in itertools.islice(override.sweep_string_iterator(), MAX_JOBS + 1))


def _split(overrides: list[str]) -> tuple[list[str], list[str]]:
    """The jobs' overrides, and the sweep's own. Raises a ConfigError for one that a sweep cannot obey."""
    of_jobs: list[str] = []
    own: list[str] = []
    for text in overrides:
        override = parse(text, several=True)
        key = override.key_or_group
        if key in ("resume", "reproduce"):
            raise ConfigError(f"{text} is for one run. To go on with a sweep: sweep.resume=FOLDER.")
        if key == "hydra.run.dir":
            raise ConfigError(f"{text} does not go with -m. Use hydra.sweep.dir=FOLDER; each job has a folder in it.")
        is_own = key == "hydra.sweep.dir" or key.partition(".")[0] == "sweep"
        if override.is_sweep_override() and (is_own or key.startswith("hydra.")):
            raise ConfigError(f"{text} gives {key} several values. Give one, for the whole sweep.")
        (own if is_own else of_jobs).append(text)
    return of_jobs, own


def _of_each(
    combinations: list[tuple[str, ...]], make: Callable[[tuple[str, ...]], ExperimentConfig]
) -> list[ExperimentConfig]:
    """What `make` gives of each. Raises its ConfigError, which names the combination where others are right."""
    experiments, refused = [], []
    for combination in combinations:
        try:
            experiments.append(make(combination))
        except ConfigError as error:
            refused.append((combination, str(error)))
    if refused:
        combination, message = refused[0]
        if len({message for _, message in refused}) == 1 and not experiments:
            raise ConfigError(message)
        others = f" ({len(refused)} of {len(combinations)} jobs are wrong)" if len(refused) > 1 else ""
        name = dict(zip(combinations, job_names(combinations), strict=True))[combination]
        raise ConfigError(f"{name}: {message}{others}")
    return experiments
