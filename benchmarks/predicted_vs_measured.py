"""Predicted beside measured, for real runs of both envs: writes docs/results/predicted_vs_measured.json.

python benchmarks/predicted_vs_measured.py          # on a CPU, counting every tensor; about six minutes on two cores

Each run's prediction is written to its folder before the env is built; the figures are read back from summary.json.
"""

import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ppo_lab.memory.rows import MIB, tag
from ppo_lab.runs.files import write_json
from ppo_lab.runs.record import read

REPOSITORY = Path(__file__).resolve().parent.parent
RESULT = REPOSITORY / "docs/results/predicted_vs_measured.json"
CASES = [
    ("go2", 128, 4),
    ("go2", 512, 2),
    ("go2", 512, 8),
    ("go2", 2048, 4),
    ("hover", 128, 4),
    ("hover", 512, 1),
    ("hover", 512, 4),
    ("hover", 2048, 16),
]
"""env, num_envs, num_mini_batches"""


def main() -> None:
    runs = []
    for env, num_envs, num_mini_batches in CASES:
        overrides = [f"env={env}", f"num_envs={num_envs}", f"algorithm.num_mini_batches={num_mini_batches}"]
        runs.append({"env": env, "num_envs": num_envs, "num_mini_batches": num_mini_batches} | measure(overrides))
        print(json.dumps(runs[-1]), flush=True)
    write_json(RESULT, {"date": datetime.date.today().isoformat(), "runs": runs})
    print(table(runs))


def table(runs: list[dict[str, Any]]) -> str:
    """The table in docs/estimate.md, which a test compares with the committed result."""
    rows = ["| env | num_envs | mini-batches | peak | predicted, bytes | measured, bytes | error |"]
    rows.append("|---|---:|---:|---|---:|---:|---:|")
    for run in runs:
        for name in ("rollout_peak", "update_peak"):
            row = run["memory"][name]
            bytes_ = f"{row['predicted_bytes']:,} | {row['measured_bytes']:,} | {row['error_percent']:+.3f} %"
            peak = name.partition("_")[0]
            rows.append(f"| {run['env']} | {run['num_envs']:,} | {run['num_mini_batches']} | {peak} | {bytes_} |")
    return "\n".join(rows)


def measure(overrides: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as parent:
        run = Path(parent) / "run"
        also = ["max_iterations=2", "device=cpu", "memory.count_tensors=true", "quiet=true", f"hydra.run.dir={run}"]
        subprocess.run([sys.executable, "train.py", *overrides, *also], cwd=REPOSITORY, check=True)
        record = read(run)
    return {
        "memory": {row["name"]: row for row in record.summary["memory"]},
        "known_bytes": record.estimate["device_bytes"]["low"],
        "host_peak_rss_bytes": round(record.summary["peak_mib"][tag("host_peak_rss")] * MIB),
        "commit": record.manifest["git"]["commit"],
        "torch": record.manifest["packages"]["torch"],
        "genesis-world": record.manifest["packages"]["genesis-world"],
    }


if __name__ == "__main__":
    main()
