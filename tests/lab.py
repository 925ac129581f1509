"""A lab that keeps the env puck of docs/add_an_env.md in a package of its own, and trains it without a simulator."""

import os
import re
import subprocess
import sys
from pathlib import Path

from ppo_lab.learning.checkpoint import load
from ppo_lab.runs.record import read_metrics
from ppo_lab.training.reproduction import hash_of_weights
from tests.paths import REPOSITORY

SIZES = ["env=puck", "num_envs=16", "num_steps_per_env=8", "network.actor.obs_normalization=true", "save_interval=5"]
FAULTY_STEP = """
        def step(self, actions):
            rank, _, step = os.environ.get("BREAKS", "-1:").partition(":")
            count[0] += 1
            is_faulty = os.environ.get("RANK") == rank and count[0] == int(step)
            if is_faulty and "RAISES" in os.environ:
                raise RuntimeError("the puck is lost")
            result = self._step(actions)
            if is_faulty:
                result.observations["policy"][3] = float("nan")
            return result

        def _step(self, actions):"""


FAULTS = {
    "\n        def step(self, actions):": FAULTY_STEP,
    "    class PuckEnv": "    count = [0]\n\n    class PuckEnv",
    "    import torch\n": "    import os\n\n    import torch\n",
}


class Lab:
    """A folder on sys.path with the package my_lab, which brings the env puck."""

    def __init__(self, folder: Path) -> None:
        self.site = folder / "site"
        self.started: list[subprocess.Popen[str]] = []
        text = (REPOSITORY / "docs" / "add_an_env.md").read_text()
        conf, module = (
            re.search(rf"`{re.escape(name)}`\n\n```\w+\n(.*?)```", text, re.DOTALL)
            for name in ("conf/env/puck.yaml", "ppo_lab/envs/tasks/puck.py")
        )
        assert conf
        assert module
        self._write("my_lab/__init__.py", "")
        self._write("my_lab/conf/env/puck.yaml", conf[1])
        faulty = module[1]
        for old, new in FAULTS.items():
            assert faulty.count(old) == 1
            faulty = faulty.replace(old, new)
        self._write("my_lab/puck.py", faulty)
        self._write("my_lab-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: my-lab\nVersion: 1\n")
        self._write("my_lab-1.dist-info/entry_points.txt", "[ppo_lab.envs]\npuck = my_lab.puck\n")

    def _write(self, name: str, content: str) -> None:
        path = self.site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def start(self, *arguments: str, program: tuple[str, ...] = (), **variables: str) -> subprocess.Popen[str]:
        """train.py with these arguments; `program`: what starts it."""
        environment = self.environment() | variables
        train = str(REPOSITORY / "train.py")
        command = [*(program or (sys.executable,)), *([] if "replay" in program else [train]), *arguments]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, cwd=self.site.parent, env=environment, stdout=pipe, stderr=pipe, text=True)
        self.started.append(process)
        return process

    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(REPOSITORY), str(self.site)])
        return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def train(self, *arguments: str, **variables: str) -> tuple[int, str, str]:
        return ended(self.start(*arguments, program=(), **variables))


def ended(process: subprocess.Popen[str], within_s: float = 240.0) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    out, errors = process.communicate(timeout=within_s)
    return process.returncode, out, errors


def weights_of(run: Path, iteration: int) -> str:
    return hash_of_weights(load(run / "checkpoints" / f"model_{iteration}.pt"))


def curve_of(run: Path) -> list[dict[str, float | None]]:
    return [{k: v for k, v in row.items() if not k.startswith(("Perf", "Memory"))} for row in read_metrics(run)]
