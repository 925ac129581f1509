"""`ppo-lab runs` lists what run folders say, whatever state they are in."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ppo_lab.cli import runs as program
from ppo_lab.cli.exits import exit_codes
from ppo_lab.runs import record
from ppo_lab.runs.folder import try_lock
from tests.paths import REPOSITORY

Listed = Callable[..., tuple[int, str, str]]


def write_run(folder: Path, started: str, status: str = "completed", iterations: int = 3, **summary: Any) -> Path:
    """A run of 10 iterations of 2 s each, of which `iterations` are completed; their rewards are 0.5, 1.5, 2.5, ..."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"env": {"name": "hover"}, "max_iterations": 10}))
    (folder / "manifest.json").write_text(json.dumps({"started": started}))
    rows = [
        {
            "iteration": number,
            "Train/mean_reward": number + 0.5,
            "Train/mean_episode_length": 100.0 + number,
            "Perf/collection_time": 1.5,
            "Perf/learning_time": 0.5,
        }
        for number in range(iterations)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text(json.dumps({"status": status, "iterations": iterations, **summary}))
    return folder


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Listed:
    """Runs the command in tmp_path: its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str | Path) -> tuple[int, str, str]:
        code = 0
        try:
            with exit_codes():
                program.main([*map(str, argv)])
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return run


def as_json(listed: Listed, *argv: str | Path) -> list[dict[str, Any]]:
    code, printed, error = listed("--json", *argv)
    assert (code, error) == (0, "")
    return json.loads(printed)


def test_runs_and_jobs_of_sweeps_are_listed_the_newest_first(listed: Listed) -> None:
    write_run(Path("outputs/go2/a"), "2026-11-20T10:00:00+00:00")
    write_run(Path("outputs/sweeps/s/0_seed=1"), "2026-11-22T10:00:00+00:00")
    write_run(Path("outputs/hover/b"), "2026-11-21T12:00:00+02:00")  # 10:00 UTC
    write_run(Path("outputs/hover/b/checkpoints/c"), "2026-11-23T10:00:00+00:00")
    write_run(Path("outputs/.import.123.tmp"), "2026-11-23T10:00:00+00:00")
    folders = [run["folder"] for run in as_json(listed)]
    assert folders == ["outputs/sweeps/s/0_seed=1", "outputs/hover/b", "outputs/go2/a"]
    assert [run["folder"] for run in as_json(listed, "outputs/hover", "outputs/hover/b")] == ["outputs/hover/b"]


def test_a_completed_run_has_its_own_sum_of_the_training_time(listed: Listed) -> None:
    write_run(Path("outputs/a"), "2026-11-20T10:00:00+00:00", training_s=61.0)
    (run,) = as_json(listed)
    del run["started"]
    assert run == {
        "folder": "outputs/a",
        "env": "hover",
        "status": "completed",
        "iterations": 3,
        "max_iterations": 10,
        "mean_reward": 2.5,
        "episode_length": 102.0,
        "training_s": 61.0,
        "training_s_is_estimated": False,
        "ancestry": None,
        "damages": [],
    }


def test_a_run_that_began_with_the_weights_of_another_names_it_and_those_before(listed: Listed) -> None:
    run = write_run(Path("outputs/a"), "2026-11-20T10:00:00+00:00")
    before = [
        {"folder": f"/x/{name}", "checkpoint": "model_9.pt", "iteration": 9, "sha256": ""}
        for name in ("parent", "first")
    ]
    (run / "manifest.json").write_text(json.dumps({"ancestry": before}))
    assert [run["ancestry"] for run in as_json(listed)] == ["parent:9 < first:9"]


def test_a_run_that_no_process_trains_was_killed_and_one_whose_lock_is_held_is_running(listed: Listed) -> None:
    run = write_run(Path("outputs/a"), "2026-11-20T10:00:00+00:00", status="running")
    (killed,) = as_json(listed)
    assert (killed["status"], killed["training_s"], killed["training_s_is_estimated"]) == ("killed", 6.0, True)
    held = try_lock(run)
    assert held
    with held:
        assert [found["status"] for found in as_json(listed)] == ["running"]


def test_a_run_that_was_killed_before_its_first_iteration_is_listed(listed: Listed) -> None:
    Path("outputs/a").mkdir(parents=True)
    Path("outputs/a/config.yaml").write_text("env: {name: go2}\nmax_iterations: 5\n")
    (run,) = as_json(listed)
    assert (run["env"], run["status"], run["iterations"], run["max_iterations"]) == ("go2", "killed", 0, 5)
    assert (run["mean_reward"], run["training_s"], run["damages"]) == (None, None, [])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"config.yaml": "{"}, ("config.yaml is damaged", "completed", None)),
        ({"config.yaml": "env: [1]"}, (None, "completed", None)),
        ({"summary.json": "[1]"}, ("summary.json is damaged", "unknown", "hover")),
        ({"manifest.json": "\0"}, ("manifest.json is damaged", "completed", "hover")),
        ({"manifest.json": '{"started": 3, "config": 4}'}, (None, "completed", "hover")),
        ({"metrics.jsonl": '{"iteration": 0, "Train/mean_reward": "high"}\n{"iter'}, (None, "completed", "hover")),
    ],
)
def test_a_damaged_folder_is_listed_with_what_is_damaged(
    listed: Listed, content: dict[str, str], expected: tuple[str | None, str, str | None]
) -> None:
    damage, status, env = expected
    write_run(Path("outputs/a"), "2026-11-20T10:00:00+00:00")
    for name, text in content.items():
        Path("outputs/a", name).write_text(text)
    (run,) = as_json(listed)
    assert (run["damages"], run["status"], run["env"]) == ([damage] if damage else [], status, env)
    code, printed, _ = listed()
    assert code == 0
    assert damage is None or damage in printed


def test_a_long_metrics_file_is_read_at_its_end_alone(listed: Listed, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(Path("outputs/a"), "2026-11-20T10:00:00+00:00", status="running", iterations=9)
    path = Path("outputs/a/metrics.jsonl")
    last_two = sum(map(len, path.read_bytes().splitlines(keepends=True)[-2:]))
    path.write_bytes(b"x" + path.read_bytes()[1:])  # the first line can no longer be read
    monkeypatch.setattr(record, "TAIL_BYTES", last_two + 5)
    (run,) = as_json(listed)
    assert (run["iterations"], run["mean_reward"], run["training_s"], run["damages"]) == (9, 8.5, 18.0, [])


def test_where_there_is_no_run_it_says_so_and_succeeds(listed: Listed) -> None:
    code, printed, error = listed()
    assert (code, error) == (0, "")
    assert printed.startswith("There is no run in outputs. To train one: ")
    assert as_json(listed) == []


def test_a_folder_that_does_not_exist_is_refused(listed: Listed) -> None:
    message = "error: nowhere: there is no such folder. Name a run, a sweep, or a folder of them.\n"
    assert listed("nowhere") == (2, "", message)


def test_in_a_pipe_each_run_is_one_line_and_nothing_moves_the_cursor(listed: Listed) -> None:
    write_run(Path("outputs", "long" * 40), "2026-11-20T10:00:00+00:00", training_s=61.0)
    write_run(Path("outputs/\x1b[2J"), "2026-11-21T10:00:00+00:00", status="\x1b[1A", training_s=61.0)
    _, printed, _ = listed()
    header, _, first, second = (line.split() for line in printed.splitlines())
    assert header == ["env", "status", "iterations", "reward", "length", "training", "folder"]
    assert first == ["hover", "?[1A", "3/10", "2.50", "102", "0:01:01", "outputs/?[2J"]
    assert second == ["hover", "completed", "3/10", "2.50", "102", "0:01:01", f"outputs/{'long' * 40}"]


def test_in_a_terminal_of_80_columns_the_folder_is_folded(listed: Listed, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(Path("outputs", "long" * 40), "2026-11-20T10:00:00+00:00", status="interrupted", training_s=86399.0)
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "80", "LINES": "24", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    _, printed, _ = listed()
    lines = printed.splitlines()
    assert len(lines) > 5
    assert max(map(len, lines)) <= 80
    assert any(
        all(cell in line for cell in ("hover", "interrupted", "3/10", "2.50", "102", "23:59:59")) for line in lines
    )


def test_the_command_is_one_of_python_m_ppo_lab(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "2026-11-20T10:00:00+00:00")
    done = subprocess.run(
        [sys.executable, "-m", "ppo_lab", "runs", str(tmp_path), "--json"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert [run["env"] for run in json.loads(done.stdout)] == ["hover"]
