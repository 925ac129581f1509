"""Traces that are stored in the cache folder: which ones count, and what happens to files that are not ours."""

from __future__ import annotations

import functools
import gzip
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ppo_lab.cli.compose import compose
from ppo_lab.config import ExperimentConfig, check
from ppo_lab.memory.predict import cache, trace
from ppo_lab.memory.predict.trace import Allocation, dependencies
from ppo_lab.runs.config import to_experiment

TINY = {"events": [[0, 100, "storage"], [1, 8, "temporary"], [1]], "rollout": [1, 3], "update": [3, 3]}
TINY_JSON = json.dumps(TINY | {"matmul_starts": [1]})
"""A tracer's output, worked by hand: 108 bytes at the rollout's peak."""


@functools.cache
def composed(env: str) -> ExperimentConfig:
    return to_experiment(compose(["experiment=smoke", f"env={env}"]))


def experiment(override: str = "env=go2") -> ExperimentConfig:
    """The smoke test's experiment with one setting changed; composing each anew would take long."""
    key, _, text = override.partition("=")
    if key == "env":
        return composed(text)

    def changed(settings: Any, path: list[str]) -> Any:
        name, *rest = path
        value = changed(getattr(settings, name), rest) if rest else yaml.safe_load(text)
        return replace(settings, **{name: value})

    cfg: ExperimentConfig = changed(composed("go2"), key.split("."))
    check(cfg)
    return cfg


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[ExperimentConfig]:
    """The experiments that the tracer was started for; it finds `TINY`. The cache folder is empty at first."""
    started: list[ExperimentConfig] = []

    def run_tracer(cfg: ExperimentConfig, device_type: trace.DeviceType) -> str:
        started.append(cfg)
        return TINY_JSON

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(trace, "_run_tracer", run_tracer)
    return started


def stored_files() -> list[Path]:
    return sorted((cache.folder() / "traces").iterdir())


def test_the_second_trace_of_the_same_sizes_starts_no_process(calls: list[ExperimentConfig]) -> None:
    first, second = (trace.trace(experiment()) for _ in range(2))
    assert len(calls) == 1
    assert first == second
    assert (first.rollout_peak_bytes, first.update_peak_bytes) == (108, 100)
    assert first.events[0] == Allocation(0, 100, "storage")
    assert trace.trace(experiment(), "cuda") == first
    assert len(calls) == 2


CHANGES_THE_TRACE = [
    *(
        "env=hover",
        "num_envs=8",
        "num_steps_per_env=2",
        "network.actor.hidden_dims=[3]",
        "network.critic.hidden_dims=[3]",
    ),
    *("network.actor.activation=tanh", "network.critic.activation=tanh", "network.actor.std_type=log"),
    *("network.actor.obs_normalization=true", "network.critic.obs_normalization=true"),
    *("algorithm.num_learning_epochs=3", "algorithm.num_mini_batches=8", "algorithm.optimizer=sgd"),
    *("algorithm.use_clipped_value_loss=false", "algorithm.schedule=fixed"),
    *("algorithm.normalize_advantage_per_mini_batch=true", "algorithm.use_mixed_precision=true"),
    "envs_per_scene=8",
    "env.max_collision_pairs=3",  # never counted: the env's own tensors are unknown
]


@pytest.mark.parametrize("override", CHANGES_THE_TRACE)
def test_a_setting_that_the_tracer_reads_changes_the_key(override: str) -> None:
    assert dependencies(experiment(override), "cpu") != dependencies(experiment(), "cpu")


CHANGES_NO_TRACE = [
    *(
        "seed=7",
        "run_name=other",
        "max_iterations=7",
        "save_interval=7",
        "evaluate_every=7",
        "quiet=true",
        "device=cpu",
    ),
    *("init_from=a_run", "init.critic=false", "init.std=false"),
    *("deterministic=true", "memory.count_tensors=true", "memory.over_budget=warn", "checkpoint.keep_state=7"),
    *("env.reward_scales.action_rate=-7.0", "env.robot.kp=7.0", "env.dt=0.1", "network.actor.init_std=0.7"),
    *("algorithm.clip_param=0.7", "algorithm.gamma=0.7", "algorithm.lam=0.7", "algorithm.value_loss_coef=0.7"),
    *("entropy_schedule.final_coef=0.7", "entropy_schedule.from_iteration=0", "entropy_schedule.to_iteration=7"),
    *("algorithm.entropy_coef=0.7", "algorithm.learning_rate=0.7", "algorithm.max_grad_norm=0.7"),
    *("algorithm.desired_kl=0.7", "processes=2"),  # a trace is of one rank
]


@pytest.mark.parametrize("override", CHANGES_NO_TRACE)
def test_a_setting_that_changes_no_tensor_leaves_the_key_and_is_not_seen_by_the_tracer(
    override: str, calls: list[ExperimentConfig]
) -> None:
    assert dependencies(experiment(override), "cpu") == dependencies(experiment(), "cpu")
    trace.trace(experiment(override))
    (cache.folder() / "traces").rename(cache.folder() / "elsewhere")
    trace.trace(experiment())
    changed, plain = (replace(cfg, env=experiment().env) for cfg in calls)
    assert changed == plain


