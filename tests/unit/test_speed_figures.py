"""The figures of benchmarks/speed.py: medians, ratios, the growth with num_envs, tables and picture."""

import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from benchmarks import speed
from benchmarks.speed import STOCK, Iteration

OURS = "2 processes"


def rows(*ended_s: float, reward: float | None = None, length: float | None = None) -> list[Iteration]:
    """Iterations that collect for their number in seconds, and update for ten times as long."""
    return [Iteration(end, number, 10.0 * number, reward, length) for number, end in enumerate(ended_s)]


def a_run(name: str, seconds: float, busy: int = 0, num_envs: int = 512, others: float = 0.0) -> dict[str, Any]:
    seconds_of = {"startup_s": 10 * seconds, "collect_s": 0.25 * seconds, "update_s": 0.75 * seconds}
    return {
        "row": name,
        "busy_processes": busy,
        "num_envs": num_envs,
        "others_cores": others,
        "iteration_s": seconds,
    } | (seconds_of)


@pytest.fixture
def result() -> dict[str, Any]:
    """What speed.json would hold: the third measurement of ours is a bad one."""
    times = [(STOCK, 2.0, 0), (OURS, 0.8, 0), (STOCK, 2.2, 0), (OURS, 1.0, 0), (STOCK, 2.1, 0), (OURS, 9.0, 0)]
    iteration = [a_run(*found) for found in [*times, (STOCK, 8.0, 1), (OURS, 2.0, 1)]]
    sizes = [a_run(OURS, num_envs / 512, num_envs=num_envs) for num_envs in (128, 512, 2048)]
    walks = [{"row": name, "seed": seed, "walks_s": took} for name, seed, took in [
        (STOCK, 1, 240.0), (OURS, 1, 60.0), (STOCK, 2, None), (OURS, 2, 80.4)
    ]]  # fmt: skip
    return {
        "iteration": {"runs": iteration, "num_steps_per_env": 24},
        "sizes": {"runs": [a_run(STOCK, 2.0), *sizes], "num_steps_per_env": 24},
        "growth": {"row": OURS, "num_envs": 128, "early_s": 0.4, "late_s": 0.42},
        "walk": {"runs": walks},
    }


def test_medians_leave_out_the_first_iterations_and_count_from_end_to_end() -> None:
    assert speed.medians(rows(30.0, 36.0, 38.0, 41.0, 45.0), warm_up=2) == {
        "startup_s": 30.0,
        "collect_s": 3.0,
        "update_s": 30.0,
        "iteration_s": 3.0,  # of 2, 3 and 4: from the end of the second on
    }


def test_a_ratio_is_of_medians_over_the_repeats(result: dict[str, Any]) -> None:
    runs = result["iteration"]["runs"]
    assert speed.times_as_fast(runs, OURS, busy_processes=0) == pytest.approx(2.1 / 1.0)
    assert speed.times_as_fast(runs, OURS, busy_processes=1) == 4.0
    assert math.isnan(speed.times_as_fast(runs, "another", busy_processes=1))


@pytest.mark.parametrize("power", [0.0, 0.9, 1.0, 1.5])
def test_the_exponent_of_a_power_law_is_found(power: float) -> None:
    assert speed.exponent({n: 3e-3 * n**power for n in (128, 512, 1024, 4096)}) == pytest.approx(power)


def test_a_policy_walks_from_the_first_iteration_on_that_has_both_reward_and_length() -> None:
    falls, stands = rows(1.0, 2.0, reward=12.0, length=849.0), rows(3.0, reward=9.9, length=1000.0)
    walks = rows(4.0, 5.0, reward=10.0, length=850.0)
    assert speed.walked([*rows(0.5), *falls, *stands, *walks]) == 4
    assert speed.walked([*falls, *stands]) is None


def test_the_report_has_80_columns_and_says_what_was_reached(result: dict[str, Any]) -> None:
    written = io.StringIO()
    Console(width=80, file=written).print(speed.report(result))
    text = written.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "2 processes 0.25 0.75 1.00 10.0 2.10 x" in lines
    assert "512 2.00 s 1.00 s 81.4 2.00 x" in lines  # 1 s / (512 x 24)
    assert "2,048 4.00 s 81.4" in lines
    assert "2 processes 70 60 .. 80 2 2" in lines
    assert "rsl_rl's runner 240 240 .. 240 1 2" in lines
    said = " ".join(lines)
    assert "2 processes, idle machine: 2.10 times as fast; the goal of 2.3 is missed" in said
    assert "2 processes, one busy process: 4.00 times as fast; the goal of 5.0 is missed" in said
    assert "an iteration's time grows as num_envs^1.00: no faster than num_envs" in said
    assert "iterations 100 to 200 of 128 envs take 1.05 times as long as 10 to 20" in said
    assert "disturbed" not in said


def test_the_report_says_that_others_used_the_machine(result: dict[str, Any]) -> None:
    runs = [*result["iteration"]["runs"], a_run(OURS, 1.0, others=1.25)]
    said = list(speed.show_iteration({"runs": runs, "num_steps_per_env": 24}))
    assert "disturbed: processes of others used up to 1.2 cores meanwhile" in said


@pytest.mark.parametrize("parts", [("iteration",), ("sizes",), ("growth",), ("iteration", "sizes", "growth", "walk")])
def test_a_picture_is_drawn_of_the_parts_that_there_are(
    parts: tuple[str, ...], result: dict[str, Any], tmp_path: Path
) -> None:
    speed.draw({name: result[name] for name in parts}, tmp_path / "speed.png")
    with Image.open(tmp_path / "speed.png") as picture:
        assert picture.size == (1210, 462)


def test_the_bars_are_as_long_as_collection_and_update_together(result: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    axes: Any = Figure().subplots()
    speed.draw_bars(axes, result["iteration"])
    assert [text.get_text().strip() for text in axes.texts] == ["2.10", "1.00", "8.00", "2.00"]


def test_an_unknown_part_is_refused_with_those_that_there_are(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        speed.main(["everything", "--out", str(tmp_path)])
    assert re.search(r"invalid choice: '?everything.*iteration.*sizes.*growth", capsys.readouterr().err)
