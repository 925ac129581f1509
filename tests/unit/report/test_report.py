"""The report: its numbers are those of the run folders, and nothing in a folder can harm who reads it."""

import base64
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ppo_lab import report
from ppo_lab.cli import report as program
from ppo_lab.cli.exits import exit_codes
from ppo_lab.errors import ConfigError
from ppo_lab.report import page, pictures, results
from ppo_lab.report.job_results import read_runs, read_sweep
from tests.paths import REPOSITORY

MIB = 2**20
EVIL = "<script>alert(1)</script>"


def write_run(
    folder: Path,
    rewards: Sequence[float | None],
    *,
    seed: int = 1,
    num_envs: int = 4,
    iteration_s: float = 2.0,
    predicted_mib: float = 3,
    measured_mib: float | None = 2,
    status: str | None = "completed",
    config: dict[str, Any] | None = None,
) -> Path:
    """A run folder with the files and keys of a real one: 2 steps, a reward an iteration, None where none ended."""
    folder.mkdir(parents=True)
    settings = {"num_envs": num_envs, "num_steps_per_env": 2, "seed": seed, "algorithm": {"num_mini_batches": 4}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings | (config or {})))
    estimate = {
        "hardware": {"name": "Host", "compute_capability": "cpu"},
        "device_bytes": {"low": 9 * MIB, "likely": None, "high": None},
        "rollout_peak_bytes": MIB,
        "update_peak_bytes": round(predicted_mib * MIB),
        "allocated_peak_bytes": round(predicted_mib * MIB),
        "reserved_peak_bytes": None,
    }
    (folder / "estimate.json").write_text(json.dumps(estimate))
    rows = []
    for iteration, reward in enumerate(rewards):
        row = {
            "iteration": iteration,
            "Perf/total_fps": 1.0,
            "Perf/collection_time": 0.75 * iteration_s,
            "Perf/learning_time": 0.25 * iteration_s,
            "Memory/host_peak_rss_mib": 900.0 + iteration,
            "Memory/predicted_allocated_peak_mib": predicted_mib,
        }
        if measured_mib is not None:
            row["Memory/allocated_peak_mib"] = measured_mib - (iteration == 0)  # the first one holds less
        if reward is not None:
            row["Train/mean_reward"] = reward
        rows.append(json.dumps(row) + "\n")
    (folder / "metrics.jsonl").write_text("".join(rows))
    (folder / "train.log").write_text("")
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text("num_envs: 1")
    if status:
        summary = {"status": status, "message": None, "iterations": len(rewards), "wall_s": 99.0}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def write_sweep(folder: Path, jobs: Sequence[dict[str, Any]], **record: Any) -> Path:
    """The launcher's record; each job's `overrides` give it its name and folder unless it says otherwise."""
    folder.mkdir(exist_ok=True)
    entries = []
    for number, job in enumerate(jobs):
        name = ",".join(job["overrides"])
        plain = {"number": number, "name": name, "folder": name, "status": "completed", "exit_code": 0, "message": None}
        more = {"device": "cpu", "predicted_bytes": 5 * MIB, "started": None, "wall_s": 100.0}
        more |= {"max_iterations": 2, "transitions": 8}
        entries.append(plain | more | job)
    values: dict[str, set[str]] = {}
    for job in jobs:
        for override in job["overrides"]:
            values.setdefault(override.partition("=")[0], set()).add(override.partition("=")[2])
    content = {
        "name": "sizes",
        "started": "2026-11-20T10:00:00+00:00",
        "command": "python train.py -m",
        "swept": [key for key, found in values.items() if len(found) > 1],
        "device": "cpu",
        "settings": {"reward_threshold": None},
        "jobs": entries,
    }
    (folder / "jobs.json").write_text(json.dumps(content | record))
    return folder


def seeds(folder: Path, finals: dict[int, Sequence[float]], **more: Any) -> Path:
    """A sweep of num_envs -> the final reward of each seed, two iterations of 2 s each."""
    jobs = []
    for num_envs, rewards in finals.items():
        for seed, reward in enumerate(rewards, start=1):
            overrides = [f"num_envs={num_envs}", f"seed={seed}"]
            write_run(folder / ",".join(overrides), [None, reward], seed=seed, num_envs=num_envs, **more)
            jobs.append({"overrides": overrides})
    return write_sweep(folder, jobs)


def evaluated(folder: Path) -> list[dict[str, Any]]:
    """The rows of a sweep's sweep.json, without drawing."""
    return strict(json.dumps(results.as_json(results.of(read_sweep(folder)))))["jobs"]


def strict(text: str) -> dict[str, Any]:
    """What is to be JSON in the strict sense."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    content: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return content


def page_of(folder: Path) -> str:
    """A sweep's report.html, without pictures."""
    return page.render(results.of(read_sweep(folder)), {}, folder)


