"""Hydra's door to ppo_lab.sweeps. Hydra finds launchers in the namespace package `hydra_plugins` alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class PpoLabLauncher(Launcher):
    """Runs each job in a process of its own; what the sweep's folder says was planned before Hydra was asked."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Ends the process with the sweep's exit code where a job is missing at the end."""
        from ppo_lab.sweeps.launcher import launch

        exit_code = launch(Path(self._config.hydra.sweep.dir), _write_report)
        if exit_code:
            sys.exit(exit_code)
        return []


def _write_report(folder: Path) -> Path:
    from ppo_lab import report  # loads matplotlib

    return report.write(folder)
