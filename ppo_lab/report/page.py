"""The report's page: one file that needs no other, and lets nothing that a folder says become markup or code."""

from __future__ import annotations

import base64
import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ppo_lab.report import results as numbers
from ppo_lab.report.job_results import JobResult, Value
from ppo_lab.report.pictures import Picture
from ppo_lab.report.results import Configuration, Results
from ppo_lab.runs.folder import RunFolder

HERE = Path(__file__).parent

STATUSES = ("completed", "running", "planned", "over_budget", "interrupted", "killed", "failed")
"""As they are counted; each has its colour in page.css."""


def render(results: Results, pictures: Mapping[str, Picture], folder: Path) -> str:
    """The page. `folder`: where the page will be, from which its links start."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = numbers.rounded
    environment.filters["setting"] = _setting
    script = (HERE / "sort.js").read_text()
    counts = Counter(job.status for job in results.sweep.jobs)
    return environment.get_template("page.html").render(
        sweep=results.sweep,
        parts=[
            (env, part, numbers.lessons(part), _settings_table(part), _shown(pictures, env))
            for env, part in results.by_env.items()
        ],
        statuses={status: counts[status] for status in (*STATUSES, *sorted(counts)) if counts[status]},
        jobs=[
            (job, row, _links(job, folder)) for job, row in zip(results.sweep.jobs, numbers.rows(results), strict=True)
        ],
        has_ancestry=any(job.run.ancestry for job in results.sweep.jobs),
        status_class=lambda status: status if status in STATUSES else "other",
        style=Markup((HERE / "page.css").read_text()),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _settings_table(results: Results) -> list[tuple[Configuration, Any, bool]]:
    """Configuration, figures, and whether no other beats it (it is Pareto-optimal); the best final reward first."""
    pareto_optimal = {id(one) for one in results.pareto_front}
    best_first = sorted(results.configurations, key=_final_reward, reverse=True)
    return [(one, _figures(results, one), id(one) in pareto_optimal) for one in best_first]


def _shown(pictures: Mapping[str, Picture], env: str) -> list[tuple[Picture, str]]:
    """The env's pictures, as base64."""
    return [(one, base64.b64encode(one.png).decode()) for one in pictures.values() if one.env == env]


def _setting(value: Value | None) -> str:
    return numbers.as_set(value) if isinstance(value, float | str) else numbers.rounded(value)


def _figures(results: Results, one: Configuration) -> list[tuple[float | None, float | None, float | None]]:
    """Mean, lowest and highest over completed runs, column by column of the page's first table."""
    columns = (
        lambda job: job.final_reward,
        results.reward_per_minute,
        results.time_to_threshold_s,
        lambda job: job.steps_per_s,
        lambda job: job.training_s,
        results.measured_mib,
    )
    return [numbers.mean_and_range(one.completed, of) or (None, None, None) for of in columns]


def _final_reward(one: Configuration) -> float:
    reward = numbers.mean(one.completed, lambda job: job.final_reward)
    return float("-inf") if reward is None else reward


def _links(job: JobResult, folder: Path) -> dict[str, str | None]:
    """Addresses of what there is to open of the run, from the page."""
    paths = {"folder": job.folder, "log": RunFolder(job.folder).log}
    return {
        name: f"./{quote(os.path.relpath(path, folder))}" if path.exists() else None for name, path in paths.items()
    }
