"""Says what a run will hold in memory before it starts: `python estimate.py --help`."""

import sys

from ppo_lab.machine.preflight import exit_on_wrong_packages

exit_on_wrong_packages()  # before the imports that would fail

import hydra  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from ppo_lab.cli import estimate as estimating  # noqa: E402
from ppo_lab.cli.compose import check_question, is_for_hydra  # noqa: E402
from ppo_lab.cli.exits import exit_codes  # noqa: E402


@hydra.main(version_base="1.3", config_path="conf", config_name="estimate")
def answer(cfg: DictConfig) -> None:
    """Only for --help and the like, which Hydra answers by itself."""


if __name__ == "__main__":
    with exit_codes():
        if is_for_hydra(sys.argv[1:]):
            check_question(sys.argv[1:], "estimate")
            answer()
        else:
            sys.exit(estimating.main(sys.argv[1:]))