def test_the_numbers_are_those_of_the_metrics(tmp_path: Path) -> None:
    # 4 envs x 2 steps x 4 iterations of 2 s: 32 transitions in 8 s; the reward is 2 or more from the third on
    write_run(tmp_path / "seed=1", [None, 1.0, 4.0, 3.0])
    write_run(tmp_path / "seed=2", [1.0], seed=2, measured_mib=4, predicted_mib=3)
    jobs: list[dict[str, Any]] = [{"overrides": ["seed=1"]}, {"overrides": ["seed=2"], "wall_s": None}]
    first, second = evaluated(write_sweep(tmp_path, jobs, settings={"reward_threshold": 2.0}))
    assert first == {
        "number": 0,
        "name": "seed=1",
        "seed": 1,
        "status": "completed",
        "ancestry": None,
        "final_reward": 3.0,
        "best_reward": 4.0,
        "evaluated_return": None,
        "evaluated_iteration": None,
        "time_to_threshold_s": 6.0,
        "steps_per_s": 4.0,
        "wall_s": 100.0,
        "training_s": 8.0,
        "iterations": 4,
        "transitions": 32,
        "memory_row": "allocated_peak",
        "predicted_peak_mib": 3.0,
        "measured_peak_mib": 2.0,
        "memory_error_percent": 50.0,
        "planned_mib": 5.0,
        "message": "",
    }
    assert second["wall_s"] == 99.0, "the run's own, where the launcher has none"
    assert second["time_to_threshold_s"] is None
    assert second["measured_peak_mib"] == 3.0, "4 less 1, as the first iteration is the only one"
    assert second["memory_error_percent"] == 0.0


def test_the_csv_says_what_the_json_says(tmp_path: Path) -> None:
    found = results.of(read_sweep(seeds(tmp_path, {4: [1.0, 2.5], 8: [3.0, 1 / 3]})))
    lines = list(csv.DictReader(io.StringIO(results.as_csv(found))))
    rows = evaluated(tmp_path)
    assert [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows] == lines
    assert lines[3]["final_reward"] == repr(1 / 3)


def test_where_no_threshold_is_set_it_is_nine_tenths_of_the_best_setting(tmp_path: Path) -> None:
    # the means are 2 and 5; the single best run, 7, does not decide
    found = results.of(read_sweep(seeds(tmp_path, {4: [1.0, 3.0], 8: [3.0, 7.0]})))
    assert found.threshold == 4.5
    assert "90%" in found.threshold_from
    assert str(found.threshold) in page_of(tmp_path)


def test_without_a_positive_reward_there_is_no_threshold_and_no_ratio(tmp_path: Path) -> None:
    found = results.of(read_sweep(seeds(tmp_path, {4: [-3.0, -2.0], 8: [-1.0, -1.0]})))
    assert found.threshold is None
    assert found.reward_per_minute(found.sweep.jobs[0]) is None
    assert "no setting has one in all of its runs" in results.lessons(found)[1]


def test_every_status_is_reported_and_only_completed_runs_count(tmp_path: Path) -> None:
    names = ["completed", "failed", "killed", "over_budget", "planned", "running", "interrupted"]
    jobs: list[dict[str, Any]] = [
        {"overrides": [f"seed={seed}"], "status": status, "message": None if status == "completed" else f"why {status}"}
        for seed, status in enumerate(names)
    ]
    write_run(tmp_path / "seed=0", [1.0, 2.0])
    write_run(tmp_path / "seed=1", [9.0], status="failed")
    killed = write_run(tmp_path / "seed=2", [9.0, 9.0], status=None)
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 2, "Perf/collec')
    (tmp_path / "seed=5").mkdir()
    write_run(tmp_path / "seed=6", [], status="interrupted")
    rows = evaluated(write_sweep(tmp_path, jobs))
    shown = page_of(tmp_path)
    assert [row["status"] for row in rows] == names
    assert [row["iterations"] for row in rows] == [2, 1, 2, 0, 0, 0, 0]
    assert [row["final_reward"] for row in rows] == [2.0, 9.0, 9.0, None, None, None, None]
    assert rows[2]["message"] == "why killed; metrics.jsonl is damaged in line 3 of 3, and read up to there"
    assert rows[3]["planned_mib"] == 5.0
    for status in names[1:]:
        assert f"why {status}" in shown
    found = results.of(read_sweep(tmp_path))
    assert found.threshold == pytest.approx(1.8), "of the completed run's 2, not of 9"
    assert [len(one.completed) for one in found.configurations] == [1]


@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "estimate.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[1, 2]", b"{", b'{"a": NaN}'])
def test_a_damaged_file_costs_no_more_than_what_it_holds(tmp_path: Path, name: str, content: bytes) -> None:
    seeds(tmp_path, {4: [1.0, 2.0], 8: [3.0, 4.0]})
    damaged = tmp_path / "num_envs=8,seed=2"
    (damaged / name).write_bytes(content)
    rows = evaluated(tmp_path)
    assert [row["final_reward"] for row in rows[:3]] == [1.0, 2.0, 3.0]
    assert rows[3]["seed"] == 2
    is_told = name in rows[3]["message"]
    can_be_empty = content == b"" and name == "metrics.jsonl"
    is_an_object = content == b'{"a": NaN}' and name in ("config.yaml", "summary.json")
    assert is_told != (can_be_empty or is_an_object)


def test_metrics_are_read_up_to_their_first_damage(tmp_path: Path) -> None:
    write_run(tmp_path / "seed=1", [1.0, 2.0, 3.0])
    lines = (tmp_path / "seed=1" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "seed=1" / "metrics.jsonl").write_text("\n".join([lines[0], lines[1][:-9], lines[2]]))
    (row,) = evaluated(write_sweep(tmp_path, [{"overrides": ["seed=1"]}]))
    assert (row["iterations"], row["final_reward"]) == (1, 1.0)
    assert row["message"] == "metrics.jsonl is damaged in line 2 of 3, and read up to there"


