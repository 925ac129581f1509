"""An evaluation as a table for people: a row for each policy under each condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

UNKNOWN = "-"


def table(document: Mapping[str, Any]) -> Table:
    """`document`: as `ppo_lab.deploy.evaluation.document` gives it. A column for each result, a row for each figure."""
    results = document["results"]
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    shown.add_column(f"{document['env']}, {document['episodes']} episodes", no_wrap=True)
    for result in results:
        shown.add_column(_title(result, len(document["conditions"]) > 1), justify="right")
    rows = {
        "return": [_mean(result["return"]) for result in results],
        "episode_length_s": [_mean(result["episode_length_s"]) for result in results],
        **{name: [_mean(result["measured"][name]) for result in results] for name in results[0]["measured"]},
        **{f"ended: {name}": [_rate(result["endings"][name]) for result in results] for name in results[0]["endings"]},
        **{f"reward: {name}": [_mean(result["rewards"][name]) for result in results] for name in results[0]["rewards"]},
    }
    for name, cells in rows.items():
        shown.add_row(name, *cells)
    return shown


def _title(result: Mapping[str, Any], has_conditions: bool) -> str:
    name = result["policy"].removesuffix(".pt").replace("model_", "iteration ")
    return f"{name}\n{result['condition']}" if has_conditions else name


def _mean(found: Mapping[str, Any]) -> str:
    """Mean and half of its interval."""
    if found["mean"] is None:
        return UNKNOWN
    if found["ci95"] is None:
        return f"{found['mean']:.4g}"
    return f"{found['mean']:.4g} ± {(found['ci95'][1] - found['ci95'][0]) / 2:.2g}"


def _rate(found: Mapping[str, Any]) -> str:
    return f"{found['rate']:.1%}"
