"""`train.py`: trains one run, or with -m a sweep of them."""

from __future__ import annotations

import logging
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import rich
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from ppo_lab.cli import choose_run, sweep
from ppo_lab.cli.argv import is_multirun
from ppo_lab.cli.compose import TRAIN, ask_hydra, is_question
from ppo_lab.cli.exits import exit_codes
from ppo_lab.config import ExperimentConfig
from ppo_lab.errors import ExitCode
from ppo_lab.machine import devices, launch, loading
from ppo_lab.runs.folder import Run, RunFolder
from ppo_lab.sweeps import launcher
from ppo_lab.training import budget, console, stopping

log = logging.getLogger(__name__)


def main(argv: list[str]) -> ExitCode:
    """Trains what `argv` says. Raises what `choose_run.prepare`, `sweep.prepare` and `training.run.train` raise."""
    stopping.stop_at_once()
    position = launch.position_by_launcher()
    if position and position.rank:
        launch.end_with_rank_0()
        from ppo_lab.training.rank import follow  # loads torch

        return follow(position)
    if is_question(argv):
        ask_hydra([argument for argument in argv if not is_multirun(argument)], TRAIN.name)
        return ExitCode.DONE
    if any(map(is_multirun, argv)):
        loading.end()  # the jobs are processes of their own
        return launcher.launch(sweep.prepare(argv), _write_report)
    run, cfg = choose_run.prepare(argv)
    with run.discarded_unless_begun(), exit_codes(output_may_fail=True):  # it goes by the exit code
        _begin_log(run, cfg)
        if hint := budget.hint_at_long_run(run.cfg):
            log.warning(hint)
        estimated = budget.estimate_in_background(run.cfg)
        with _other_ranks(run.cfg, is_launched=position is not None) as others:
            log.debug("all is checked that can be without torch")
            from ppo_lab.training.run import train  # loads torch and the simulator

            train(run, estimated, others)
    return ExitCode.DONE


def _other_ranks(cfg: ExperimentConfig, is_launched: bool) -> AbstractContextManager[launch.OtherRanks | None]:
    """Starts the ranks beside this process, where there are any and torchrun has not."""
    if is_launched or cfg.processes == 1:
        return nullcontext()
    return launch.OtherRanks(cfg.processes, devices.environments(cfg.device, cfg.processes), cfg.env.name)


def _write_report(folder: Path) -> Path:
    from ppo_lab import report  # loads matplotlib

    return report.write(folder)


def _begin_log(run: Run, cfg: DictConfig) -> None:
    """Sets up logging by `cfg`, to the console and the run's folder, and writes .hydra there, as Hydra does."""
    with read_write(cfg), open_dict(cfg):
        cfg.hydra.run.dir = str(run.folder)
        cfg.hydra.runtime.output_dir = str(run.folder.absolute())
    HydraConfig.instance().set_config(cfg)
    configure_log(cfg.hydra.job_logging, cfg.hydra.verbose)
    if cfg.hydra.verbose:
        rich.get_console().file = sys.stdout  # or what is redirected to the log would come back to it
        for handler in logging.getLogger().handlers:
            if isinstance(handler, console.ConsoleHandler):
                handler.setLevel(logging.DEBUG)
    if run.continues:
        return
    settings = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    hydra = OmegaConf.masked_copy(cfg, ["hydra"])
    folder = RunFolder(run.folder).hydra
    folder.mkdir()
    for name, part in {"config": settings, "hydra": hydra, "overrides": cfg.hydra.overrides.task}.items():
        (folder / f"{name}.yaml").write_text(OmegaConf.to_yaml(part), encoding="utf-8")
