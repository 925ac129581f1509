"""An evaluation as a table for people: a column for each policy under each condition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from ppo_lab.runs.folder import checkpoint_name

UNKNOWN = "-"
EXACT = 1e-9
"""Relative to the mean: a smaller interval is rounding."""
MAX_DECIMALS = 5


def tables(document: Mapping[str, Any], width: int) -> list[Table]:
    """A column for each result, a row for each figure; as many tables as it takes to show them in `width` characters.

    `document`: as `ppo_lab.deploy.evaluation.document` gives it.
    """
    results = document["results"]
    has_conditions = len(document["conditions"]) > 1
    first = [f"{document['env']}, {document['episodes']} episodes", *_figures(results[0])]
    columns = [[_title(result, has_conditions), *_figures(result).values()] for result in results]
    left = width - max(map(len, first))
    groups: list[list[list[str]]] = [[]]
    for column in columns:
        if groups[-1] and sum(map(_width, [*groups[-1], column])) > left:
            groups.append([])
        groups[-1].append(column)
    return [_table(first, group) for group in groups]


def _table(first: Sequence[str], columns: Sequence[Sequence[str]]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    shown.add_column(first[0], no_wrap=True)
    for title, *_ in columns:
        shown.add_column(title, justify="right")
    for row in zip(first[1:], *(cells for _, *cells in columns), strict=True):
        shown.add_row(*row)
    return shown


def _width(column: Sequence[str]) -> int:
    """Of its widest line, with what separates it from the next column."""
    return max(len(line) for cell in column for line in cell.splitlines()) + 3


def _figures(result: Mapping[str, Any]) -> dict[str, str]:
    return {
        "return": _mean(result["return"]),
        "episode_length_s": _mean(result["episode_length_s"]),
        **{name: _mean(found) for name, found in result["measured"].items()},
        **{f"ended: {name}": _rate(found) for name, found in result["endings"].items()},
        **{f"reward: {name}": _mean(found) for name, found in result["rewards"].items()},
    }


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
