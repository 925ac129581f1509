"""What is written as JSON is JSON, whatever the numbers; what is read may be half there."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ppo_lab.contracts import RunRecord
from ppo_lab.runs.files import from_json, read_json, to_json, write_json
from ppo_lab.runs.metrics import MetricsWriter, Reopening, TensorBoardWriter
from ppo_lab.runs.record import read, read_metrics
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
    assert read_metrics(tmp_path) == []


def test_rows_end_at_the_first_line_that_is_no_row(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == [], "there is no file"
    whole = '{"iteration": 0, "Loss/value": 1.5}\n{"iteration": 1, "Loss/value": NaN}\n'
    rows = [{"iteration": 0, "Loss/value": 1.5}, {"iteration": 1, "Loss/value": None}]
    for rest in ("", '{"iteration": 2, "Loss/va', "null\n", "[2]\n", '{"Loss/value": 1.0}\n', '{"iteration": 3}\n'):
        (tmp_path / "metrics.jsonl").write_text(whole + rest)
        assert read_metrics(tmp_path) == rows, rest


def test_a_record_has_what_could_be_read_and_names_what_could_not(tmp_path: Path) -> None:
    found: RunRecord = read(tmp_path)
    assert (found.config, found.manifest, found.summary, found.estimate, found.metrics) == ({}, {}, {}, {}, [])
    assert found.damages == (), "what is missing is no damage"
    (tmp_path / "config.yaml").write_text("a: &a [1]\nb: *a\n")  # an alias, of which a file may have millions
    (tmp_path / "manifest.json").write_text("[1]")
    (tmp_path / "summary.json").write_text('{"final_reward": NaN}')
    (tmp_path / "estimate.json").write_bytes(b"\xff")
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 0}\n{"iteration": 2}\n')
    found = read(tmp_path)
    assert (found.config, found.manifest, found.estimate) == ({}, {}, {})
    assert (found.summary, found.metrics) == ({"final_reward": None}, [{"iteration": 0}])
    assert found.damages == (
        "config.yaml is damaged",
        "manifest.json is damaged",
        "estimate.json is damaged",
        "metrics.jsonl is damaged in line 2 of 2, and read up to there",
    )


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


class FailingWriter:
    """Stands in for TensorBoardWriter; fails with every write of an iteration in `broken`."""

    def __init__(self, first_iteration: int, broken: set[int], opened: list["FailingWriter"]) -> None:
        if first_iteration in broken:
            raise OSError(28, "No space left on device")
        self.first_iteration = first_iteration
        self.broken = broken
        self.content: list[int | str] = []
        opened.append(self)

    def describe(self, config_yaml: str, *_: object) -> None:
        self.content.append(config_yaml)

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        if iteration in self.broken:
            raise OSError(28, "No space left on device")
        self.content.append(iteration)

    def sync(self) -> None:
        self.content.append("synced")

    def close(self) -> None:
        self.content.append("closed")

    def discard(self) -> None:
        self.content.append("discarded")


def test_a_writer_that_failed_is_opened_anew_with_all_rows_since_the_last_sync(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken: set[int] = set()
    opened: list[FailingWriter] = []
    writer = Reopening(lambda first: cast(TensorBoardWriter, FailingWriter(first, broken, opened)), 5)
    writer.describe("config", {}, {})
    writer.write(5, {})
    writer.sync()
    writer.write(6, {})
    broken.add(7)
    writer.write(7, {})
    writer.write(8, {})
    writer.sync()  # fails again, at row 7
    broken.clear()
    writer.write(9, {})
    writer.sync()
    writer.close()
    assert [one.first_iteration for one in opened] == [5, 6, 6]
    assert opened[0].content == ["synced", "config", 5, "synced", 6]
    assert opened[1].content == [6, "discarded"]
    assert opened[2].content == [6, 7, 8, 9, "synced", "synced", "closed"]
    assert caplog.messages == [
        "TensorBoard's event file cannot be written: No space left on device; metrics.jsonl goes on"
    ]


def test_a_writer_that_could_not_be_opened_gets_the_description_later() -> None:
    broken = {0}
    opened: list[FailingWriter] = []
    writer = Reopening(lambda first: cast(TensorBoardWriter, FailingWriter(first, broken, opened)), 0)
    writer.describe("config", {}, {})
    writer.sync()
    assert opened == []
    broken.clear()
    writer.sync()
    assert opened[0].content == ["config", "synced", "synced"]
