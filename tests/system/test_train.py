"""Runs of train.py, two iterations of each env: what is in the run folder, and how a run ends."""

import json
import math
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from ppo_lab import envs
from ppo_lab.cli.compose import compose
from ppo_lab.runs.config import to_experiment
from tests.forked_runs import ForkedRun, rows_so_far, until
from tests.paths import REPOSITORY

Train = Callable[..., subprocess.CompletedProcess[str]]

SMOKE = ["experiment=smoke", "num_steps_per_env=24"]  # long enough for some first episode to end


@pytest.fixture(scope="module", params=envs.names())
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "a run"  # spaces happen
    overrides = [*SMOKE, f"env={request.param}", "memory.count_tensors=true", f"hydra.run.dir={folder}"]
    code, printed = ForkedRun(overrides, folder.parent / "out", predicts=True).ends()
    assert code == 0, printed
    assert "iteration 2/2" in printed
    assert f"-m ppo_lab dashboard '{folder}'" in printed
    return folder


def lines_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def checkpoint(run: Path, name: str) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / name, weights_only=True)


def test_the_run_folder_holds_the_documented_files(run: Path) -> None:
    names = {path.name for path in run.iterdir() if "tfevents" not in path.name} - {"git.diff"}
    assert names == {
        ".hydra",
        ".lock",
        "checkpoints",
        "config.yaml",
        "estimate.json",
        "manifest.json",
        "metrics.jsonl",
        "summary.json",
        "train.log",
    }
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"model_0.pt", "model_1.pt", "state_0.pt", "state_1.pt", "best.pt"}


def test_the_saved_config_is_the_one_that_ran(run: Path) -> None:
    saved = yaml.safe_load((run / "config.yaml").read_text())
    overrides = yaml.safe_load((run / ".hydra" / "overrides.yaml").read_text())
    again = to_experiment(compose(overrides))
    assert OmegaConf.to_container(OmegaConf.structured(again)) == saved
    assert to_experiment(DictConfig(saved)) == again


