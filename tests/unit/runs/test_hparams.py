"""TensorBoard's HParams table, as its own plugin reads it from the run folders."""

import json
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.get_experiment import Handler as Experiment
from tensorboard.plugins.hparams.list_session_groups import Handler as SessionGroups

from ppo_lab.config import ExperimentConfig, flat
from ppo_lab.errors import RunFailedError, StoppedError
from ppo_lab.runs.folder import Run
from ppo_lab.runs.hparams import EVENT_FILES, RESULTS, SETTINGS, write_hparams
from ppo_lab.runs.metrics import MetricsWriter, layout
from ppo_lab.training.recording import Recording


def train(folder: Path, rewards: list[float]) -> None:
    """What a run with these rewards leaves of metrics."""
    folder.mkdir(parents=True)
    metrics = MetricsWriter(folder)
    metrics.describe("num_envs: 64", {"torch": "2.13"}, layout([], []))
    for iteration, reward in enumerate(rewards):
        metrics.write(iteration, {"Train/mean_reward": reward, "Perf/total_fps": 1000.0})
    metrics.close()


def shown(folder: Path) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The table's columns, and its rows by name."""
    multiplexer = EventMultiplexer(tensor_size_guidance={"hparams": 0})
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(folder))))
    tags = context.hparams_metadata(RequestContext(), "")
    experiment = Experiment(RequestContext(), context, "", api_pb2.GetExperimentRequest()).run()
    request = api_pb2.ListSessionGroupsRequest(allowed_statuses=[api_pb2.STATUS_UNKNOWN], slice_size=100)
    rows = {}
    for group in SessionGroups(RequestContext(), context, "", request).run().session_groups:
        assert [session.name for session in group.sessions] == [group.name], "a run is a row"
        hparams = {name: getattr(value, value.WhichOneof("kind")) for name, value in group.hparams.items()}
        rows[group.name] = hparams | {metric.name.tag: metric.value for metric in group.metric_values}
    assert len(tags) == len(rows)
    columns = [info.name for info in experiment.hparam_infos] + [info.name.tag for info in experiment.metric_infos]
    return columns, rows


def test_every_run_is_one_row_with_what_was_set_and_what_came_of_it(tmp_path: Path) -> None:
    for num_envs, final_reward in ((64, 1.5), (128, None)):
        train(tmp_path / f"num_envs={num_envs}", [0.5, 1.5])
        write_hparams(
            tmp_path / f"num_envs={num_envs}",
            {"num_envs": num_envs, "deterministic": True, "network.activation": "elu", "env.robot.kp": 20.5},
            {"final_reward": final_reward, "wall_s": 12.5},
        )
    columns, rows = shown(tmp_path)
    also = {"deterministic": True, "network.activation": "elu", "env.robot.kp": 20.5, "Result/wall_s": 12.5}
    assert rows == {
        "num_envs=64": {"num_envs": 64, "Result/final_reward": 1.5, **also},
        "num_envs=128": {"num_envs": 128, **also},
    }
    assert rows["num_envs=64"]["deterministic"] is True, "not 1.0000"
    assert columns == [
        *("deterministic", "env.robot.kp", "network.activation", "num_envs"),
        *("Result/final_reward", "Result/wall_s"),
    ]


def test_equal_settings_are_not_merged_into_one_row(tmp_path: Path) -> None:
    for name in ("first", "second"):
        train(tmp_path / name, [1.0])
        write_hparams(tmp_path / name, {"num_envs": 64}, {"final_reward": 1.0})
    assert set(shown(tmp_path)[1]) == {"first", "second"}


def test_writing_again_replaces_the_row(tmp_path: Path) -> None:
    train(tmp_path / "run", [1.0])
    write_hparams(tmp_path / "run", {"num_envs": 64}, {"final_reward": 1.0, "wall_s": 10.0})
    write_hparams(tmp_path / "run", {"num_envs": 64}, {"final_reward": 2.0})
    assert shown(tmp_path) == (
        ["num_envs", "Result/final_reward"],
        {"run": {"num_envs": 64, "Result/final_reward": 2.0}},
    )
    assert len(list((tmp_path / "run").glob(EVENT_FILES))) == 1


