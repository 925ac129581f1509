"""docs/glossary.md explains every tag that a run and its evaluations write, and no other."""

import ast
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ppo_lab.cli.compose import compose
from ppo_lab.deploy.evaluation import scalars
from ppo_lab.learning.episodes import EpisodeStatistics
from ppo_lab.learning.update import INITIAL_KL, LOSSES
from ppo_lab.memory.measure.measured import predicted_bytes
from ppo_lab.memory.measure.monitor import MemoryMonitor
from ppo_lab.runs.config import to_experiment
from ppo_lab.runs.events import show_film
from ppo_lab.runs.hparams import RESULTS
from ppo_lab.runs.metrics import TensorBoardWriter
from tests.paths import REPOSITORY

GLOSSARY = REPOSITORY / "docs" / "glossary.md"
TAG = re.compile(
    r"(Train|Episode|Loss|Policy|Perf|Memory|Simulator|Evaluation|Film|Result|config|environment)/[\w<]*[a-z]"
)
PAGE = "custom_scalars__config__"
"""The layout of a page, which is no tag to a reader."""
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
    return {cell for cell in re.findall(r"^\| `([^`]+)` \|", GLOSSARY.read_text(), re.MULTILINE) if TAG.match(cell)}


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


def tags_of_an_evaluation() -> set[str]:
    mean = {"mean": 1.0}
    result = {
        **{"condition": "any", "iteration": 1, "return": mean, "episode_length_s": mean},
        **{"measured": {"<quantity>": mean}, "rewards": {"<term>": mean}, "endings": {"<termination>": {"rate": 1.0}}},
    }
    return set(scalars({"conditions": ["any"], "results": [result]})[1])


def tags_of_texts_and_films(folder: Path) -> set[str]:
    writer = TensorBoardWriter(folder, 0)
    writer.describe("seed: 1", {"torch": "2"}, {})
    writer.close()
    gif = folder / "film.gif"
    gif.touch()
    films = folder / "films"
    films.mkdir()
    show_film(films, "<name>", gif, (1, 1), step=1)
    tags = [EventAccumulator(str(path)).Reload().Tags() for path in (folder, films)]
    return {*tags[0]["tensors"], *tags[1]["images"]} - {PAGE}


def test_the_glossary_has_a_row_for_every_tag_that_a_run_writes_and_for_no_other(tmp_path: Path) -> None:
    results = {f"Result/{name}" for name in RESULTS}
    losses = {f"Loss/{name}" for name in (*LOSSES, INITIAL_KL)}
    written = tags_spelled_in_the_package() | set(tags_of_an_episode()) | tags_of_memory() | results | losses
    assert tags_explained() == written | tags_of_an_evaluation() | tags_of_texts_and_films(tmp_path)


def test_the_terms_of_each_env_in_the_table_are_those_of_its_spec_in_their_order() -> None:
    page, explained = GLOSSARY.read_text(), dict[str, list[str]]()
    for env, term in re.findall(r"^\| (\w+) \| `(\w+)` \|", page, re.MULTILINE):
        explained.setdefault(env, []).append(term)
    assert explained.keys() >= {"go2", "go2_backflip", "hover"}
    assert explained == {env: list(to_experiment(compose([f"env={env}"])).env.spec().rewards) for env in explained}