def test_where_no_episode_ended_there_is_no_reward_and_no_nan(tmp_path: Path, unrendered: None) -> None:
    write_run(tmp_path / "seed=1", [None, None])
    write_run(tmp_path / "seed=2", [None, float("nan")], seed=2)
    write_sweep(tmp_path, [{"overrides": ["seed=1"]}, {"overrides": ["seed=2"]}])
    for row in evaluated(tmp_path):
        assert (row["final_reward"], row["best_reward"], row["time_to_threshold_s"]) == (None, None, None)
        assert row["steps_per_s"] == 4.0
    assert "no episode ended in any run" in page_of(tmp_path)
    assert "reward_over_steps.png" not in pictures.draw(results.of(read_sweep(tmp_path)))


LESSON = {
    # final rewards over 4 s: per minute 15 times as much
    "claimed": (
        {4: [1.0, 2.0], 8: [3.0, 5.0]},
        "best is num_envs=8 with 60.0/min (45.0 to 75.0 over 2 runs), ahead of",
    ),
    "overlaps": ({4: [1.0, 3.5], 8: [3.0, 5.0]}, "no setting is shown to be best. num_envs=8 with 60.0/min"),
    "touches": ({4: [1.0, 3.0], 8: [3.0, 5.0]}, "no setting is shown to be best."),
    "ran once": ({4: [1.0], 8: [3.0]}, "comes first, but what ran once has no known spread: no claim."),
    "one ran once and came out ahead": (
        {4: [1.0, 2.0], 8: [3.0, 5.0], 16: [9.0]},
        "best is num_envs=8 with 60.0/min (45.0 to 75.0 over 2 runs), ahead of num_envs=4 with 22.5/min "
        "(15.0 to 30.0 over 2 runs). With so few seeds, take it as a hint. "
        "num_envs=16 came out ahead with 135/min (one run), which is not enough.",
    ),
    "alone": ({4: [1.0, 2.0]}, "no other setting has one, so there is nothing to compare."),
    "many seeds": ({4: [1.0, 2.0, 1.5, 1.0, 1.0], 8: [3.0, 3.0, 3.0, 4.0, 5.0]}, "over 5 runs)."),
}


@pytest.mark.parametrize(("finals", "said"), LESSON.values(), ids=LESSON.keys())
def test_a_difference_within_the_spread_over_seeds_is_not_claimed(
    tmp_path: Path, finals: dict[int, Sequence[float]], said: str
) -> None:
    per_minute = results.lessons(results.of(read_sweep(seeds(tmp_path, finals))))[1]
    assert said in per_minute
    assert ("best is" in per_minute) == (said.startswith("best is") or said == "over 5 runs).")
    assert ("hint" in per_minute) == said.startswith("best is")


def test_the_quickest_to_the_threshold_is_the_one_with_the_least_time(tmp_path: Path) -> None:
    # the threshold is 0.9 x 4; those that reach it do so in the second of their iterations
    jobs = []
    for num_envs, iteration_s in ((4, 1.0), (8, 3.0)):
        for seed in (1, 2):
            overrides = [f"num_envs={num_envs}", f"seed={seed}"]
            write_run(
                tmp_path / ",".join(overrides), [None, 4.0], seed=seed, num_envs=num_envs, iteration_s=iteration_s
            )
            jobs.append({"overrides": overrides})
    lesson = results.lessons(results.of(read_sweep(write_sweep(tmp_path, jobs))))[2]
    assert "best is num_envs=4 with 2.00 s" in lesson
    assert "ahead of num_envs=8 with 6.00 s" in lesson


def test_the_front_holds_what_no_other_beats_in_all_three(tmp_path: Path) -> None:
    # (reward, MiB, s an iteration): 2 is beaten by 1 in memory and time, and equal in reward; 5 by 3 in reward alone
    points = {1: (5, 2, 1), 2: (5, 3, 2), 3: (9, 9, 9), 4: (1, 1.5, 5), 5: (8, 9, 9)}
    jobs = []
    for num_envs, (reward, size, seconds) in points.items():
        overrides = [f"num_envs={num_envs}"]
        write_run(
            tmp_path / overrides[0], [reward, reward], num_envs=num_envs, measured_mib=size, iteration_s=float(seconds)
        )
        jobs.append({"overrides": overrides})
    found = results.of(read_sweep(write_sweep(tmp_path, jobs)))
    assert [one.settings["num_envs"] for one in found.pareto_front] == [1, 3, 4]
    figure = pictures.draw_pareto(found)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "A   num_envs=1",
        "B   num_envs=3",
        "C   num_envs=4",
    ]


def test_the_band_spans_the_seeds_at_the_times_that_all_of_them_have() -> None:
    # the second has its first reward later and stops earlier: from 4 to 6 both are known
    first = np.array([2.0, 4.0, 6.0, 8.0]), np.array([1.0, 2.0, 3.0, 4.0])
    second = np.array([2.0, 4.0, 6.0]), np.array([np.nan, 10.0, 20.0])
    x, middle, low, high = pictures.band([first, second])
    assert x.tolist() == [4.0, 6.0]
    assert (middle.tolist(), low.tolist(), high.tolist()) == ([6.0, 11.5], [2.0, 3.0], [10.0, 20.0])


