"""Lists the project's commands: `python -m ppo_lab`."""

import sys

COMMANDS = {
    "python train.py": "train a robot; with -m, many runs at once",
    "python estimate.py": "what a run will hold in memory, before it starts",
    "python -m ppo_lab.dashboard": "TensorBoard on a run, a sweep, or all of outputs/",
    "python -m ppo_lab.report": "a sweep, or runs side by side, as one page",
    "python -m ppo_lab.replay": "what led a run to NaN, and the same again",
    "python -m ppo_lab.import_run": "an old run of rsl-rl-lib 2.2.4 becomes a run folder",
    "python -m ppo_lab.preflight": "whether this machine has what it takes",
}

if __name__ == "__main__":
    for command, what in COMMANDS.items():
        print(f"{command:<30} {what}")
    print("\nEach but the last explains itself with --help.")
    sys.exit(2 if sys.argv[1:] else 0)
