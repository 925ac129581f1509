"""Trains a robot with PPO: `python train.py --help`."""

import sys
from pathlib import Path

from ppo_lab.preflight import exit_on_wrong_packages

exit_on_wrong_packages()  # before the imports that would fail

import hydra  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from ppo_lab import budget, command_line  # noqa: E402


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
@command_line.exit_codes()  # within Hydra, which would print more than our one message
def main(cfg: DictConfig) -> None:
    experiment = command_line.to_experiment(cfg)
    estimated = budget.estimate_in_background(experiment)
    from ppo_lab.training import train  # loads torch and the simulator

    run = HydraConfig.get()
    train(experiment, Path(run.runtime.output_dir), list(run.overrides.task), estimated)


if __name__ == "__main__":
    with command_line.exit_codes():
        sys.argv[1:] = command_line.prepare_run(sys.argv[1:])
        main()