def test_the_manifest_holds_seed_overrides_packages_device_and_commit(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["seed"] == 1
    assert "experiment=smoke" in manifest["overrides"]
    if not manifest["git"]["left_out"]:
        assert "experiment=smoke" in shlex.split(manifest["repeat"].partition("train.py")[2].lstrip("'"))
    assert manifest["packages"]["genesis-world"] == metadata.version("genesis-world")
    assert manifest["machine"]["device"] in ("cpu", "cuda:0")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    if commit.returncode == 0:
        assert manifest["git"]["commit"] == commit.stdout.strip()
        assert manifest["git"]["dirty"] or not (run / "git.diff").exists()


def test_the_summary_adds_up(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    lines = lines_of(run)
    assert summary["status"] == "completed"
    assert summary["iterations"] == len(lines) == 2
    assert summary["wall_s"] >= summary["startup_s"] + summary["training_s"] - 0.1
    assert summary["steps_per_s"] == pytest.approx(2 * 16 * 24 / summary["training_s"])
    assert summary["final_reward"] == lines[-1].get("Train/mean_reward")
    assert summary["peak_mib"]["Memory/host_rss_mib"] == max(line["Memory/host_rss_mib"] for line in lines)


def test_tensorboard_and_metrics_jsonl_hold_the_same_numbers(run: Path) -> None:
    board = EventAccumulator(str(run)).Reload()
    lines = lines_of(run)
    tags = {tag for line in lines for tag in line} - {"iteration"}
    assert {tag for tag in board.Tags()["scalars"] if not tag.startswith("Result/")} == tags
    for tag in tags:
        on_board = [(event.step, event.value) for event in board.Scalars(tag)]
        in_file = [(line["iteration"], line[tag]) for line in lines if tag in line]
        assert [step for step, _ in on_board] == [step for step, _ in in_file]
        assert [v for _, v in on_board] == pytest.approx([v for _, v in in_file], rel=1e-6)
    assert [line["iteration"] for line in lines] == [0, 1]
    assert {"config/text_summary", "environment/text_summary"} <= set(board.Tags()["tensors"])


def test_every_chart_of_the_custom_page_has_something_to_draw(run: Path) -> None:
    board = EventAccumulator(str(run)).Reload()
    layout = layout_pb2.Layout.FromString(board.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["Reward", "Reward terms", "Losses", "Memory", "Speed"]
    terms = yaml.safe_load((run / "config.yaml").read_text())["env"]["reward_scales"]
    assert [chart.title for chart in layout.category[1].chart] == list(terms)
    tags = {tag for line in lines_of(run) for tag in line}
    for category in layout.category[2:]:  # rewards wait for an episode to end
        for chart in category.chart:
            assert any(re.match(chart.multiline.tag[0], tag) for tag in tags), chart.title


def test_every_documented_tag_is_logged_and_finite(run: Path) -> None:
    last = lines_of(run)[-1]
    for tag in (
        "Loss/value Loss/surrogate Loss/entropy Loss/learning_rate Policy/mean_std "
        "Perf/total_fps Perf/collection_time Perf/learning_time "
        "Memory/allocated_peak_mib Memory/rollout_peak_mib Memory/update_peak_mib Memory/resident_mib "
        "Memory/host_rss_mib Memory/host_peak_rss_mib"
    ).split():
        assert math.isfinite(last[tag]), tag
    if yaml.safe_load((run / "config.yaml").read_text())["env"]["name"] == "go2":  # untrained, it soon falls
        terms = [tag for tag in last if tag.startswith("Episode/rew_")]
        assert len(terms) == 6
        assert {"Train/mean_reward", "Train/mean_episode_length"} <= set(last)


def test_memory_is_bracketed_by_phase(run: Path) -> None:
    first, second = lines_of(run)
    for line in (first, second):
        assert line["Memory/resident_mib"] <= line["Memory/update_peak_mib"]
        assert line["Memory/allocated_peak_mib"] == max(line["Memory/rollout_peak_mib"], line["Memory/update_peak_mib"])
    assert first["Memory/rollout_peak_mib"] < second["Memory/rollout_peak_mib"], "Adam's state came in between"
    assert second["Memory/update_peak_mib"] > second["Memory/rollout_peak_mib"], "activations are of the update"


def test_predicted_and_measured_tensor_bytes_are_equal(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    compared = {row["name"]: (row["predicted_bytes"], row["error_percent"]) for row in summary["memory"]}
    estimate = json.loads((run / "estimate.json").read_text())
    for name in ("rollout_peak", "update_peak", "allocated_peak"):
        assert compared[name] == (estimate[f"{name}_bytes"], 0.0), name
    drawn = lines_of(run)[-1]
    assert drawn["Memory/predicted_update_peak_mib"] == drawn["Memory/update_peak_mib"]


@pytest.mark.parametrize(
    "env", ["go2", *(pytest.param(name, marks=pytest.mark.slow) for name in envs.names() if name != "go2")]
)
def test_predicted_and_measured_tensor_bytes_are_equal_with_two_scenes(env: str, train: Train, tmp_path: Path) -> None:
    overrides = ["experiment=smoke", f"env={env}", "num_envs=16", "envs_per_scene=8", "memory.count_tensors=true"]
    # with networks this small the rollout peaks within the env's step
    done = train(*overrides, "network.hidden_dims=[4,4]", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    errors = {row["name"]: row["error_percent"] for row in summary["memory"]}
    assert {name: errors[name] for name in ("rollout_peak", "update_peak", "allocated_peak")} == {
        "rollout_peak": 0.0,
        "update_peak": 0.0,
        "allocated_peak": 0.0,
    }
    alive = json.loads((tmp_path / "run" / "estimate.json").read_text())["alive_at_rollout_peak"]
    assert alive["env"] > alive["storage"]


def test_checkpoints_load_without_unpickling(run: Path) -> None:
    last = checkpoint(run, "model_1.pt")
    assert last["iter"] == 1
    assert last["learning_rate"] == pytest.approx(last["optimizer_state_dict"]["param_groups"][0]["lr"])
    assert set(last) == {
        "actor_state_dict",
        "critic_state_dict",
        "optimizer_state_dict",
        "iter",
        "infos",
        "learning_rate",
    }


@pytest.mark.slow  # tests/system/test_faults.py compares many more runs to the bit, in forks
def test_the_same_seed_gives_identical_weights_and_curves(run: Path, train: Train, tmp_path: Path) -> None:
    overrides = yaml.safe_load((run / ".hydra" / "overrides.yaml").read_text())
    assert train(*overrides, "memory.count_tensors=false", f"hydra.run.dir={tmp_path / 'again'}").returncode == 0
    for name in ("model_0.pt", "model_1.pt"):
        ours, theirs = checkpoint(run, name), checkpoint(tmp_path / "again", name)
        for model in ("actor_state_dict", "critic_state_dict"):
            assert all(torch.equal(ours[model][key], theirs[model][key]) for key in ours[model])
        assert ours["learning_rate"] == theirs["learning_rate"]
    untimed = [tag for tag in lines_of(run)[1] if tag.startswith(("Loss", "Train", "Episode", "Policy"))]
    assert [lines_of(run)[1][tag] for tag in untimed] == [lines_of(tmp_path / "again")[1][tag] for tag in untimed]


def test_ctrl_c_saves_a_checkpoint_and_the_summary_and_exits_130(tmp_path: Path) -> None:
    folder, errors = tmp_path / "run", tmp_path / "errors"
    overrides = ["experiment=smoke", "env=hover", "max_iterations=1000000", "save_interval=1000000"]
    forked = ForkedRun([*overrides, f"hydra.run.dir={folder}"], tmp_path / "out", errors=errors)
    assert until(lambda: rows_so_far(folder) > 3, forked)
    os.kill(forked.pid, signal.SIGINT)
    assert forked.join() == 130
    assert "Traceback" not in errors.read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    last = len(lines_of(folder)) - 1
    assert summary["iterations"] == last + 1
    assert checkpoint(folder, f"model_{last}.pt")["iter"] == last


def test_a_learning_rate_of_1e30_ends_the_run_with_code_1_and_the_reason(tmp_path: Path) -> None:
    folder, errors = tmp_path / "run", tmp_path / "errors"
    overrides = ["experiment=smoke", "env=hover", "algorithm.schedule=fixed", "algorithm.learning_rate=1e30"]
    assert ForkedRun([*overrides, f"hydra.run.dir={folder}"], tmp_path / "out", errors=errors).join() == 1
    printed = errors.read_text()
    assert len(printed.splitlines()) == 1, printed
    assert "error: losses are not finite in iteration 0: value" in printed
    assert "last good checkpoint: there is none yet; try a lower algorithm.learning_rate" in printed
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "losses are not finite" in summary["message"]
    assert "Traceback" in (folder / "train.log").read_text()
