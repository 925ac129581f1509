"""Whether a run that was repeated came out the same."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppo_lab.contracts import State
from ppo_lab.learning.checkpoint import load
from ppo_lab.runs.files import numbered
from ppo_lab.runs.folder import RunFolder
from ppo_lab.runs.record import read_metrics

TIMING_TAGS = ("Perf/", "Memory/")
"""Rows that differ from one run to the next whatever was learned."""


@dataclass(frozen=True)
class Reproduction:
    """What two runs have in common."""

    iterations: int
    """Those that both have."""
    first_difference: int | None
    """The first iteration of these in which a row differs."""
    rows: dict[str, list[float | None]]
    """The rows that differ there: tag -> original, repeated."""
    checkpoint: int | None
    """The newest iteration whose weights both have; None where there is none."""
    weights: list[str]
    """SHA-256 of the weights after it: original, repeated."""

    @property
    def equal(self) -> bool:
        return self.iterations > 0 and self.first_difference is None and len(set(self.weights)) == 1

    def __str__(self) -> str:
        curve = f"the curve is equal in all {self.iterations} iterations"
        if self.first_difference is not None:
            tag, (original, repeated) = next(iter(self.rows.items()))
            curve = f"the curve differs from iteration {self.first_difference} on ({tag}: {original} and {repeated})"
        weights = "no checkpoint of the same iteration to compare"
        if self.checkpoint is not None:
            same = "are equal" if len(set(self.weights)) == 1 else "differ"
            weights = f"the weights after iteration {self.checkpoint} {same} (sha256 {self.weights[0][:16]})"
        return f"{weights}; {curve}"


def compare(original: Path, repeated: Path) -> Reproduction:
    """Compares weights and curves of two run folders. Raises a CheckpointError where weights cannot be read."""
    ours, theirs = (
        [{tag: value for tag, value in row.items() if not tag.startswith(TIMING_TAGS)} for row in read_metrics(run)]
        for run in (original, repeated)
    )
    pairs = list(zip(ours, theirs, strict=False))
    first = next((index for index, (one, other) in enumerate(pairs) if one != other), None)
    rows: dict[str, list[float | None]] = {}
    if first is not None:
        one, other = pairs[first]
        rows = {tag: [one.get(tag), other.get(tag)] for tag in one | other if one.get(tag) != other.get(tag)}
    models = [numbered(RunFolder(run).checkpoints, "model") for run in (original, repeated)]
    newest = max(models[0].keys() & models[1].keys(), default=None)
    weights = [] if newest is None else [hash_of_weights(load(found[newest])) for found in models]
    return Reproduction(len(pairs), first, rows, newest, weights)


def hash_of_weights(model: State) -> str:
    """SHA-256 over names and bytes of the actor's and critic's tensors, normalizers among them."""
    digest = hashlib.sha256()
    for network in ("actor_state_dict", "critic_state_dict"):
        state: dict[str, Any] = model[network]
        for name in sorted(state):
            digest.update(f"{network}.{name}".encode())
            digest.update(state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
