"""One dict of scalars an iteration, to TensorBoard and to metrics.jsonl alike."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

LAYOUT = {
    "Reward": {
        "mean reward": ["Multiline", ["Train/mean_reward$"]],
        "episode length": ["Multiline", ["Train/mean_episode_length$"]],
        "reward terms": ["Multiline", ["Episode/rew_.*"]],
    },
    "Losses": {
        "value and surrogate loss": ["Multiline", ["Loss/(value|surrogate)"]],
        "entropy": ["Multiline", ["Loss/entropy"]],
        "learning rate": ["Multiline", ["Loss/learning_rate"]],
        "action deviation": ["Multiline", ["Policy/mean_std"]],
    },
    "Memory": {
        "tensors: peaks, and what stays (MiB)": [
            "Multiline",
            ["Memory/(predicted_)?(allocated_peak|rollout_peak|update_peak|resident|reserved)_mib"],
        ],
        "device (MiB)": ["Multiline", ["Memory/(predicted_)?(device_used|process_device)_mib"]],
        "host (MiB)": ["Multiline", ["Memory/(predicted_)?host_.*"]],
    },
    "Speed": {
        "steps per second": ["Multiline", ["Perf/total_fps"]],
        "seconds": ["Multiline", ["Perf/(collection|learning)_time"]],
    },
}
"""The custom-scalars page: category -> chart -> the tags in it, as regular expressions."""


class MetricsWriter:
    """Writes a run's scalars to event files and to metrics.jsonl, each iteration once, in order."""

    def __init__(self, folder: Path) -> None:
        self._board = SummaryWriter(str(folder), flush_secs=10)
        self._lines = (folder / "metrics.jsonl").open("a", encoding="utf-8")

    def describe(self, config_yaml: str, environment: dict[str, Any], memory_tags: Collection[str]) -> None:
        """Puts the configuration, a table of the environment and the dashboard's layout into the event file.

        `memory_tags`: the Memory/ rows that this device has; a chart with none of them is left out.
        """
        self._board.add_text("config", f"```yaml\n{config_yaml}\n```")
        rows = "\n".join(f"| {key} | {value} |" for key, value in environment.items())
        self._board.add_text("environment", f"| | |\n|---|---|\n{rows}")
        charts = {
            title: chart
            for title, chart in LAYOUT["Memory"].items()
            if any(re.match(chart[1][0], tag) for tag in memory_tags)
        }
        self._board.add_custom_scalars(LAYOUT | {"Memory": charts})

    def write(self, iteration: int, scalars: dict[str, float]) -> None:
        """Writes {tag: value}. One event for all of them: an event each costs ten times as much."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._board.file_writer.add_summary(Summary(value=values), iteration)
        self._lines.write(json.dumps({"iteration": iteration, **scalars}) + "\n")
        self._lines.flush()

    def close(self) -> None:
        self._board.close()
        self._lines.close()
