"""From the words after `train.py -m` to a folder with jobs.json in it: which runs, and whether each will fit."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import shlex
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from ppo_lab import config
from ppo_lab.cli.compose import CONF, check_question, compose, folder_of, is_for_hydra, is_multirun, parse, words_of
from ppo_lab.config import ExperimentConfig, SweepConfig, setting
from ppo_lab.config.overrides import SWEEP_DIR, quoted
from ppo_lab.errors import ConfigError, OverBudgetError
from ppo_lab.machine import preflight
from ppo_lab.memory.predict import hardware
from ppo_lab.memory.predict.estimate import Span, estimate, need, verdict
from ppo_lab.memory.predict.simulator import too_many_envs
from ppo_lab.memory.rows import MIB
from ppo_lab.runs.config import from_json, to_experiment, to_settings
from ppo_lab.runs.folder import is_complete, make_new_folder, take
from ppo_lab.sweeps import jobs as records
from ppo_lab.sweeps.jobs import Job, Sweep
from ppo_lab.sweeps.places import local_places
from ppo_lab.training.console import say

MAX_JOBS = 10_000
FOLDER_NAME_LENGTH = 120
MOST_NUMBERS = 6
"""Of jobs, in one line of the plan."""


@dataclass
class _Words:
    """What a sweep reads of the composed configuration beside the experiments."""

    sweep: SweepConfig = setting()


def prepare(argv: list[str]) -> list[str]:
    """Checks the words `argv` (without the program's name), plans the sweep and makes its folder, or finds it again.

    Returns the words for Hydra: the folder alone, whose jobs.json holds the rest. Nothing is left on disk when it
    raises.

    Raises:
        ConfigError: no key has several values, a job's words do not make an experiment, two jobs are the same run, or
            `sweep.resume` is not of this very sweep.
        MachineError: the machine cannot run it.
        OverBudgetError: a job is predicted not to fit, and sweep.over_budget=stop.
    """
    words = [word for word in argv if not is_multirun(word)]
    if is_for_hydra(words):
        check_question(words)
        return words
    preflight.check_single_process()
    words = words_of(words)
    theirs, ours = _split(words)
    combinations = expand(theirs)
    experiments = _experiments(combinations)
    cfg = compose([*combinations[0], *ours])
    settings = _settings(cfg)
    if settings.resume is None and not any(parse(word, several=True).is_sweep_override() for word in theirs):
        raise ConfigError(
            "-m asks for a sweep, and no key has several values. Give some, as in: python train.py -m seed=1,2; "
            "or leave out -m to train once."
        )
    _refuse_equal(experiments, job_names(combinations))
    device = _device(experiments)
    local_places(device, settings.jobs_per_device)
    preflight.check_system_libraries()
    jobs = _jobs(combinations, experiments)
    earlier = None
    if settings.resume is not None:
        earlier = _earlier(Path(settings.resume), combinations)
        jobs = [_continued(earlier, job) for job in jobs]
    jobs = _predicted(jobs, experiments, settings, device)
    if earlier:
        folder, started, command = earlier.folder, earlier.started, earlier.command
    else:
        by_hand = any(word.startswith(SWEEP_DIR) for word in ours)
        folder = make_new_folder(folder_of(cfg, SWEEP_DIR), may_be_renamed=not by_hand, word=SWEEP_DIR)
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        command = shlex.join(["python", "train.py", *argv])
    try:
        Sweep(folder, started, command, swept_keys(combinations), device, asdict(settings), jobs).save()
    except OSError as error:
        if earlier is None:
            shutil.rmtree(folder)
        raise ConfigError(
            f"cannot write to {folder}: {error.strerror}; choose another folder, or make it writable."
        ) from None
    return ["-m", f"{SWEEP_DIR}{quoted(folder)}"]


def expand(words: list[str]) -> list[tuple[str, ...]]:
    """Every combination of the values that `words` give, as words for one job each; the last word turns fastest.

    Each job keeps a word for each of `words`, in their order, so that a key given twice means what it means to a
    single run. Raises a ConfigError.
    """
    for word in words:
        parse(word, several=True)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        try:
            overrides = parser.parse_overrides(words)
            count = math.prod(map(_count, overrides))
            if count > MAX_JOBS:
                raise ConfigError(f"that is more than {MAX_JOBS:,} jobs. Give fewer values.")
            combinations = list(itertools.product(*map(_single_words, overrides)))
        except ConfigError:
            raise
        except Exception as error:  # Hydra has its own, and lets those of range() and of decimal numbers out as well
            raise ConfigError(f"cannot sweep over {' '.join(words)}: {str(error).partition(chr(10))[0]}") from None
    if not combinations:
        raise ConfigError(f"{' '.join(words)} gives no job at all. Give each key a value.")
    twice = [combination for combination, times in Counter(combinations).items() if times > 1]
    if twice:
        raise ConfigError(f"{' '.join(twice[0])} is given twice. Give each value once.")
    return combinations


def _single_words(override: Override) -> list[str]:
    """A word for each of its values, written as Hydra writes it."""
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


def swept_keys(combinations: list[tuple[str, ...]]) -> list[str]:
    """The keys that have more than one value, as the configuration has them."""
    keys = (_split_word(combinations[0][position])[0].lstrip("+~") for position in _swept_positions(combinations))
    return list(dict.fromkeys(keys))


def job_names(combinations: list[tuple[str, ...]]) -> list[str]:
    """What each job differs by, keys cut to their last part where that tells them apart."""
    positions = _swept_positions(combinations)
    keys = {_split_word(combinations[0][position])[0] for position in positions}
    last_parts = Counter(key.rpartition(".")[2] for key in keys)

    def shown(word: str) -> str:
        key, value = _split_word(word)
        last_part = key.rpartition(".")[2]
        return f"{last_part if last_parts[last_part] == 1 else key}={value}"

    return [" ".join(shown(combination[position]) for position in positions) for combination in combinations]


def _swept_positions(combinations: list[tuple[str, ...]]) -> list[int]:
    """The places of the words in which the combinations differ."""
    return [position for position, words in enumerate(zip(*combinations, strict=True)) if len(set(words)) > 1]


def folder_name(number: int, count: int, name: str) -> str:
    """A job's folder: its number first, so that no two share one, then its name in letters that any system takes."""
    plain = re.sub(r"[^A-Za-z0-9._=+-]+", ",", name).strip(",")
    return f"{number:0{len(str(count - 1))}d}_{plain}"[:FOLDER_NAME_LENGTH].rstrip("_.,")


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """The jobs' words, and the sweep's own. Raises a ConfigError for a word that a sweep cannot obey."""
    theirs: list[str] = []
    ours: list[str] = []
    for word in words:
        override = parse(word, several=True)
        key = override.key_or_group
        if key in ("resume", "reproduce"):
            raise ConfigError(f"{word} is for one run. To go on with a sweep: sweep.resume=FOLDER.")
        if key.startswith("hydra") and key != "hydra.sweep.dir":
            raise ConfigError(f"{word} does not go with -m. Allowed of hydra's: hydra.sweep.dir=FOLDER.")
        is_ours = key == "hydra.sweep.dir" or key.partition(".")[0] == "sweep"
        if is_ours and override.is_sweep_override():
            raise ConfigError(f"{word} gives {key} several values. Give one, for the whole sweep.")
        (ours if is_ours else theirs).append(word)
    return theirs, ours


def _experiments(combinations: list[tuple[str, ...]]) -> list[ExperimentConfig]:
    """Each combination's experiment. Raises a ConfigError; it names the combination where others are right."""
    experiments, refused = [], []
    for combination in combinations:
        try:
            experiments.append(to_experiment(compose(list(combination))))
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


def _refuse_equal(experiments: list[ExperimentConfig], names: list[str]) -> None:
    """Raises a ConfigError where two jobs are the same run: a value has no effect, or is given in two ways."""
    first: dict[str, int] = {}
    for number, experiment in enumerate(experiments):
        equal = first.setdefault(config.to_json(experiment), number)
        if equal != number:
            raise ConfigError(
                f"jobs {equal} ({names[equal]}) and {number} ({names[number]}) are the same run. Of a key given twice "
                "the last word counts. Give each key once, and each value once."
            )


def _settings(cfg: DictConfig) -> SweepConfig:
    words: _Words = to_settings(OmegaConf.masked_copy(cfg, ["sweep"]), OmegaConf.structured(_Words))
    return words.sweep


def _jobs(combinations: list[tuple[str, ...]], experiments: list[ExperimentConfig]) -> list[Job]:
    names = job_names(combinations)
    return [
        Job(
            number=number,
            name=names[number],
            folder=folder_name(number, len(combinations), names[number]),
            overrides=combination,
            max_iterations=experiment.max_iterations,
            transitions=experiment.transitions,
        )
        for number, (combination, experiment) in enumerate(zip(combinations, experiments, strict=True))
    ]


def _device(experiments: list[ExperimentConfig]) -> str:
    asked = sorted({experiment.device for experiment in experiments})
    if len(asked) > 1:
        raise ConfigError(f"device={','.join(asked)}: a sweep has one kind of device. Allowed: auto, cpu, cuda.")
    if ":" in asked[0]:
        number = asked[0].partition(":")[2]
        raise ConfigError(
            f"device={asked[0]}: a sweep spreads its jobs itself. Allowed: auto, cpu, cuda; "
            f"CUDA_VISIBLE_DEVICES={number} leaves it this one."
        )
    return asked[0]


def _earlier(folder: Path, combinations: list[tuple[str, ...]]) -> Sweep:
    """The sweep in `folder`, if it is of these combinations. Raises a ConfigError."""
    try:
        sweep = records.read(folder)
        take(folder).close()
    except ConfigError as error:
        raise ConfigError(f"sweep.resume: {error}") from None
    theirs = [job.overrides for job in sweep.jobs]
    if theirs == combinations:
        return sweep
    here, there = _values(combinations), _values(theirs)
    differ = [
        f"{key} is {_shown(here, key)} here and {_shown(there, key)} there"
        for key in here | there
        if here.get(key) != there.get(key)
    ] or ["the same words in another order"]
    raise ConfigError(
        f"sweep.resume={folder} is another sweep: {', '.join(differ)}. Give it the words it began with: {sweep.command}"
    )


def _continued(earlier: Sweep, job: Job) -> Job:
    """The job as it stands: completed, or planned anew with the time it took so far."""
    before = earlier.jobs[job.number]
    if job.folder != before.folder:
        raise ConfigError(f"sweep.resume: job {job.number} is in {before.folder}; expected: {job.folder}.")
    if before.status == "completed":
        return before
    if is_complete(earlier.run_folder(job)):  # and nobody was left to write it down
        return dataclasses.replace(before, status="completed", exit_code=0, message=None)
    return dataclasses.replace(job, started=before.started, wall_s=before.wall_s)


def _predicted(jobs: list[Job], experiments: list[ExperimentConfig], settings: SweepConfig, device: str) -> list[Job]:
    """The jobs with what each is predicted to need. Prints it on the way, since each distinct experiment takes seconds.

    Raises:
        OverBudgetError: one does not fit, and sweep.over_budget=stop.
    """
    machine, free_bytes = hardware.fullest(device)
    free_bytes //= settings.jobs_per_device
    planned = [job for job in jobs if job.status == "planned"]
    each = f" for each of {settings.jobs_per_device} at a time" if settings.jobs_per_device > 1 else ""
    say(f"plan: {len(planned)} jobs, {free_bytes / MIB:,.0f} MiB free on {machine.name}{each}")
    same: dict[str, list[Job]] = {}
    for job in planned:
        same.setdefault(config.to_json(dataclasses.replace(experiments[job.number], seed=0)), []).append(job)
    jobs, too_large = [*jobs], []
    for number, (text, alike) in enumerate(same.items(), 1):
        experiment = from_json(text)
        impossible = too_many_envs(experiment)
        needs = None if impossible else _estimate(experiment, machine)
        fits = verdict(needs, free_bytes) if needs else "no" if impossible else "not known"
        words = f"{need(needs, free_bytes)} free" if needs else impossible or "no prediction"
        parts = (f"  prediction {number} of {len(same)}", _numbers(alike), _name_of(alike), f"{words}; fits: {fits}")
        say(" | ".join(part for part in parts if part))
        for job in alike:
            if needs:
                job = dataclasses.replace(job, predicted_bytes=needs.needed, predicted_is_least=needs.high is None)
            if fits == "no":
                out = dataclasses.replace(job, status="over_budget", message=words)
                too_large.append(out)
                if impossible or settings.over_budget == "skip":
                    job = out
            jobs[job.number] = job
    if too_large and settings.over_budget == "stop":
        raise OverBudgetError(
            f"{len(too_large)} of {len(planned)} jobs do not fit: {', '.join(job.name for job in too_large)}. "
            "Try sweep.over_budget=skip to run the others, or sweep.over_budget=run to run all."
        )
    return jobs


def _estimate(cfg: ExperimentConfig, machine: hardware.Hardware) -> Span | None:
    """What the run needs, by the closed forms alone where it cannot be traced; None where not even they exist."""
    for with_trace in (True, False):
        try:
            return estimate(cfg, machine, with_trace, count_new_envs=False).device_bytes
        except (ConfigError, RuntimeError):  # as before a single run: what cannot be traced may run all the same
            continue
    return None


def _numbers(alike: list[Job]) -> str:
    """The jobs by number, or how many they are."""
    if len(alike) > MOST_NUMBERS:
        return f"{len(alike)} jobs"
    return f"job{'' if len(alike) == 1 else 's'} {', '.join(str(job.number) for job in alike)}"


def _name_of(alike: list[Job]) -> str:
    """What the jobs have in common, in which they differ from the others."""
    return " ".join(word for word in alike[0].name.split(" ") if all(word in job.name.split(" ") for job in alike))


def _values(combinations: list[tuple[str, ...]]) -> dict[str, list[str]]:
    """Key -> its values, each once."""
    values: dict[str, list[str]] = {}
    for combination in combinations:
        for key, value in map(_split_word, combination):
            known = values.setdefault(key, [])
            if value not in known:
                known.append(value)
    return values


def _split_word(word: str) -> tuple[str, str]:
    key, _, value = word.partition("=")
    return key, value


def _shown(values: dict[str, list[str]], key: str) -> str:
    return ",".join(values.get(key, ["not given"]))
