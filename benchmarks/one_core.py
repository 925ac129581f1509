"""Trainings and evaluations that take one core each, in processes of their own. What is complete is not done again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def train(run: Path, overrides: list[str]) -> None:
    """Into the folder `run`."""
    if not (run / "summary.json").exists():
        _call(run, ["train.py", *overrides, "processes=1", f"hydra.run.dir='{run}'", "quiet=true"])


def evaluate(run: Path, name: str, settings: list[str]) -> None:
    """Into `evaluation_of(run, name)`."""
    if not evaluation_of(run, name).exists():
        _call(run, ["-m", "ppo_lab", "evaluate", str(run), *settings, f"name={name}"])


def evaluation_of(run: Path, name: str) -> Path:
    return run / f"evaluation/{name}.json"


def results_of(run: Path, name: str) -> list[dict[str, Any]]:
    """A result for each policy under each condition."""
    found: list[dict[str, Any]] = json.loads(evaluation_of(run, name).read_text())["results"]
    return found


def about(run: Path, name: str) -> dict[str, Any]:
    """What an evaluation says of itself and its machine."""
    document = json.loads(evaluation_of(run, name).read_text())
    return {key: document[key] for key in ("commit", "packages", "machine", "episodes")}


def _call(run: Path, arguments: list[str]) -> None:
    """Its output goes to a log beside the folder `run`."""
    with run.with_suffix(".log").open("a") as output:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        ended = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, stdout=output, stderr=output)
    if ended.returncode:
        sys.exit(f"{' '.join(arguments)} ended with {ended.returncode}: see {output.name}")
