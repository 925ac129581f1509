"""The numbers of a report: per job, per configuration, and what they teach."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from statistics import fmean
from typing import Any

from ppo_lab.config.overrides import short_names
from ppo_lab.memory.measure.measured import Comparison, peak_row
from ppo_lab.memory.rows import MIB
from ppo_lab.report.job_results import JobResult, RunSet, Value

THRESHOLD_SHARE = 0.9
"""Of the best configuration's final reward: what counts as having got there, where no threshold was set."""

MOST_KEYS = 3
"""Runs that differ in more keys are called by their names."""

FEW_SEEDS = 5
"""Below so many, ranges that do not overlap are a hint."""


@dataclass(frozen=True)
class Configuration:
    """The runs that differ in nothing but their seed."""

    label: str
    settings: Mapping[str, Value | None]
    jobs: tuple[JobResult, ...]

    @property
    def completed(self) -> tuple[JobResult, ...]:
        return tuple(job for job in self.jobs if job.completed)


@dataclass(frozen=True)
class Measure:
    """One way to rank configurations."""

    title: str
    unit: str
    of: Callable[[JobResult], float | None]
    highest_wins: bool = True


@dataclass(frozen=True)
class Results:
    """A sweep, evaluated. Where its jobs have several envs, each env is evaluated by itself, in `parts` alone."""

    sweep: RunSet
    configurations: tuple[Configuration, ...]
    """In the order of their settings."""
    threshold: float | None
    threshold_from: str
    memory_row: str | None
    """The memory row that the report compares; None where nothing was measured."""
    parts: Mapping[str, Results] = field(default_factory=dict)
    """Env -> what its jobs came to; none where there is one env."""

    @property
    def by_env(self) -> Mapping[str, Results]:
        """What can be compared: the parts, or all of it under the name ""."""
        return self.parts or {"": self}

    @property
    def are_named(self) -> bool:
        """Whether configurations are labelled by their runs' names, and not by their settings."""
        return _are_named(self.sweep)

    @property
    def short_names(self) -> Mapping[str, str]:
        """Swept key -> its name in a picture or label."""
        return short_names(_compared_keys(self.sweep))

    @property
    def has_reward(self) -> bool:
        """Whether an episode ended in any run."""
        return any(job.final_reward is not None for job in self.sweep.jobs)

    def predicted_mib(self, job: JobResult) -> float | None:
        size = job.run.predicted_bytes.get(self.memory_row) if self.memory_row else None
        return None if size is None else size / MIB

    def measured_mib(self, job: JobResult) -> float | None:
        size = job.run.measured_bytes.get(self.memory_row) if self.memory_row else None
        return None if size is None else size / MIB

    def memory_error_percent(self, job: JobResult) -> float | None:
        """Positive where more was predicted than measured."""
        predicted, size = (
            sizes.get(self.memory_row or "") for sizes in (job.run.predicted_bytes, job.run.measured_bytes)
        )
        return Comparison(self.memory_row or "", predicted, size).error_percent if predicted and size else None

    def time_to_threshold_s(self, job: JobResult) -> float | None:
        return None if self.threshold is None else job.time_to_s(self.threshold)

    def reward_per_minute(self, job: JobResult) -> float | None:
        """None where the final reward is not positive: a ratio would then favour the slow."""
        reward, seconds = job.final_reward, job.training_s
        return 60 * reward / seconds if reward is not None and reward > 0 and seconds else None

    def reward_per_mib(self, job: JobResult) -> float | None:
        reward, size = job.final_reward, self.measured_mib(job)
        return reward / size if reward is not None and reward > 0 and size else None

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (
            Measure("final reward", "", lambda job: job.final_reward),
            Measure("reward per minute of training", "/min", self.reward_per_minute),
            Measure("time to the threshold", " s", self.time_to_threshold_s, highest_wins=False),
            Measure(f"reward per MiB ({self.memory_row})", "/MiB", self.reward_per_mib),
        )

    @property
    def pareto_front(self) -> tuple[Configuration, ...]:
        """The configurations that no other beats in reward, memory and time at once, by the means over their runs."""
        points = {
            one.label: point for one in self.configurations if (point := self.reward_memory_time(one)) is not None
        }
        return tuple(
            one
            for one in self.configurations
            if one.label in points and not any(_dominates(other, points[one.label]) for other in points.values())
        )

    def reward_memory_time(self, one: Configuration) -> tuple[float, float, float] | None:
        """Mean final reward, peak MiB and seconds of training; None where one of them is unknown."""
        means = [
            mean(one.completed, of)
            for of in (lambda job: job.final_reward, self.measured_mib, lambda job: job.training_s)
        ]
        return None if None in means else (means[0], means[1], means[2])  # type: ignore[return-value]