def test_rewards_are_drawn_over_transitions_and_over_the_runs_clock(tmp_path: Path) -> None:
    found = results.of(read_sweep(seeds(tmp_path, {4: [1.0, 3.0], 8: [5.0, 7.0]})))
    over_steps = pictures.draw_rewards(found, pictures.over_steps, "transitions").axes[0]
    over_time = pictures.draw_rewards(found, pictures.over_time, "s").axes[0]
    # two iterations of 4 or 8 envs x 2 steps, 2 s each; the first has no reward
    assert [points(line) for line in over_steps.lines[:2]] == [[[16.0, 2.0]], [[32.0, 6.0]]]
    assert [points(line) for line in over_time.lines[:2]] == [[[4.0, 2.0]], [[4.0, 6.0]]]


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made and not rendered, which takes the time."""
    monkeypatch.setattr(pictures, "_png", lambda _: b"")


def test_the_heat_maps_hold_the_means_over_the_seeds(tmp_path: Path, unrendered: None) -> None:
    jobs = []
    for num_envs in (4, 8):
        for mini_batches in (2, 4):
            for seed in (1, 2):
                overrides = [f"num_envs={num_envs}", f"algorithm.num_mini_batches={mini_batches}", f"seed={seed}"]
                status = "failed" if (num_envs, mini_batches) == (8, 2) else "completed"
                jobs.append({"overrides": overrides, "status": status})
                write_run(
                    tmp_path / ",".join(overrides),
                    [1.0, 1.0],
                    seed=seed,
                    num_envs=num_envs,
                    iteration_s=0.01 * seed,
                    measured_mib=float(mini_batches),
                    config={"algorithm": {"num_mini_batches": mini_batches}},
                )
    found = results.of(read_sweep(write_sweep(tmp_path, jobs)))
    keys = pictures.size_keys(found)
    assert keys == ("num_envs", "algorithm.num_mini_batches")
    speed, memory = pictures.draw_sizes(found, keys).axes
    # 8 transitions in 10 or 20 ms: 800 and 400 a second; with 8 envs twice as many. 8 envs in 2 mini-batches failed.
    assert texts(speed) == ["600", "600", "1,200"]
    assert texts(memory) == ["2.00", "4.00", "4.00"]
    assert {"speed and memory over num_envs and num_mini_batches"} <= {
        one.title.lower() for one in pictures.draw(found).values()
    }


def test_over_one_key_speed_and_memory_are_lines(tmp_path: Path) -> None:
    found = results.of(read_sweep(seeds(tmp_path, {4: [1.0, 3.0], 16: [5.0, 7.0]})))
    speed, memory = pictures.draw_sizes(found, ("num_envs",)).axes
    assert points(speed.lines[-1]) == [[0, 4.0], [1, 16.0]]
    assert points(memory.lines[-1]) == [[0, 2.0], [1, 2.0]]
    assert [label.get_text() for label in speed.get_xticklabels()] == ["4", "16"]


def test_predicted_is_drawn_against_measured(tmp_path: Path) -> None:
    left, right = pictures.draw_memory(results.of(read_sweep(seeds(tmp_path, {4: [1.0]})))).axes
    assert points(left.lines[0]) == [[2.0, 3.0]]
    assert points(right.lines[0]) == [[2.0, 50.0]]


def test_where_nothing_was_both_predicted_and_measured_the_picture_says_so(tmp_path: Path) -> None:
    found = results.of(read_sweep(seeds(tmp_path, {4: [1.0, 1.0], 8: [1.0, 1.0]}, measured_mib=None)))
    assert found.memory_row == "host_peak_rss"
    (words,) = [text.get_text() for text in pictures.draw_memory(found).texts]
    assert "Nothing was both predicted and measured." in words
    assert "host_peak_rss, 901 to 901 MiB" in words
    assert "memory.count_tensors=true" in words
    assert results.rows(found)[0]["predicted_peak_mib"] is None


def test_a_row_that_was_predicted_comes_before_one_that_was_only_measured(tmp_path: Path) -> None:
    metrics = write_run(tmp_path / "run", [1.0]) / "metrics.jsonl"
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"Memory/reserved_mib": 7.0}) + "\n")
    assert results.of(read_runs([tmp_path])).memory_row == "allocated_peak"
    (tmp_path / "run" / "estimate.json").unlink()
    found = results.of(read_runs([tmp_path]))
    assert found.memory_row == "reserved"
    assert found.measured_mib(found.sweep.jobs[0]) == 7.0


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and the text of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] == "script" and data.strip() and not self.scripts:
            self.scripts.append(data)


def hostile(folder: Path) -> Path:
    jobs = []
    for number, override in enumerate([f"run={EVIL}", "run=$\\frac{$", 'run="onload=alert(1) x="']):
        name = ["javascript:alert(1)", '"><img src=x onerror=alert(1)>', EVIL.replace("/", "\N{DIVISION SLASH}")][
            number
        ]
        write_run(folder / name, [1.0, 2.0])
        status = "failed" if number else "completed"
        jobs.append({"overrides": [override], "name": name, "folder": name, "status": status, "message": EVIL})
    jobs.append({"overrides": ["run==1+1"], "name": "=cmd()", "folder": "none", "message": "@SUM(1)"})
    return write_sweep(folder, jobs, name=EVIL, command=EVIL, started=EVIL)


@pytest.fixture(scope="module")
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a report, with its pictures and all that lies beside it."""
    return report.write(hostile(tmp_path_factory.mktemp("hostile")))


