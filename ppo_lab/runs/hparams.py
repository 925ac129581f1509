"""A run's row in TensorBoard's HParams table and parallel coordinates: what was set, and what came of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

from ppo_lab.config import ExperimentConfig, flat
from ppo_lab.runs.events import replace_events

log = logging.getLogger(__name__)

EVENT_FILES = "events.out.tfevents.*.hparams"
"""The run's event files that hold its row, and nothing else."""
SHOWN = 5
"""Of settings and of metrics TensorBoard shows so many unasked."""
SETTINGS = (
    *("env.name", "num_envs", "num_steps_per_env", "algorithm.learning_rate", "algorithm.num_mini_batches"),
    *("seed", "max_iterations", "network.activation", "network.hidden_dims"),
    *("algorithm.schedule", "algorithm.num_learning_epochs", "algorithm.entropy_coef", "algorithm.gamma"),
)
"""Of a run that is no job of a sweep: the same for every env, as all rows of a folder have the same columns."""
RESULTS = (
    *("final_reward", "steps_per_s", "measured_peak_mib", "wall_s", "best_reward"),
    *("predicted_peak_mib", "training_s"),
)
"""What came of a run."""
TYPES = {
    bool: (api_pb2.DATA_TYPE_BOOL, "bool_value"),
    int: (api_pb2.DATA_TYPE_FLOAT64, "number_value"),
    float: (api_pb2.DATA_TYPE_FLOAT64, "number_value"),
    str: (api_pb2.DATA_TYPE_STRING, "string_value"),
}


def write_run(run_folder: Path, cfg: ExperimentConfig, results: Mapping[str, Any]) -> None:
    """Gives a run that is no job of a sweep its row, where the disk takes it. Of `results` those in RESULTS count."""
    settings = flat(asdict(cfg))
    values = {name: settings[name] for name in SETTINGS}
    hparams = {name: value if type(value) in TYPES else str(value) for name, value in values.items()}
    try:
        write_hparams(run_folder, hparams, {name: results.get(name) for name in RESULTS})
    except OSError as error:
        log.warning("the run's row in TensorBoard's HParams was not written: %s", error.strerror)


def write_hparams(
    run_folder: Path, hparams: Mapping[str, bool | int | float | str], metrics: Mapping[str, float | None]
) -> None:
    """Gives the run one row, named like the run, and removes its earlier one.

    Metrics become scalars `Result/<name>`. TensorBoard takes the columns from one run, whichever it meets first, so all
    runs of a sweep need the same keys: a metric that is None has a column and no value. It shows the
    first SHOWN settings, sorted by name, and the first SHOWN metrics unasked, and colours by the first metric.
    """
    columns = api_pb2.Experiment(
        hparam_infos=[
            api_pb2.HParamInfo(name=name, type=TYPES[type(value)][0], differs=number < SHOWN)  # these are sorted first
            for number, (name, value) in enumerate(hparams.items())
        ],
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=f"Result/{name}"), display_name=name) for name in metrics
        ],
    )
    row = SessionStartInfo(start_time_secs=time.time())  # without a group_name, which would merge runs
    for name, value in hparams.items():
        setattr(row.hparams[name], TYPES[type(value)][1], value)
    values = [
        _plugin_value(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=columns)),
        _plugin_value(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=row)),
        *(
            Summary.Value(tag=f"Result/{name}", simple_value=value)
            for name, value in metrics.items()
            if value is not None
        ),
    ]

    replace_events(run_folder, EVENT_FILES, {0: values})


def _plugin_value(tag: str, data: HParamsPluginData) -> Summary.Value:
    summary_metadata = metadata.create_summary_metadata(data)
    return Summary.Value(tag=tag, metadata=summary_metadata, tensor=metadata.NULL_TENSOR)