def test_a_resumed_run_keeps_its_curves_and_its_row(tmp_path: Path) -> None:
    train(tmp_path / "run", [1.0, 2.0])
    write_hparams(tmp_path / "run", {"num_envs": 64}, {"final_reward": 2.0})
    time.sleep(1)  # event files of one second are read in any order
    goes_on = MetricsWriter(tmp_path / "run", first_iteration=2)
    goes_on.write(2, {"Train/mean_reward": 3.0, "Perf/total_fps": 1000.0})
    goes_on.close()
    write_hparams(tmp_path / "run", {"num_envs": 64}, {"final_reward": 3.0})
    assert shown(tmp_path)[1] == {"run": {"num_envs": 64, "Result/final_reward": 3.0}}
    board = EventAccumulator(str(tmp_path / "run")).Reload()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert set(board.Tags()["scalars"]) == {"Train/mean_reward", "Perf/total_fps", "Result/final_reward"}
    for tag in ("Train/mean_reward", "Perf/total_fps"):
        on_board = [(event.step, event.value) for event in board.Scalars(tag)]
        assert on_board == [(line["iteration"], line[tag]) for line in lines]
    assert [e.value for e in board.Scalars("Result/final_reward")] == [3.0]


def test_a_value_that_is_no_setting_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write_hparams(tmp_path, {"network.hidden_dims": [64, 64]}, {})  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


ENDS: dict[str, tuple[BaseException | None, str, str | None]] = {
    "no exception": (None, "completed", None),
    "Ctrl-C": (KeyboardInterrupt(), "interrupted", None),
    "SIGTERM": (StoppedError(signal.SIGTERM), "interrupted", "SIGTERM"),
    "an explained failure": (RunFailedError("the losses are not finite"), "failed", "the losses are not finite"),
    "any other failure": (ValueError("no such shape"), "failed", "ValueError: no such shape"),
}
"""Exception -> status and message in summary.json."""


@pytest.mark.parametrize("end", ENDS)
def test_a_run_that_ends_has_its_outcome_in_the_summary_and_a_row_with_its_settings_and_results(
    experiment: Callable[..., ExperimentConfig], tmp_path: Path, end: str
) -> None:
    error, status, message = ENDS[end]
    cfg = experiment("experiment=smoke", "env=hover", "num_envs=64", "network.hidden_dims=[32,16]")
    folder = tmp_path / "run"
    folder.mkdir()
    with (
        pytest.raises(type(error)) if error else nullcontext(),
        (folder / ".lock").open("w") as lock,
        Recording(Run(cfg, folder, [], lock), torch.device("cpu")) as record,
    ):
        assert json.loads((folder / "summary.json").read_text())["status"] == "running"
        for iteration, peak_mib in enumerate((5.0, 4.0)):
            memory = {"Memory/allocated_peak_mib": peak_mib, "Memory/host_peak_rss_mib": 900.0}
            rewards = {"Train/mean_reward": 1.5 - iteration, "Train/mean_episode_length": 10.0}
            record.add(iteration, rewards | memory)
        if error:
            raise error
    columns, rows = shown(tmp_path)
    assert columns == [*sorted(SETTINGS[:5]), *sorted(SETTINGS[5:]), *(f"Result/{name}" for name in RESULTS)]
    assert list(rows) == ["run"]
    row = rows["run"]
    assert (row["env.name"], row["num_envs"], row["network.hidden_dims"]) == ("hover", 64, "[32, 16]")
    assert (row["Result/final_reward"], row["Result/best_reward"]) == (0.5, 1.5)
    assert row["Result/measured_peak_mib"] == 5.0, "the highest, and of tensors rather than of the process"
    assert "Result/predicted_peak_mib" not in row, "nothing was predicted"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["message"], summary["iterations"]) == (status, message, 2)
    assert row["Result/wall_s"] == pytest.approx(summary["wall_s"])


def test_all_runs_have_the_same_settings_in_their_rows(experiment: Callable[..., ExperimentConfig]) -> None:
    for env in ("go2", "hover"):
        assert set(SETTINGS) <= flat(asdict(experiment(f"env={env}"))).keys()
