"""An evaluation as a table: every figure is legible, however narrow the terminal."""

import io
from typing import Any

import pytest
from rich.console import Console

from ppo_lab.deploy.table import tables


def summed_up(mean: float) -> dict[str, Any]:
    return {"n": 64, "mean": mean, "std": 1.0, "ci95": [mean - 0.25, mean + 0.25], "min": mean, "max": mean}


def document(conditions: int) -> dict[str, Any]:
    names = [f"{number}.5 m/s" for number in range(conditions)]
    results = [
        {
            **{"policy": "best.pt", "iteration": 7, "condition": name, "return": summed_up(10.0 + number)},
            **{"episode_length_s": summed_up(20.0), "measured": {"speed_m_s": summed_up(0.5)}},
            **{"endings": {"time_out": {"rate": 0.25}}, "rewards": {"tracking_lin_vel": summed_up(-100.0)}},
        }
        for number, name in enumerate(names)
    ]
    return {"env": "go2", "episodes": 64, "conditions": {name: {} for name in names}, "results": results}


@pytest.mark.parametrize(("width", "number"), [(40, 9), (80, 3), (300, 1)])
def test_results_that_do_not_fit_side_by_side_come_in_several_tables_and_none_is_cut_short(
    width: int, number: int
) -> None:
    shown = tables(document(9), width)
    text = io.StringIO()
    for table in shown:
        Console(file=text, width=width).print(table)
    assert len(shown) == number
    assert "…" not in text.getvalue()
    for result in range(9):
        assert f"{10 + result:.2f}±0.25" in text.getvalue()
        assert f"{result}.5 m/s" in text.getvalue()
    assert text.getvalue().count("25.0%") == 9
