"""The project's commands: `python -m ppo_lab`, or `ppo-lab` where the package is installed."""

from __future__ import annotations

import sys
from importlib import import_module

from ppo_lab.machine.preflight import exit_on_wrong_packages, yield_busy_cores

COMMANDS = {
    "dashboard": "TensorBoard on a run, a sweep, or all of outputs/",
    "runs": "runs with status, iterations, reward and time",
    "report": "a sweep, or runs side by side, as one page",
    "replay": "what led a run to NaN, and the same again",
    "import": "an old run of rsl-rl-lib 2.2.4 becomes a run folder",
}
"""Command -> what it does. Its module is `ppo_lab.cli.<command>`."""
MODULES = {"import": "import_run"}
"""The modules that cannot have the command's name."""


def main() -> None:
    name, *words = sys.argv[1:] or [""]
    if name not in COMMANDS:
        print("python train.py               train a robot; with -m, many runs at once")
        print("python estimate.py            what a run will hold in memory, before it starts")
        for command, what in COMMANDS.items():
            print(f"python -m ppo_lab {command:<11} {what}")
        print("\nEach explains itself with --help.")
        sys.exit(2 if name else 0)
    exit_on_wrong_packages()  # before the imports that would fail
    yield_busy_cores()
    module = import_module(f"ppo_lab.cli.{MODULES.get(name, name)}")
    from ppo_lab.cli.exits import exit_codes

    with exit_codes():
        module.main(words)


if __name__ == "__main__":
    main()
