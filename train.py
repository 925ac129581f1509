"""Trains a robot with PPO: `python train.py --help`."""

import sys

from ppo_lab.__main__ import run

if __name__ == "__main__":
    run("train", sys.argv[1:])