def test_text_of_a_run_folder_is_escaped_in_the_page(hostile_report: Path) -> None:
    shown = hostile_report.read_text()
    tags = Tags(shown)
    assert EVIL not in shown
    assert shown.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 5
    assert [tag for tag, _ in tags.found].count("script") == 1
    assert not any(name.startswith("on") for _, attributes in tags.found for name in attributes)
    links = [attributes["href"] or "" for tag, attributes in tags.found if tag == "a"]
    assert len(links) > 3
    assert all(link.startswith("./") for link in links)


def test_the_status_of_a_run_never_becomes_markup(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [1.0], status=EVIL)
    shown = page.render(results.of(read_runs([tmp_path])), {}, tmp_path)
    assert EVIL not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown


def test_the_page_runs_its_own_script_alone_and_loads_nothing(hostile_report: Path) -> None:
    shown = hostile_report.read_text()
    tags = Tags(shown)
    assert not re.search(r"https?://", shown)
    sources = [attributes["src"] or "" for _, attributes in tags.found if "src" in attributes]
    assert len(sources) >= 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not any(tag in ("link", "iframe", "object", "embed") for tag, _ in tags.found)
    (policy,) = [attributes["content"] for tag, attributes in tags.found if attributes.get("http-equiv")]
    digest = base64.b64encode(hashlib.sha256(tags.scripts[0].encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_a_csv_cell_that_begins_like_a_formula_is_quoted(hostile_report: Path) -> None:
    with hostile_report.with_name("sweep.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert (last["name"], last["run"], last["message"]) == ("'=cmd()", "'=1+1", "'@SUM(1)")
    assert strict(hostile_report.with_name("sweep.json").read_text())["jobs"][-1]["name"] == "=cmd()"


def files_but_hparams(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".hparams"}


def test_the_report_leaves_all_else_as_it_was_and_can_be_made_again(tmp_path: Path) -> None:
    sweep = seeds(tmp_path / "sweep", {128: [1.0, 2.0], 256: [3.0, 4.0]})
    before = files_but_hparams(tmp_path)
    assert report.write(sweep) == sweep / "report.html"
    made = {path: content for path, content in files_but_hparams(tmp_path).items() if path not in before}
    assert {path.parent for path in made} == {sweep}
    names = ["memory.png", "pareto.png", "report.html", "reward_over_steps.png", "reward_over_time.png", "sizes.png"]
    assert sorted(path.name for path in made) == [*names, "sweep.csv", "sweep.json"]
    assert strict((sweep / "sweep.json").read_text())["jobs"] == evaluated(sweep)
    report.write(sweep)
    assert files_but_hparams(tmp_path) == before | made
    rows = {}
    for run in sorted(sweep.glob("num_envs=*")):
        assert len(list(run.glob("*.hparams"))) == 1, "the second report does not double it"
        board = EventAccumulator(str(run)).Reload()
        rows[run.name] = board.Scalars("Result/final_reward")[0].value
    assert rows == {
        "num_envs=128,seed=1": 1.0,
        "num_envs=128,seed=2": 2.0,
        "num_envs=256,seed=1": 3.0,
        "num_envs=256,seed=2": 4.0,
    }


def test_a_job_that_lies_outside_its_sweep_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "secret", [1.0])
    sweep = write_sweep(tmp_path / "sweep", [{"overrides": ["seed=1"], "folder": "../secret"}])
    with pytest.raises(ConfigError, match="lies outside the sweep"):
        report.write(sweep)
    (sweep / "inside").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError, match="lies outside the sweep"):
        report.write(write_sweep(sweep, [{"overrides": ["seed=1"], "folder": "inside"}]))


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"jobs": 3, "swept": []}', '{"jobs": [], "swept": []}', "[" * 9999]
)
def test_a_jobs_json_that_is_no_record_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "jobs.json").write_text(content)
    with pytest.raises(ConfigError, match=r"jobs\.json") as refused:
        report.write(tmp_path)
    assert "\n" not in str(refused.value)


def test_runs_that_were_no_sweep_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    both = {"network": {"activation": "elu", "actor": {"activation": "elu"}}, "run_name": "b"}
    one = {"network": {"activation": "tanh", "actor": {"activation": "tanh"}}, "run_name": "a"}
    write_run(tmp_path / "here" / "a", [1.0], num_envs=4, config=one)
    write_run(tmp_path / "here" / "b", [2.0], num_envs=8, config=both)
    write_run(tmp_path / "c", [3.0], num_envs=8, seed=2, config=both, status=None)
    found = read_runs([tmp_path / "here", tmp_path / "c", tmp_path / "here" / "b"])
    assert found.swept == ("network.activation", "num_envs", "seed")
    assert [dict(job.settings) for job in found.jobs] == [
        {"network.activation": "tanh", "num_envs": 4, "seed": 1},
        {"network.activation": "elu", "num_envs": 8, "seed": 1},
        {"network.activation": "elu", "num_envs": 8, "seed": 2},
    ]
    assert [job.status for job in found.jobs] == ["completed", "completed", "running"]
    assert found.jobs[2].message == "no end is recorded: it still goes, or was killed"


