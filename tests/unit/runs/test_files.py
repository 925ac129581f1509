"""What is written as JSON is JSON, whatever the numbers; what is read may be half there."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ppo_lab.runs.files import from_json, read_json, read_rows, to_json, write_json
from ppo_lab.runs.metrics import MetricsWriter
from ppo_lab.runs.summary import Summary

NAN, INF = math.nan, math.inf


def strictly(text: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_is_not_finite_becomes_null_however_deep() -> None:
    content = {"a": NAN, "b": [1, INF, {"c": -INF}], "d": (0.5, NAN), "e": "NaN", "f": True, "g": None}
    written = {"a": None, "b": [1, None, {"c": None}], "d": [0.5, None], "e": "NaN", "f": True, "g": None}
    assert strictly(to_json(content)) == strictly(to_json(content, indent=2)) == written


def test_a_json_file_of_an_older_version_may_hold_nan(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"final_reward": NaN, "steps_per_s": 1e999, "iterations": 3}')
    assert read_json(tmp_path / "old.json") == {"final_reward": None, "steps_per_s": None, "iterations": 3}
    write_json(tmp_path / "new.json", {"final_reward": NAN})
    assert strictly((tmp_path / "new.json").read_text()) == {"final_reward": None}


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\0"])
def test_a_file_that_is_not_json_reads_as_an_empty_object_and_no_rows(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        from_json(text)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert read_json(tmp_path / "metrics.jsonl") == {}
    assert read_rows(tmp_path) == []


def test_rows_end_at_the_first_line_that_is_no_row(tmp_path: Path) -> None:
    assert read_rows(tmp_path) == [], "there is no file"
    whole = '{"iteration": 0, "Loss/value": 1.5}\n{"iteration": 1, "Loss/value": NaN}\n'
    rows = [{"iteration": 0, "Loss/value": 1.5}, {"iteration": 1, "Loss/value": None}]
    for rest in ("", '{"iteration": 2, "Loss/va', "null\n", "[2]\n", '{"Loss/value": 1.0}\n', '{"iteration": 3}\n'):
        (tmp_path / "metrics.jsonl").write_text(whole + rest)
        assert read_rows(tmp_path) == rows, rest


def test_metrics_jsonl_has_null_where_tensorboard_has_the_value(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.write(0, {"Episode/rew_odd": NAN, "Policy/mean_std": INF, "Loss/value": 0.5})
    writer.close()
    rows = [strictly(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"iteration": 0, "Episode/rew_odd": None, "Policy/mean_std": None, "Loss/value": 0.5}]
    events = EventAccumulator(str(tmp_path)).Reload()
    shown = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert math.isnan(shown["Episode/rew_odd"])
    assert shown["Policy/mean_std"] == INF

    again = MetricsWriter(tmp_path, first_iteration=1)  # the run goes on
    again.close()
    assert again.earlier == rows
    assert [strictly(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == rows


def test_a_tag_that_is_not_finite_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = MetricsWriter(tmp_path)
    for iteration, odd in enumerate([0.5, NAN, INF, 0.5, NAN]):
        writer.write(iteration, {"Episode/rew_odd": odd, "Env/energy": -INF if iteration > 2 else 1.0})
    writer.close()
    rest = "is not part of training, which goes on; metrics.jsonl has null for such values"
    assert caplog.messages == [
        f"Episode/rew_odd is nan in iteration 1: it {rest}",
        f"Env/energy is -inf in iteration 3: it {rest}",
    ]


def test_a_summary_takes_only_finite_values_for_the_best_and_for_peaks(tmp_path: Path) -> None:
    rewards, peaks = [1.0, NAN, INF, 3.0, 2.0, NAN], [5.0, NAN, 7.0, INF, 6.0, 4.0]
    tags = ("Train/mean_reward", "Train/mean_episode_length", "Memory/host_rss_mib")
    live = [dict(zip(tags, (reward, 10.0, peak), strict=True)) for reward, peak in zip(rewards, peaks, strict=True)]
    read_back = [strictly(to_json({"iteration": n, "Perf/learning_time": NAN, **row})) for n, row in enumerate(live)]
    gone_on = Summary(tmp_path / "gone_on.json", 8, read_back)
    assert gone_on.write("completed", None, []).startswith("6 iterations in ")
    lived = Summary(tmp_path / "lived.json", 8)
    for row in live:
        lived.add(row)
    lived.write("completed", None, [])
    for name in ("gone_on", "lived"):
        content = strictly((tmp_path / f"{name}.json").read_text())
        assert (content["best_reward"], content["final_reward"], content["peak_mib"]) == (
            3.0,
            None,
            {"Memory/host_rss_mib": 7.0},
        )
