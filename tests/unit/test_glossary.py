"""docs/glossary.md explains every tag that a run writes, and no other."""

import ast
import re
from collections.abc import Iterable
from pathlib import Path

import torch

from ppo_lab.learning.episodes import EpisodeStatistics
from ppo_lab.learning.update import INITIAL_KL, LOSSES
from ppo_lab.memory.measure.measured import predicted_bytes
from ppo_lab.memory.measure.monitor import MemoryMonitor
from ppo_lab.runs.hparams import RESULTS

REPOSITORY = next(path for path in Path(__file__).resolve().parents if (path / "train.py").exists())
TAG = re.compile(r"(Train|Episode|Loss|Policy|Perf|Memory|Simulator|Result)/\w*[a-z]")
GPU_ROWS = ("reserved", "device_used", "process_device")
"""The memory rows that only a GPU has."""
CALIBRATED = {
    "allocated_peak_bytes": 1,
    "reserved_peak_bytes": 1,
    "rollout_peak_bytes": 1,
    "update_peak_bytes": 1,
    "device_bytes": {"likely": 1},
    "host_bytes": {"likely": 1},
}
"""An estimate that knows every figure."""


def tags_explained() -> set[str]:
    """The tags that are the first cell of a row in the glossary."""
    page = (REPOSITORY / "docs" / "glossary.md").read_text()
    return {cell for cell in re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE) if TAG.match(cell)}


def tags_spelled_in_the_package() -> set[str]:
    return {
        node.value
        for path in (REPOSITORY / "ppo_lab").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and TAG.fullmatch(node.value)
    }


def tags_of_an_episode() -> Iterable[str]:
    statistics = EpisodeStatistics(1, 1, ["<term>"], torch.device("cpu"))
    one = torch.ones(1)
    statistics.add(one, one.bool(), one)
    return statistics.scalars([statistics.close_rollout()])


def tags_of_memory() -> set[str]:
    with MemoryMonitor(torch.device("cpu"), count_tensors=True) as monitor:
        for name in ("rollout", "update"):
            with monitor.phase(name):
                pass
        measured = set(monitor.scalars())
    predicted = {
        name
        for kind in ("cpu", "8.9")
        for name in predicted_bytes({**CALIBRATED, "hardware": {"compute_capability": kind}})
    }
    return (
        measured
        | {f"Memory/{name}_mib" for name in GPU_ROWS}
        | {f"Memory/predicted_{name}_mib" for name in (*predicted, "host_rss")}  # see training/recording.py
    )


def test_the_glossary_has_a_row_for_every_tag_that_a_run_writes_and_for_no_other() -> None:
    results = {f"Result/{name}" for name in RESULTS}
    losses = {f"Loss/{name}" for name in (*LOSSES, INITIAL_KL)}
    written = tags_spelled_in_the_package() | set(tags_of_an_episode()) | tags_of_memory() | results | losses
    assert tags_explained() == written
