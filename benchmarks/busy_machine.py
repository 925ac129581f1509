"""How long an iteration takes beside other busy processes: `python benchmarks/busy_machine.py [overrides]`.

Trains 512 Go2 envs for a few iterations with each way in which OpenMP's threads may wait, alone and beside processes
that keep a core busy each. Prints one JSON object; seconds are medians over the iterations after the first two. Needs
a machine that is idle otherwise.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from ppo_lab.runs.manifest import describe_machine
from ppo_lab.runs.record import read_metrics

REPOSITORY = Path(__file__).resolve().parent.parent
SETTINGS: dict[str, dict[str, str]] = {
    "as torch has it": {"GOMP_SPINCOUNT": "300000"},  # libgomp's default
    "as train.py has it": {},
    "asleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
BUSY = [sys.executable, "-c", "while True: pass"]
WARM_UP = 2


def main() -> None:
    overrides = sys.argv[1:] or ["experiment=go2_small", "max_iterations=10"]
    rows = []
    for busy in (0, 1):
        for name, environment in SETTINGS.items():
            with tempfile.TemporaryDirectory() as folder, busy_processes(busy):
                collection_s, learning_s = train(Path(folder) / "run", overrides, environment)
            rows.append(
                {"busy_processes": busy, "setting": name} | {"collection_s": collection_s, "learning_s": learning_s}
            )
            print(rows[-1], file=sys.stderr)
    print(
        json.dumps({"overrides": overrides, "machine": describe_machine(torch.device("cpu")), "rows": rows}, indent=2)
    )


def train(folder: Path, overrides: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds of collection and of the update."""
    command = [sys.executable, "train.py", *overrides, "quiet=true", f"hydra.run.dir={folder}"]
    subprocess.run(command, cwd=REPOSITORY, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
    rows = read_metrics(folder)[WARM_UP:]
    collection_s, learning_s = (
        statistics.median(row[f"Perf/{part}_time"] for row in rows) for part in ("collection", "learning")
    )
    return round(collection_s, 3), round(learning_s, 3)


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    processes = [subprocess.Popen(BUSY) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