def of(sweep: RunSet) -> Results:
    """Evaluates a sweep."""
    envs = list(dict.fromkeys(job.env for job in sweep.jobs if job.env is not None))
    if len(envs) > 1:
        parts = {env: of(_of_env(sweep, env)) for env in envs}
        each = "; ".join(f"{env}: {_threshold_words(part)}" for env, part in parts.items())
        return Results(sweep, (), None, each, None, parts)
    configurations = _configurations(sweep)
    threshold, threshold_from = _threshold(sweep, configurations)
    return Results(sweep, configurations, threshold, threshold_from, _memory_row(sweep.jobs))


def mean(jobs: Sequence[JobResult], of: Callable[[JobResult], float | None]) -> float | None:
    """Over the jobs; None where one of them has no such value."""
    values = known(jobs, of)
    return fmean(values) if values else None


def mean_and_range(
    jobs: Sequence[JobResult], of: Callable[[JobResult], float | None]
) -> tuple[float, float, float] | None:
    """Mean, lowest and highest over the jobs; None where one of them has no such value."""
    values = known(jobs, of)
    return (fmean(values), min(values), max(values)) if values else None


def known(jobs: Sequence[JobResult], of: Callable[[JobResult], float | None]) -> list[float]:
    """Every job's value; none where one of them has none, for what is left is no fair sample."""
    values = [of(job) for job in jobs]
    return [] if None in values else [value for value in values if value is not None]


def rows(results: Results) -> list[dict[str, Any]]:
    """One a job, in the order of their numbers. docs/report.md lists the columns."""
    return [_row(job, results.parts.get(job.env or "", results)) for job in results.sweep.jobs]


def _row(job: JobResult, results: Results) -> dict[str, Any]:
    return {
        "number": job.number,
        "name": job.name,
        **job.settings,
        "status": job.status,
        "ancestry": job.run.ancestry or None,
        "final_reward": job.final_reward,
        "best_reward": job.best_reward,
        "evaluated_return": job.evaluated_return,
        "evaluated_iteration": job.evaluated_iteration,
        "time_to_threshold_s": results.time_to_threshold_s(job),
        "steps_per_s": job.steps_per_s,
        "wall_s": job.wall_s,
        "training_s": job.training_s,
        "iterations": job.iterations,
        "transitions": job.transitions,
        "memory_row": results.memory_row,
        "predicted_peak_mib": results.predicted_mib(job),
        "measured_peak_mib": results.measured_mib(job),
        "memory_error_percent": results.memory_error_percent(job),
        "planned_mib": None if job.planned_bytes is None else job.planned_bytes / MIB,
        "message": job.message,
    }


