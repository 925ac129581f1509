"""An evaluation as a table for people: a row for each policy under each condition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from ppo_lab.runs.folder import checkpoint_name

UNKNOWN = "-"
EXACT = 1e-9
"""Relative to the mean: a smaller interval is rounding."""
MAX_DECIMALS = 5


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


def notes(document: Mapping[str, Any]) -> list[str]:
    """What a reader of the table must know beside it."""
    if document["episodes"] > 1 and not any(_has_spread(result) for result in document["results"]):
        return [
            f"All {document['episodes']} episodes are alike: this env starts each in the same state with the same "
            "command, and the policy's actions are not sampled. Vary them: actions=sampled, or env.KEY=VALUE."
        ]
    return []


def _has_spread(result: Mapping[str, Any]) -> bool:
    found = result["return"]
    return found["std"] is not None and found["std"] > EXACT * max(1.0, abs(found["mean"]))


def _title(result: Mapping[str, Any], has_conditions: bool) -> str:
    name, iteration = result["policy"], result["iteration"]
    is_numbered = iteration is not None and name == checkpoint_name("model", iteration)
    name = f"iteration {iteration}" if is_numbered else name.removesuffix(".pt")
    return f"{name}\n{result['condition']}" if has_conditions else name


def _mean(found: Mapping[str, Any]) -> str:
    """Mean and half of its interval, as 2.02±0.04; the mean alone where there is no spread."""
    mean, interval = found["mean"], found["ci95"]
    if mean is None:
        return UNKNOWN
    half = (interval[1] - interval[0]) / 2 if interval else 0.0
    if half <= abs(mean) * EXACT:
        return f"{mean:.4g}"
    decimals = 1 - math.floor(math.log10(half))  # two digits of the interval
    if not 0 <= decimals <= MAX_DECIMALS:
        return f"{mean:.3g}±{half:.1g}"
    return f"{mean:.{decimals}f}±{half:.{decimals}f}"


def _rate(found: Mapping[str, Any]) -> str:
    return f"{found['rate']:.1%}"
