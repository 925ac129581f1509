"""The memory figures of the texts that this project started from, beside its own, and why they differ.

`python -m benchmarks.source_figures` prints the table that docs/memory.md holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ppo_lab.cli.compose import compose
from ppo_lab.config import ExperimentConfig
from ppo_lab.memory.predict import closed_form
from ppo_lab.memory.predict.closed_form import TensorSpec, total_bytes
from ppo_lab.runs.config import to_experiment

GO2 = [
    "env=go2",
    "num_envs=4096",
    "num_steps_per_env=24",
    "network.hidden_dims=[512,256,128]",
    "network.activation=elu",
]
HOVER = ["env=hover", "num_envs=8192", "num_steps_per_env=100", "network.hidden_dims=[128,128]"]
HOVER += ["network.activation=tanh", "max_iterations=301"]
LEARNER = ["algorithm.num_mini_batches=4", "algorithm.optimizer=adam"]


@dataclass(frozen=True)
class SourceFigure:
    quantity: str
    stated: str
    """As the text has it."""
    ours: str
    why: str
    """What makes the difference; empty where there is none."""


def source_comparison() -> str:
    """Both of the texts' examples, in Markdown."""
    go2, hover = (to_experiment(compose(run + LEARNER)) for run in (GO2, HOVER))
    return "\n".join(
        [
            "### Go2 walks: 4,096 envs x 24 steps, 512-256-128 ELU, 4 mini-batches",
            "",
            *_table(_go2_figures(go2)),
            "",
            "### The drone hovers: 8,192 envs x 100 steps, 128-128 tanh, 4 mini-batches",
            "",
            *_table(_hover_figures(hover)),
        ]
    )


def _go2_figures(cfg: ExperimentConfig) -> list[SourceFigure]:
    rollout, batch = closed_form.rollout_storage(cfg), closed_form.mini_batches(cfg)
    learned = closed_form.parameters(cfg)
    trained = [*learned, *closed_form.gradients(cfg), *closed_form.optimizer_state(cfg)]
    saved = closed_form.saved_activations(cfg)
    outputs = [spec for spec in saved if spec.name.endswith("output")]
    return [
        SourceFigure("transitions in a rollout", "98,304", f"{cfg.transitions:,}", ""),
        SourceFigure(
            "held for each transition",
            "63 floats",
            _bytes(total_bytes(rollout) // cfg.transitions),
            "The mean and deviation of the action's distribution are held too, 2 x 12 floats; `dones` takes one byte, "
            "not four.",
        ),
        SourceFigure("rollout", "24.8 MB", _total(rollout), "As above, for every transition."),
        SourceFigure(
            "mini-batch",
            "6 MB",
            _total(batch),
            "All four are gathered at once, without `rewards`, `dones` and deviations: every epoch reads them again.",
        ),
        SourceFigure("actor's parameters", "189,324", _count(learned, "actor.mlp"), ""),
        SourceFigure("critic's parameters", "187,905", _count(learned, "critic.mlp"), ""),
        SourceFigure("parameters with the 12 deviations", "377,241", _count(learned, ""), ""),
        SourceFigure("parameters, bytes", "1.44 MB", _total(learned), "The text's MB is here the MiB."),
        SourceFigure(
            "parameters, gradients, Adam's m and v", "5.8 MB", _total(trained), "The text's MB is here the MiB."
        ),
        SourceFigure(
            "activations saved for backward",
            "177 MB",
            _total(saved),
            f"The outputs of the hidden layers, once, are {_total(outputs)} = {total_bytes(outputs) / 2**20:.0f} MiB. "
            "Beside it lie the gradients of all hidden layers but the last. What the networks see is the mini-batch's.",
        ),
        SourceFigure(
            "peak of one update",
            "189 MB",
            f"over {_total([*rollout, *batch, *trained, *saved])}",
            "The rollout stays while the update reads it. Ours is the sum of the rows above; the graph of the loss and "
            "what the backward pass allocates on its way come on top and have no closed form.",
        ),
    ]


def _hover_figures(cfg: ExperimentConfig) -> list[SourceFigure]:
    rollout = {spec.name: spec for spec in closed_form.rollout_storage(cfg)}
    learned, gradients = closed_form.parameters(cfg), closed_form.gradients(cfg)
    moments = closed_form.optimizer_state(cfg)
    return [
        SourceFigure("observations", "55.7 MB", _bytes(rollout["observations.policy"].bytes), ""),
        SourceFigure("actions", "12.5 MB", _bytes(rollout["actions"].bytes), "The text's MB is here the MiB."),
        SourceFigure("rewards", "3.3 MB", _bytes(rollout["rewards"].bytes), ""),
        SourceFigure("dones", "3.3 MB (int32)", _bytes(rollout["dones"].bytes), "rsl_rl holds them as uint8."),
        SourceFigure(
            "rollout",
            "75 MB",
            _total(rollout.values()),
            "Values, log probabilities, returns and advantages are held too, and the mean and deviation of the "
            "action's distribution.",
        ),
        SourceFigure(
            "rollouts of all 301 iterations",
            "22.6 GB, so each is discarded",
            _total(rollout.values()),
            f"Kept, they would be {_bytes(cfg.max_iterations * total_bytes(rollout.values()))}. One storage is "
            "allocated, and every rollout is written over the one before.",
        ),
        SourceFigure("parameters", "38,277", _count(learned, ""), "The 4 deviations are learned too."),
        SourceFigure("parameters, bytes", "153 KB", _total(learned), ""),
        SourceFigure("gradients", "153 KB", _total(gradients), ""),
        SourceFigure("Adam's m and v", "306 KB", _total(moments), ""),
        SourceFigure("parameters, gradients, Adam's m and v", "612 KB", _total([*learned, *gradients, *moments]), ""),
    ]


def _table(figures: list[SourceFigure]) -> list[str]:
    return [
        "| quantity | the text | here | why they differ |",
        "| --- | ---: | ---: | --- |",
        *(f"| {row.quantity} | {row.stated} | {row.ours} | {row.why or '-'} |" for row in figures),
    ]


def _total(specs: Iterable[TensorSpec]) -> str:
    return _bytes(total_bytes(specs))


def _bytes(size: int) -> str:
    return f"{size:,} B"


def _count(specs: Iterable[TensorSpec], prefix: str) -> str:
    return f"{sum(spec.elements for spec in specs if spec.name.startswith(prefix)):,}"


if __name__ == "__main__":
    print(source_comparison())
