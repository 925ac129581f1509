"""Predicts what a run will hold in memory, before it starts: `python estimate.py --help`."""

import sys

from ppo_lab.__main__ import run

if __name__ == "__main__":
    run("estimate", sys.argv[1:])
