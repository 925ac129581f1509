"""Settings as one types them: keys and values of the command line. Standard library only."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

MOST_SHOWN = 300
"""Characters of a value in a message."""


OTHER_NAMES = {
    "lr": "algorithm.learning_rate",
    "epochs n_epochs num_epochs update_epochs mini_epochs": "algorithm.num_learning_epochs",
    "batch_size minibatch_size minibatches num_minibatches n_minibatches": "algorithm.num_mini_batches",
    "ent_coef entropy_loss_scale": "algorithm.entropy_coef",
    "vf_coef critic_coef": "algorithm.value_loss_coef",
    "clip clip_range clip_coef e_clip": "algorithm.clip_param",
    "gae_lambda tau lambda": "algorithm.lam",
    "kl_threshold target_kl": "algorithm.desired_kl",
    "hidden_sizes hidden_layers net_arch units layers": "network.hidden_dims",
    "n_envs nenvs num_actors": "num_envs",
    "steps n_steps num_steps horizon horizon_length rollouts": "num_steps_per_env",
    "iterations num_iterations max_epochs total_timesteps timesteps": "max_iterations",
    "checkpoint_path load_run load_checkpoint restore": "resume",
    "pretrained pretrained_path finetune finetune_from load_weights init_weights warm_start": "init_from",
    "name experiment_name": "run_name",
    "environment task": "env",
    "gpu": "cuda device",
}
"""What other frameworks call a setting, and what it is called here."""


def did_you_mean(name: str, known: Collection[str]) -> str:
    """A question that names the known one nearest to `name`, whole or in its last dotted part; or nothing."""
    last_part = name.lower().rpartition(".")[2]
    for others, ours in OTHER_NAMES.items():
        for candidate in ours.split():
            if last_part in others.split() and candidate in known:
                return f" Did you mean {candidate}?"
    by_last_part = {key.rpartition(".")[2]: key for key in sorted(known, key=len, reverse=True)}
    near = difflib.get_close_matches(name, known, 1, 0.7) or [
        by_last_part[part] for part in difflib.get_close_matches(name.rpartition(".")[2], by_last_part, 1)
    ]
    return f" Did you mean {near[0]}?" if near else ""


def flat(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1, "c": [2]}} -> {"a.b": 1, "a.c": [2]}"""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def as_text(value: Any) -> str:
    """A value as one would type it on the command line, fit for a message: printable, and not too long."""
    match value:
        case bool() | None:
            return {True: "true", False: "false", None: "null"}[value]
        case list():
            return _shortened("[" + ",".join(map(as_text, value[:MOST_SHOWN])) + "]")
        case int():
            return str(value) if abs(value) < 10**MOST_SHOWN else f"a number of {value.bit_length()} bits"
    return _shortened(str(value))


def _shortened(text: str) -> str:
    text = text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN // 2]}...{text[-MOST_SHOWN // 2 :]}"
    return text if text.isprintable() else repr(text)[1:-1]


RUN_DIR = "hydra.run.dir="


SWEEP_DIR = "hydra.sweep.dir="
"""The settings of Hydra's own that are the user's: others write elsewhere, call anything, or change what is shown."""


def quoted(path: Path | str) -> str:
    """A path as a value for Hydra, which would read commas, brackets and others in it."""
    text = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + found[2].replace("'", r"\'"), str(path))
    return f"'{text}'"


def shown(key: str, value: str) -> str:
    """A value for people: a checkpoint without the quotes that only Hydra needs."""
    return value[1:-1] if key == "init_from" and re.fullmatch(r"'[^'\\]+'", value) else value


def leaves(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Each value in nested dicts and lists, with its dotted key."""
    if isinstance(content, dict | list):
        for part, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from leaves(value, f"{key}.{part}" if key else str(part))
    else:
        yield key, content


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Key -> its last part, where that tells it from the other `keys`, or else the whole key."""
    last_parts = {key: key.rpartition(".")[2] for key in keys}
    counts = Counter(last_parts.values())
    return {key: last_part if counts[last_part] == 1 else key for key, last_part in last_parts.items()}


def one_of(options: Sequence[str]) -> str:
    return "Allowed: " + ", ".join(sorted(options)) + "."


def first_line(error: BaseException) -> str:
    return as_text(str(error).strip().partition("\n")[0])