def test_a_run_that_began_with_the_weights_of_another_is_told_from_one_that_did_not(tmp_path: Path) -> None:
    write_run(tmp_path / "scratch", [1.0])  # of an older version, which had no such key
    config = {"init_from": "/x/a run/checkpoints/model_9.pt", "init": {"critic": True, "optimizer": False, "std": True}}
    begun = write_run(tmp_path / "begun", [2.0], config=config)
    entry = {"folder": "/x/a <b>run", "checkpoint": "model_9.pt", "iteration": 9, "sha256": "ab"}
    (begun / "manifest.json").write_text(json.dumps({"ancestry": [entry]}))
    found = results.of(read_runs([tmp_path / "scratch", begun]))
    assert found.sweep.swept == ("init_from",)
    assert [row["init_from"] for row in results.rows(found)] == ["null", "a <b>run:9"]
    assert [row["ancestry"] for row in results.rows(found)] == [None, "a <b>run:9"]
    assert page.render(found, {}, tmp_path).count("a &lt;b&gt;run:9") >= 2


def test_another_env_is_one_difference(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [1.0], config={"env": {"name": "go2", "dt": 0.02}})
    write_run(tmp_path / "b", [1.0], config={"env": {"name": "hover", "dt": 0.01}})
    assert read_runs([tmp_path]).swept == ("env.name",)


