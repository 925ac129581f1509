"""How long a start takes, phase by phase, from the command to the end of the first iteration.

    python benchmarks/startup.py [warm=5] [cold=0] [side_by_side=0] [out=docs/results/startup.json] [overrides]

Runs `python train.py env=go2 num_envs=512 max_iterations=2` in processes of its own and reads the times in their logs:
`warm` runs with the caches as they are, `cold` runs with empty ones, and as often as `warm` so many runs at once as
`side_by_side` says. Prints one JSON object: medians, and each run's total. One run before all fills the caches; a warm
run that compiled kernels all the same is left out.
"""

from __future__ import annotations

import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ppo_lab.runs.files import write_json
from ppo_lab.runs.manifest import describe_machine, read_checkout

REPOSITORY = Path(__file__).resolve().parent.parent
OVERRIDES = ["env=go2", "num_envs=512", "max_iterations=2"]
PHASES = {
    "python_hydra_checks": "all is checked that can be without torch",
    "torch_learner_imported": "run folder: ",
    "simulator_imported": "the simulator is imported",
    "simulator_started": "the simulator has started",
    "env_built": "the env is built",
    "first_iteration": "iteration 1/",
}
"""Phase -> how the message in train.log begins that ends it."""
COMPILED = "kernels compiled: "
TIME = "%Y-%m-%d %H:%M:%S,%f"


class Start:
    """One run that is on its way."""

    def __init__(self, folder: Path, overrides: list[str], environment: dict[str, str]) -> None:
        self._log = folder / "run" / "train.log"
        self._began_s = time.time()
        self._process = subprocess.Popen(
            [sys.executable, "train.py", *OVERRIDES, *overrides, f"hydra.run.dir={self._log.parent}"],
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            env=environment,
        )

    def phases_s(self) -> dict[str, float]:
        """What each phase took, once the run has ended; and whether kernels were compiled, as 0.0 or 1.0."""
        if self._process.wait():
            sys.exit(f"the run failed; see {self._log}")
        lines = self._log.read_text().splitlines()
        spent, before_s = {}, self._began_s
        for phase, message in PHASES.items():
            ended = next(line for line in lines if line.partition(": ")[2].startswith(message))
            ended_s = datetime.datetime.strptime(ended[:23], TIME).timestamp()
            spent[phase], before_s = ended_s - before_s, ended_s
        spent["total"] = before_s - self._began_s
        return spent | {"is_cold": float(any(COMPILED in line for line in lines))}


def starts(count: int, at_once: int, overrides: list[str], is_cold: bool) -> list[dict[str, float]]:
    """`count` times `at_once` runs, one row each."""
    rows = []
    for number in range(count):
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | ({"XDG_CACHE_HOME": f"{folder}/cache"} if is_cold else {})
            cpu_s = _cpu_s()
            running = [Start(Path(folder, str(place)), overrides, environment) for place in range(at_once)]
            found = [start.phases_s() for start in running]
            cpu_s = (_cpu_s() - cpu_s) / at_once
        rows += [row | {"cpu_of_two_iterations": cpu_s} for row in found]
        totals = ", ".join(f"{row['total']:.1f} s" for row in found)
        print(f"{number + 1}/{count}: {totals}", file=sys.stderr)
    return rows


def medians(rows: list[dict[str, float]], is_cold: bool) -> dict[str, Any]:
    """Of the rows that are cold, or of those that are not."""
    rows = [row for row in rows if bool(row.pop("is_cold")) == is_cold]
    if not rows:
        return {"runs": 0}
    spent = {name: round(statistics.median(row[name] for row in rows), 2) for name in rows[0]}
    return {"runs": len(rows), "median_s": spent, "totals_s": [round(row["total"], 2) for row in rows]}


def main(arguments: list[str]) -> None:
    own = {"warm": "5", "cold": "0", "side_by_side": "0", "out": ""}
    overrides = []
    for override in arguments:
        name, _, value = override.partition("=")
        if name in own:
            own[name] = value
        else:
            overrides.append(override)
    warm, cold, side_by_side = (int(own[name]) for name in ("warm", "cold", "side_by_side"))
    result: dict[str, Any] = {"command": " ".join(["python train.py", *OVERRIDES, *overrides])}
    starts(1, 1, overrides, is_cold=False)  # fills the caches
    result["warm"] = medians(starts(warm, 1, overrides, is_cold=False), is_cold=False)
    if side_by_side:
        rows = starts(warm, side_by_side, overrides, is_cold=False)
        result["side_by_side"] = {"at_once": side_by_side} | medians(rows, is_cold=False)
    if cold:
        result["cold"] = medians(starts(cold, 1, overrides, is_cold=True), is_cold=True)
    result |= {
        "machine": describe_machine(torch.device("cpu")),
        "commit": read_checkout().commit,
        "date": datetime.date.today().isoformat(),
    }
    print(json.dumps(result, indent=2))
    if own["out"]:
        write_json(Path(own["out"]), result)


def _cpu_s() -> float:
    """Of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(sys.argv[1:])