def as_csv(results: Results) -> str:
    """The rows. Text that a spreadsheet would take for a formula is quoted with an apostrophe."""
    table = rows(results)
    text = io.StringIO()
    writer = csv.DictWriter(text, table[0].keys() if table else (), lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow({key: _harmless(value) for key, value in row.items()})
    return text.getvalue()


def as_json(results: Results) -> dict[str, Any]:
    """The rows, and what they are about. The keys are stable."""
    sweep = results.sweep
    return {
        "name": sweep.name,
        "started": sweep.started,
        "command": sweep.command,
        "swept": list(sweep.swept),
        "reward_threshold": results.threshold,
        "reward_threshold_from": results.threshold_from,
        "memory_row": results.memory_row,
        "pareto_front": [
            {"env.name": env, **one.settings} if env else dict(one.settings)
            for env, part in results.by_env.items()
            for one in part.pareto_front
        ],
        "lessons": lessons(results),
        "jobs": rows(results),
    }


def lessons(results: Results) -> list[str]:
    """What the sweep teaches, one sentence a measure, and no claim that the spread over seeds does not bear out."""
    return [
        (f"{env}: " if env else "") + _lesson(measure, part.configurations)
        for env, part in results.by_env.items()
        for measure in part.measures
    ]


def _lesson(measure: Measure, configurations: Sequence[Configuration]) -> str:
    found = {one.label: values for one in configurations if (values := known(one.completed, measure.of))}
    title = measure.title[0].upper() + measure.title[1:]
    if not found:
        return f"{title}: no setting has one in all of its runs."
    ranked = sorted(found, key=lambda label: fmean(found[label]), reverse=measure.highest_wins)
    first = f"{ranked[0]} with {_spread(found[ranked[0]], measure.unit)}"
    if len(found) == 1:
        return f"{title}: {first}; no other setting has one, so there is nothing to compare."
    ranked = [label for label in ranked if len(found[label]) > 1]
    if len(ranked) < 2:
        return f"{title}: {first} comes first, but what ran once has no known spread: no claim."
    first, best = f"{ranked[0]} with {_spread(found[ranked[0]], measure.unit)}", found[ranked[0]]
    once = next((label for label in found if len(found[label]) == 1 and _ahead(found[label], best, measure)), None)
    note = f" {once} came out ahead with {_spread(found[once], measure.unit)}, which is not enough." if once else ""
    level = [label for label in ranked[1:] if min(best) <= max(found[label]) and min(found[label]) <= max(best)]
    if level:
        others = f" and {len(level) - 1} more" if len(level) > 1 else ""
        return (
            f"{title}: no setting is shown to be best. {first} comes first, but its spread overlaps that of "
            f"{level[0]} with {_spread(found[level[0]], measure.unit)}{others}.{note}"
        )
    hint = " With so few seeds, take it as a hint." if min(len(found[label]) for label in ranked) < FEW_SEEDS else ""
    second = f"{ranked[1]} with {_spread(found[ranked[1]], measure.unit)}"
    return f"{title}: best is {first}, ahead of {second}.{hint}{note}"


def rounded(value: float | None, digits: int = 3) -> str:
    """To so many significant digits, integers without decimals; as 1.5e-5 where that is shorter."""
    if value is None:
        return "\N{EN DASH}"
    if not _is_handy(value):
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    is_whole = isinstance(value, int) or abs(value) >= 10 ** (digits - 1)
    return f"{value:,.0f}" if is_whole else f"{value:#.{digits}g}"


def as_set(value: Value | None) -> str:
    """A setting in full, as one would type it: 0.001, 3e-4, 1e30."""
    if value is None:
        return "?"
    if isinstance(value, str) or _is_handy(value):
        return str(value)
    return f"{Decimal(repr(value)).normalize():e}".replace("e+", "e")


def _is_handy(value: float) -> bool:
    """Whether the number is easily read with all its zeros."""
    return value == 0 or (abs(value) < 1e15 if isinstance(value, int) else 1e-3 <= abs(value) < 1e9)


def _ahead(one: Sequence[float], other: Sequence[float], measure: Measure) -> bool:
    return (fmean(one) > fmean(other)) == measure.highest_wins


def _spread(values: Sequence[float], unit: str) -> str:
    if len(values) == 1:
        return f"{rounded(values[0])}{unit} (one run)"
    lowest, highest = rounded(min(values)), rounded(max(values))
    return f"{rounded(fmean(values))}{unit} ({lowest} to {highest} over {len(values)} runs)"


def _of_env(sweep: RunSet, env: str) -> RunSet:
    """The jobs of one env, and the keys in which these differ."""
    jobs = tuple(job for job in sweep.jobs if job.env == env)
    swept = tuple(key for key in sweep.swept if len({job.settings[key] for job in jobs}) > 1)
    return replace(sweep, name=jobs[0].name if len(jobs) == 1 else env, swept=swept, jobs=jobs)


def _compared_keys(sweep: RunSet) -> list[str]:
    return [key for key in sweep.swept if key != "seed"]


def _are_named(sweep: RunSet) -> bool:
    return not sweep.was_launched and len(_compared_keys(sweep)) > MOST_KEYS


def _configurations(sweep: RunSet) -> tuple[Configuration, ...]:
    keys = _compared_keys(sweep)
    groups: dict[tuple[Value | None, ...], list[JobResult]] = {}
    for job in sweep.jobs:
        groups.setdefault(tuple(job.settings[key] for key in keys), []).append(job)
    ordered = sorted(groups, key=lambda values: [in_order(value) for value in values])
    settings = [dict(zip(keys, values, strict=True)) for values in ordered]
    jobs = [tuple(groups[values]) for values in ordered]
    labels = _names(jobs) if _are_named(sweep) else [_settings_label(one) or sweep.name for one in settings]
    return tuple(map(Configuration, labels, settings, jobs))


def _settings_label(settings: Mapping[str, Value | None]) -> str:
    """As "num_envs=8, gamma=0.9"."""
    names = short_names(settings)
    return ", ".join(f"{names[key]}={as_set(value)}" for key, value in settings.items())


def _names(groups: Sequence[Sequence[JobResult]]) -> list[str]:
    """A name for each group of jobs, that of its first job; the job's number is added where two would be equal."""
    names = [jobs[0].name + (f" and {len(jobs) - 1} more" if len(jobs) > 1 else "") for jobs in groups]
    return [
        f"{name} (job {jobs[0].number})" if names.count(name) > 1 else name
        for name, jobs in zip(names, groups, strict=True)
    ]


def in_order(value: Value | None) -> tuple[bool, float, str]:
    """Sorts numbers by size, before text."""
    return (False, value, "") if isinstance(value, int | float) else (True, 0, str(value))


def _threshold(sweep: RunSet, configurations: Sequence[Configuration]) -> tuple[float | None, str]:
    if sweep.reward_threshold is not None:
        return sweep.reward_threshold, "set for the sweep"
    means = [mean(one.completed, lambda job: job.final_reward) for one in configurations]
    best = max((value for value in means if value is not None), default=0.0)
    if best <= 0:
        return None, "none was set, and no completed setting has a positive final reward to derive one from"
    return THRESHOLD_SHARE * best, f"{THRESHOLD_SHARE:.0%} of the best setting's mean final reward; none was set"


def _threshold_words(results: Results) -> str:
    return f"{'' if results.threshold is None else f'{rounded(results.threshold, 4)}, '}{results.threshold_from}"


def _memory_row(jobs: Sequence[JobResult]) -> str | None:
    """The row that stands for all jobs."""
    both = {name for job in jobs for name in job.run.predicted_bytes.keys() & job.run.measured_bytes.keys()}
    return peak_row(both, {name for job in jobs for name in job.run.measured_bytes})


def _harmless(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _dominates(one: tuple[float, float, float], other: tuple[float, float, float]) -> bool:
    """Whether `one`, as (reward, memory, time), is nowhere worse and somewhere better."""
    no_worse = one[0] >= other[0] and one[1] <= other[1] and one[2] <= other[2]
    return no_worse and one != other