def run_report(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ppo_lab", "report", *map(str, arguments)],
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the program in this process and in tmp_path, without drawing: its exit code, stdout and stderr."""
    monkeypatch.setattr(pictures, "draw", lambda _: {})
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = 0
        try:
            with exit_codes():
                program.main([*map(str, arguments)])
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return run


def test_the_program_writes_into_a_sweep(tmp_path: Path) -> None:
    sweep = seeds(tmp_path / "sweep", {4: [1.0], 8: [2.0]})
    done = run_report(sweep)
    assert (done.returncode, done.stdout) == (0, f"report: {sweep}/report.html\n"), done.stderr
    assert (sweep / "sizes.png").exists()


def test_a_report_on_runs_goes_where_it_is_told(tmp_path: Path, here: Callable[..., tuple[int, str, str]]) -> None:
    sweep = seeds(tmp_path / "sweep", {4: [1.0], 8: [2.0]})
    done = here(sweep / "num_envs=4,seed=1", sweep / "num_envs=8,seed=1", "--into", tmp_path / "there")
    assert done == (0, f"report: {tmp_path}/there/report.html\n", "")
    assert [row["num_envs"] for row in strict((tmp_path / "there" / "sweep.json").read_text())["jobs"]] == [4, 8]
    code, said, _ = here(sweep / "num_envs=4,seed=1")
    assert code == 0
    assert re.fullmatch(r"report: outputs/reports/[\d-]{10}_[\d-]{8}/report.html\n", said)


def test_a_wrong_folder_is_refused_in_one_line(tmp_path: Path, here: Callable[..., tuple[int, str, str]]) -> None:
    (tmp_path / "empty").mkdir()
    mend = "Name a sweep, runs, or folders with runs in them.\n"
    assert here("nowhere") == (2, "", f"error: nowhere is not a folder. {mend}")
    assert here("empty") == (2, "", f"error: empty has no run in it. {mend}")


def test_a_place_that_cannot_be_is_refused_in_one_line(
    tmp_path: Path, here: Callable[..., tuple[int, str, str]]
) -> None:
    run = write_run(tmp_path / "run", [1.0])
    code, said, error = here(run, "--into", run / "train.log")
    assert (code, said) == (2, "")
    assert re.fullmatch(r"error: cannot write the report into .*; choose another folder with --into .*\n", error)


@pytest.mark.slow  # tests/system/test_real_sweep.py reports on three
def test_a_real_run_is_read_whole(train: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    done = train("experiment=smoke", "env=hover", "memory.count_tensors=true", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    done = run_report(tmp_path / "run", "--into", tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = strict((tmp_path / "sweep.json").read_text())["jobs"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (allocated,) = [memory for memory in summary["memory"] if memory["name"] == "allocated_peak"]
    assert (row["status"], row["iterations"]) == ("completed", summary["iterations"])
    assert (row["wall_s"], row["final_reward"]) == (summary["wall_s"], summary["final_reward"])
    assert row["predicted_peak_mib"] * MIB == allocated["predicted_bytes"]
    assert row["measured_peak_mib"] * MIB == allocated["measured_bytes"]
    assert row["message"] == ""
    assert 0 < row["training_s"] <= summary["training_s"]


# what is shown


def reward_lines(folder: Path, course: pictures.Course = pictures.over_time) -> list[Line2D]:
    """The lines of rewards, without that of the threshold."""
    found = results.of(read_runs([folder]))
    return [line for line in pictures.draw_rewards(found, course, "").axes[0].lines if line.get_linestyle() != ":"]


def test_a_run_with_one_reward_is_a_point_that_can_be_seen(tmp_path: Path) -> None:
    write_run(tmp_path / "completed", [1.0])
    write_run(tmp_path / "failed", [None, 3.0], num_envs=8, status="failed")
    write_run(tmp_path / "longer", [None, 5.0, 6.0], num_envs=16)
    lines = reward_lines(tmp_path)
    assert [points(line) for line in lines] == [[[2.0, 1.0]], [[4.0, 3.0]], [[4.0, 5.0], [6.0, 6.0]]]
    assert [line.get_marker() for line in lines] == ["o", "o", "None"]


def test_gaps_in_the_rewards_of_a_run_that_was_not_completed_are_bridged(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [1.0, None, 3.0], status="failed")
    (line,) = reward_lines(tmp_path)
    assert points(line) == [[2.0, 1.0], [6.0, 3.0]]


def test_seeds_that_share_no_time_are_drawn_one_by_one(tmp_path: Path) -> None:
    write_run(tmp_path / "1", [1.0], seed=1, iteration_s=2.0)
    write_run(tmp_path / "2", [3.0], seed=2, iteration_s=5.0)
    assert [points(line) for line in reward_lines(tmp_path)] == [[[2.0, 1.0]], [[5.0, 3.0]]]
    assert [points(line) for line in reward_lines(tmp_path, pictures.over_steps)] == [[[8.0, 2.0]]], "their mean"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((None, "\N{EN DASH}"), (0.0, "0.00"), (1.0, "1.00"), (-0.25, "-0.250"), (99.96, "100."), (1234.5, "1,234")),
        *((0.001, "0.00100"), (0.00099, "9.9e-4"), (3e-4, "3e-4"), (-1.234e-5, "-1.23e-5")),
        *((1e30, "1e30"), (-1.5e30, "-1.5e30"), (999_999_999.0, "999,999,999"), (1e9, "1e9")),
        *((4096, "4,096"), (1_234_567_890, "1,234,567,890"), (10**30, "1e30")),
    ],
)
def test_numbers_are_rounded_and_short(value: float | None, text: str) -> None:
    assert results.rounded(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((None, "?"), ("elu", "elu"), (8, "8"), (0.001, "0.001"), (0.99, "0.99"), (20.0, "20.0")),
        *((3e-4, "3e-4"), (1.5e-05, "1.5e-5"), (0.0001234567, "1.234567e-4"), (1e30, "1e30"), (-2e9, "-2e9")),
    ],
)
def test_a_setting_is_said_in_full_and_short(value: float | None, text: str) -> None:
    assert results.as_set(value) == text


def test_a_sweep_over_small_learning_rates_and_a_huge_reward_is_said_in_short_words(tmp_path: Path) -> None:
    jobs = []
    for override, reward in (("algorithm.learning_rate=3e-4", 1e30), ("algorithm.learning_rate=1e-3", 2.0)):
        write_run(tmp_path / override, [reward, reward])
        jobs.append({"overrides": [override]})
    found = results.of(read_sweep(write_sweep(tmp_path, jobs)))
    assert [one.label for one in found.configurations] == ["learning_rate=3e-4", "learning_rate=0.001"]
    assert "Final reward: learning_rate=3e-4 with 1e30 (one run) comes first" in results.lessons(found)[0]
    shown = page.render(found, {}, tmp_path)
    assert ">3e-4<" in shown
    assert ">0.001<" in shown
    assert ">1e30" in shown
    assert "000,000,000" not in shown
    ticks = pictures.draw_sizes(found, ("algorithm.learning_rate",)).axes[0].get_xticklabels()
    assert [tick.get_text() for tick in ticks] == ["3e-4", "0.001"]


def two_envs(folder: Path) -> Path:
    """Two runs of Go2, which differ in num_envs, and two of the drone, which differ in gamma; all else differs too."""
    for number, (reward, num_envs) in enumerate(((100.0, 4), (200.0, 8))):
        config = {"env": {"name": "go2", "kp": 20.0}, "algorithm": {"gamma": 0.9, "learning_rate": 0.001}}
        write_run(folder / f"go2_{number}", [reward, reward], num_envs=num_envs, config=config)
    for number, (reward, gamma) in enumerate(((1.0, 0.9), (2.0, 0.99))):
        config = {"env": {"name": "hover"}, "algorithm": {"gamma": gamma, "learning_rate": 3e-4}}
        write_run(folder / f"hover_{number}", [reward, reward], num_envs=16, config=config)
    return folder


def test_runs_are_compared_with_those_of_their_env_alone(tmp_path: Path) -> None:
    found = results.of(read_runs([two_envs(tmp_path)]))
    assert found.sweep.swept == ("env.name", "num_envs", "algorithm.gamma")
    labels = {env: [one.label for one in part.configurations] for env, part in found.by_env.items()}
    assert labels == {"go2": ["num_envs=4", "num_envs=8"], "hover": ["gamma=0.9", "gamma=0.99"]}
    assert [part.threshold for part in found.by_env.values()] == [180.0, 1.8]
    assert found.threshold_from.startswith("go2: 180.0, 90% of the best setting's")
    assert [row["time_to_threshold_s"] for row in results.rows(found)] == [None, 2.0, None, 2.0]
    lessons = results.lessons(found)
    assert lessons[0].startswith("go2: Final reward: num_envs=8 with 200 (one run) comes first")
    assert lessons[4].startswith("hover: Final reward: gamma=0.99 with 2.00 (one run) comes first")
    front = results.as_json(found)["pareto_front"]
    assert [one["env.name"] for one in front] == ["go2", "hover"]


def test_each_env_has_its_own_tables_and_pictures(tmp_path: Path, unrendered: None) -> None:
    found = results.of(read_runs([two_envs(tmp_path)]))
    drawn = pictures.draw(found)
    kinds = ["reward_over_steps", "reward_over_time", "memory", "sizes", "pareto"]
    assert list(drawn) == [f"{kind}_{env}.png" for env in ("go2", "hover") for kind in kinds]
    shown = page.render(found, drawn, tmp_path)
    for env in ("go2", "hover"):
        for title in ("What it teaches", "Settings, best final reward first", "Pictures"):
            assert shown.count(f"<h2>{title}: {env}</h2>") == 1
    assert shown.count("<img ") == len(drawn)
    assert shown.count("<h2>All jobs</h2>") == 1


def test_an_envs_name_never_leads_a_picture_out_of_its_folder(tmp_path: Path, unrendered: None) -> None:
    write_run(tmp_path / "a", [1.0], config={"env": {"name": "../../x" * 99}})
    write_run(tmp_path / "b", [1.0], config={"env": {"name": EVIL}})
    names = list(pictures.draw(results.of(read_runs([tmp_path]))))
    assert len(names) == 8
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,70}\.png", name) for name in names)


def test_a_sweep_over_envs_is_compared_within_each_even_where_a_job_never_started(tmp_path: Path) -> None:
    jobs: list[dict[str, Any]] = []
    for env, reward in (("go2", 100.0), ("hover", 1.0)):
        write_run(tmp_path / f"env={env}", [reward], config={"env": {"name": env}})
        jobs.append({"overrides": [f"env={env}"]})
    jobs.append({"overrides": ["env=hover", "num_envs=8"], "status": "planned"})
    found = results.of(read_sweep(write_sweep(tmp_path, jobs, swept=["env", "num_envs"])))
    assert {env: len(part.sweep.jobs) for env, part in found.by_env.items()} == {"go2": 1, "hover": 2}
    assert [row["status"] for row in results.rows(found)] == ["completed", "completed", "planned"]


def many_keys(folder: Path) -> Path:
    """Three runs that differ in four keys; the third is called like the first, and one name is long."""
    for number, name in enumerate(["a/run", LONG, "b/run"]):
        algorithm = {"gamma": number / 10, "lam": number / 10, "clip_param": number / 10}
        write_run(folder / name, [1.0 + number], num_envs=4 + number, config={"algorithm": algorithm})
    return folder


LONG = "a_name_of_sixty_characters_" + 33 * "x"


def test_runs_that_differ_in_many_keys_are_called_by_their_names(tmp_path: Path) -> None:
    found = results.of(read_runs([many_keys(tmp_path)]))
    assert found.are_named
    labels = [one.label for one in found.configurations]
    assert labels == ["run (job 0)", LONG, "run (job 2)"]
    assert "b/run" not in page.render(found, {}, tmp_path).partition("All jobs")[0]
    assert results.lessons(found)[0].startswith("Final reward: run (job 2) with 3.00 (one run) comes first")
    figure = pictures.draw_rewards(found, pictures.over_steps, "")
    assert len(figure.axes) == 1, "no panels"
    assert [text.get_text() for text in figure.legends[0].get_texts()][:3] == labels
    assert pictures.size_keys(found) == ()
    speed, memory = pictures.draw_sizes(found, ()).axes
    names = [label.get_text().replace("\n", "") for label in speed.get_yticklabels()]
    assert names == [label.replace("\n", "") for label in labels]
    assert [points(line) for line in speed.lines] == [[[4.0, 0.0]], [[5.0, 1.0]], [[6.0, 2.0]]]
    assert [points(line) for line in memory.lines] == [[[1.0, 0.0]], [[1.0, 1.0]], [[1.0, 2.0]]]


def test_long_settings_are_not_cut(tmp_path: Path) -> None:
    jobs = []
    for override in (f"run={LONG}1", f"run={LONG}2"):
        for activation in ("elu", LONG):
            overrides = [override, f"network.activation={activation}"]
            write_run(tmp_path / ",".join(overrides), [1.0, 2.0], measured_mib=2.0)
            jobs.append({"overrides": overrides})
    found = results.of(read_sweep(write_sweep(tmp_path, jobs)))
    rewards = pictures.draw_rewards(found, pictures.over_steps, "")
    sizes = pictures.draw_sizes(found, pictures.size_keys(found))
    said = [
        *(axes.get_title() for axes in rewards.axes),
        *(text.get_text() for text in rewards.legends[0].get_texts()),
        *(label.get_text() for label in (*sizes.axes[0].get_xticklabels(), *sizes.axes[0].get_yticklabels())),
    ]
    assert sum(LONG in text.replace("\n", "") for text in said) >= 6
    assert "\N{HORIZONTAL ELLIPSIS}" not in "".join(said)
    for figure in (rewards, sizes):
        figure.draw_without_rendering()  # lays it out
        everything = figure.get_tightbbox()
        assert everything.x0 >= 0
        assert everything.x1 <= figure.get_figwidth()
        assert everything.y0 >= 0
        assert everything.y1 <= figure.get_figheight()
    for axes in sizes.axes:
        left, right = (label.get_window_extent() for label in axes.get_xticklabels())
        assert left.x1 < right.x0, "labels do not overlap"


def points(line: Line2D) -> list[list[float]]:
    """What is drawn: [x, y] by [x, y]."""
    drawn: list[list[float]] = np.asarray(line.get_xydata()).tolist()
    return drawn


def texts(axes: Axes) -> list[str]:
    """What is written in the cells, row by row from below."""
    return [text.get_text() for text in axes.texts]
