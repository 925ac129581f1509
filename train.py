"""Trains a robot with PPO: `python train.py --help`."""

import contextlib
import logging
import sys

from ppo_lab.machine.preflight import exit_on_wrong_packages, yield_busy_cores

exit_on_wrong_packages()  # before the imports that would fail
yield_busy_cores()

import hydra  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from ppo_lab.cli.choose_run import prepare  # noqa: E402
from ppo_lab.cli.compose import is_multirun  # noqa: E402
from ppo_lab.cli.exits import exit_codes  # noqa: E402
from ppo_lab.machine import streams  # noqa: E402
from ppo_lab.sweeps import plan  # noqa: E402
from ppo_lab.training import budget, stopping  # noqa: E402


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
@exit_codes()  # within Hydra, which would print more than our one message
def main(_: DictConfig) -> None:
    assert run
    if hint := budget.hint_at_long_run(run.cfg):
        logging.getLogger(__name__).warning(hint)
    estimated = budget.estimate_in_background(run.cfg)
    from ppo_lab.training.run import train

    train(run, estimated)


if __name__ == "__main__":
    streams.outlive_readers(and_full_disks=True)
    with exit_codes():
        stopping.stop_at_once()
        if any(map(is_multirun, sys.argv[1:])):
            run, sys.argv[1:] = None, plan.prepare(sys.argv[1:])
        else:
            run, sys.argv[1:] = prepare(sys.argv[1:])
        with run.discarded_unless_begun() if run else contextlib.nullcontext():
            main()
