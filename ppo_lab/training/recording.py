"""What a run writes into its folder beside checkpoints, and prints on the way."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import asdict
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch

from ppo_lab.config import flat
from ppo_lab.errors import OverBudgetError, RunFailedError, StoppedError
from ppo_lab.machine.commands import relative_to_cwd
from ppo_lab.memory.measure import measured
from ppo_lab.memory.measure.growth import FlatMemoryWatch
from ppo_lab.memory.measure.monitor import free_bytes
from ppo_lab.memory.predict.estimate import Estimate
from ppo_lab.memory.rows import MIB, ROWS, name_of, predicted_tag
from ppo_lab.memory.show import table
from ppo_lab.runs import ancestry, hparams, manifest
from ppo_lab.runs.config import as_yaml
from ppo_lab.runs.files import read_json, write_atomically, write_json
from ppo_lab.runs.folder import Run, RunFolder
from ppo_lab.runs.metrics import MetricsWriter, layout
from ppo_lab.runs.summary import Summary
from ppo_lab.training.console import ProgressDisplay

log = logging.getLogger(__name__)


class Recording:
    """Manifest, metrics, prediction, progress and summary of one run, of which an earlier process may have a part.

    A context manager around the run: it writes the manifest on entry, and on exit how the run ended, which it tells by
    the exception: none is completed, a signal's is interrupted, any other is failed.
    """

    def __init__(self, run: Run, device: torch.device, ancestor_iteration: int | None = None) -> None:
        """`ancestor_iteration`: the iteration of the checkpoint that the run begins with, where it does."""
        self.run = run
        self.device = device
        self.is_training = False
        """Whether everything is built, and iterations have begun."""
        self.estimate: Estimate | None = None
        self.progress = ProgressDisplay(run.cfg.max_iterations, run.cfg.quiet, run.first_iteration)
        self._files = RunFolder(run.folder)
        self._checkout = manifest.read_checkout()
        if run.ancestor and ancestor_iteration is not None:
            begun_with = run.ancestor.ancestry(ancestor_iteration)
        else:
            begun_with = ancestry.recorded(read_json(self._files.manifest))  # of a run that goes on
        self._description = manifest.describe_run(
            run.overrides, run.cfg, device, relative_to_cwd(run.folder), self._checkout, begun_with
        )
        self._metrics = MetricsWriter(run.folder, run.first_iteration)
        self._summary = Summary(self._files.summary, run.cfg.transitions, self._metrics.earlier)
        self._watch = FlatMemoryWatch(run.cfg.max_iterations, partial(free_bytes, device))
        self._prediction: dict[str, Any] = {}
        self._predicted_mib: dict[str, float] = {}

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if error is None:
                log.info("finished: %s", self._finish("completed"))
            elif isinstance(error, KeyboardInterrupt | StoppedError):
                log.info("interrupted: %s", self._finish("interrupted", str(error) or None))
            else:
                is_explained = isinstance(error, OverBudgetError | RunFailedError)
                self._finish("failed", str(error) if is_explained else f"{type(error).__name__}: {error}")
        finally:
            self._metrics.close()

    @property
    def iterations(self) -> int:
        """How many are complete."""
        return self._summary.iterations

    def _begin(self) -> None:
        """Writes manifest, git.diff and summary. A run that goes on, or repeats one, says what is different now."""
        run, description, diff = self.run, self._description, self._files.diff()
        original = {}
        if run.continues or run.reproduces:
            original = read_json(RunFolder(run.reproduces or run.folder).manifest)
        if original:
            for difference in manifest.differences(original, description):
                log.warning("%s: the result may differ", difference)
        if original and run.continues:
            diff = self._files.diff(self.run.first_iteration)
            description = manifest.go_on(original, self.run.first_iteration, description)
        write_json(self._files.manifest, description)
        if self._checkout.diff:
            write_atomically(diff, lambda file: file.write(self._checkout.diff))
        self._summary.write("running", None, [])

    def predict(self, estimate: Estimate | None) -> None:
        """Keeps what was predicted, to stand beside every iteration."""
        self.estimate = estimate
        if estimate:
            self._prediction = table.as_json(estimate)
            write_json(self._files.estimate, self._prediction)
            for name, size in measured.predicted_bytes(self._prediction).items():
                self._predicted_mib[predicted_tag(name)] = size / MIB
            if estimate.host_bytes and estimate.host_bytes.likely is not None:  # beside the memory as it is, too
                self._predicted_mib[predicted_tag("host_rss")] = estimate.host_bytes.likely / MIB

    def describe(self, memory_tags: Collection[str]) -> None:
        """Puts configuration, environment and layout on TensorBoard. `memory_tags`: the rows that the device has."""
        about = self._description
        environment = about["packages"] | about["machine"] | {"repeat": about["repeat"]}
        weights = "env.reward_scales."
        terms = [key.removeprefix(weights) for key in flat(asdict(self.run.cfg)) if key.startswith(weights)]
        self._metrics.describe(as_yaml(self.run.cfg), environment, layout(memory_tags, terms))

    def begin_training(self) -> None:
        """Everything is built; the first iteration begins."""
        self.is_training = True
        self._summary.begin_training()

    def add(self, iteration: int, scalars: dict[str, float]) -> None:
        """Takes what an iteration has to tell."""
        self._metrics.write(iteration, scalars | self._predicted_mib)
        self._summary.add(scalars)
        self.progress.show(iteration, scalars)
        for warning in self._watch.warnings(iteration, scalars):
            log.warning(warning)

    def sync(self) -> None:
        """Returns when all that was added is on the disk."""
        self._metrics.sync()

    def _finish(self, status: str, message: str | None = None) -> str:
        """Writes the summary, and returns its main figures as a sentence. See `Summary.write`."""
        compared = measured.compare(self._prediction, self._summary.peak_mib) if self._prediction else []
        outcome = self._summary.write(status, message, [measured.as_json(comparison) for comparison in compared])
        hparams.write_run(self.run.folder, self.run.cfg, read_json(self._files.summary) | self._peaks())
        return outcome

    def _peaks(self) -> dict[str, float | None]:
        """The peak that stands for the run, as predicted and as measured."""
        found = {name: size for key, size in self._summary.peak_mib.items() if (name := name_of(key))}
        predicted = {
            name: self._predicted_mib[key] for name in ROWS if (key := predicted_tag(name)) in self._predicted_mib
        }
        row = measured.peak_row(predicted, found) or ""
        return {"predicted_peak_mib": predicted.get(row), "measured_peak_mib": found.get(row)}