def test_whether_a_run_holds_to_its_initial_policy_changes_the_key_and_how_much_does_not(
    calls: list[ExperimentConfig],
) -> None:
    plain = experiment("init_from=a_run")
    some, more = (replace(plain, init=replace(plain.init, kl_coef=coef)) for coef in (0.1, 7.0))
    assert dependencies(plain, "cpu") != dependencies(some, "cpu") == dependencies(more, "cpu")
    for cfg in (some, more, plain):
        trace.trace(cfg)
    held, without = calls
    check(held)
    assert (held.init.kl_coef > 0, without.init.kl_coef) == (True, 0.0)


def test_every_setting_is_known_to_change_the_key_or_not() -> None:
    """A setting that is new must be put into one of the two lists above."""
    tested = {override.partition("=")[0] for override in CHANGES_THE_TRACE + CHANGES_NO_TRACE}
    cfg = experiment()
    keys = {
        f"{group}.{name}"
        for group, settings in (
            ("algorithm", cfg.algorithm),
            ("entropy_schedule", cfg.entropy_schedule),
            ("network.actor", cfg.network.actor),
            ("network.critic", cfg.network.critic),
        )
        for name in vars(settings)
    }
    keys |= set(vars(cfg)) - {"algorithm", "entropy_schedule", "network", "memory", "checkpoint", "init"}
    assert keys - tested == set()


@pytest.mark.parametrize("what", ["device_type", "python", "libraries", "sources", "env_tensors", "observations"])
def test_the_key_names_what_is_not_in_the_settings(what: str) -> None:
    assert dependencies(experiment(), "cpu")[what]


def test_another_source_or_library_makes_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dependencies(experiment(), "cpu")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0")
    assert dependencies(experiment(), "cpu")["libraries"] == dict.fromkeys(trace.LIBRARIES, "0.0")
    (tmp_path / "probes").mkdir()
    (tmp_path / "probes" / "learner.py").write_text("pass")
    monkeypatch.setattr(trace, "PACKAGE", tmp_path)
    trace._source_digest.cache_clear()
    try:
        assert dependencies(experiment(), "cpu")["sources"] != before["sources"]
    finally:
        trace._source_digest.cache_clear()


def packed(content: Any) -> bytes:
    return gzip.compress(json.dumps(content).encode())


def key() -> dict[str, Any]:
    return dependencies(experiment(), "cpu")


BAD_TRACES: list[Any] = [
    *(None, [], "text", {}, {"events": []}),
    TINY,  # without the matrix products
    TINY | {"matmul_starts": [4]},
    TINY | {"matmul_starts": [1], "update": [3, 9]},
    TINY | {"matmul_starts": [1], "rollout": [3, 1]},
    TINY | {"matmul_starts": [1], "rollout": [1.0, 3]},
    TINY | {"matmul_starts": [], "events": [[0, -1, "storage"]]},
    TINY | {"matmul_starts": [], "events": [[0, 1, "unheard of"]] * 3},
    TINY | {"matmul_starts": [], "events": [[0], [0], [0]]},
]


@pytest.mark.parametrize("bad", BAD_TRACES, ids=range(len(BAD_TRACES)))
def test_a_stored_file_that_is_no_trace_is_traced_anew_and_replaced(bad: Any, calls: list[ExperimentConfig]) -> None:
    cache.save_trace(key(), bad)
    found = [trace.trace(experiment()) for _ in range(2)]
    assert len(calls) == 1
    assert found[0] == found[1]


def test_a_damaged_or_foreign_file_is_traced_anew_and_replaced(calls: list[ExperimentConfig]) -> None:
    expected = trace.trace(experiment())
    [file] = stored_files()
    whole = file.read_bytes()
    flipped = whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]
    other_key = packed({"key": key() | {"num_envs": 5}, "trace": json.loads(TINY_JSON)})
    for number, content in enumerate(
        [b"", whole[:-9], flipped, pickle.dumps({"key": key()}), b"[" * 10_000, other_key, packed([1])], 2
    ):
        file.write_bytes(content)
        assert trace.trace(experiment()) == expected
        assert len(calls) == number
        assert file.read_bytes() == whole


def test_a_file_that_unpacks_to_more_than_any_trace_is_traced_anew(
    calls: list[ExperimentConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    trace.trace(experiment())
    monkeypatch.setattr(cache, "MOST_TEXT_BYTES", 100)
    trace.trace(experiment())
    assert len(calls) == 2


def test_a_cache_folder_that_cannot_be_made_is_no_error(
    calls: list[ExperimentConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert trace.trace(experiment()) == trace.trace(experiment())
    assert len(calls) == 2


@pytest.mark.parametrize("bound", ["MOST_TRACE_FILES", "MOST_TRACE_BYTES"])
def test_beyond_the_bound_the_least_recently_used_trace_is_deleted(
    bound: str, calls: list[ExperimentConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [experiment(f"num_envs={n}") for n in (8, 16, 24, 32)]
    for age_s, run in zip((300, 200, 100), runs, strict=False):
        before = set(stored_files()) if calls else set()
        trace.trace(run)
        [file] = set(stored_files()) - before
        os.utime(file, (1e9 - age_s, 1e9 - age_s))
    size = max(file.stat().st_size for file in stored_files())
    monkeypatch.setattr(cache, bound, 3 if bound == "MOST_TRACE_FILES" else int(3.5 * size))
    trace.trace(runs[0])  # the oldest is used again
    trace.trace(runs[3])
    assert len(stored_files()) == 3
    assert len(calls) == 4
    for run in (runs[0], runs[2], runs[3]):
        trace.trace(run)
    assert len(calls) == 4
    trace.trace(runs[1])
    assert len(calls) == 5
