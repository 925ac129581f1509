"""What runs survived, and what that costs: writes docs/results/reliability.json and the tables of docs/reliability.md.

python benchmarks/reliability.py [faults] [sizes] [cost]     # all three where none is named; cost wants a quiet machine

faults: tests/system/test_faults.py, the long versions included. sizes: checkpoints of real runs. cost: 512 Go2 envs
that save every second iteration, so that an iteration with a checkpoint stands beside one without, in one process.
"""

import datetime
import io
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ppo_lab.cli.compose import compose
from ppo_lab.runs.config import to_experiment
from ppo_lab.runs.files import write_json

REPOSITORY = Path(__file__).resolve().parent.parent
RESULT = REPOSITORY / "docs/results/reliability.json"
PAGE = REPOSITORY / "docs/reliability.md"
SIZES = [("go2", 512), ("go2", 4096), ("hover", 512), ("hover", 4096)]
"""env, num_envs"""
WARM_UP, PAIRS = 4, 20
"""Iterations before the clock counts; iterations with a checkpoint after that, and as many without."""


def main() -> None:
    measures: dict[str, Callable[[], Any]] = {
        "faults": faults,
        "sizes": lambda: {"runs": [in_a_process(sizes_of, *case) for case in SIZES]},
        "cost": lambda: in_a_process(cost),
    }
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in sys.argv[1:] or measures:
        result[name] = measures[name]() | in_a_process(circumstances)
        print(json.dumps(result[name], indent=2), flush=True)
        write_json(RESULT, result)
    page = PAGE.read_text()
    for name, table in tables(result).items():
        page = re.sub(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", rf"\g<1>{table}\g<2>", page, flags=re.DOTALL)
    PAGE.write_text(page)


def in_a_process(measure: Callable[..., Any], *args: Any) -> Any:
    """One process can start the simulator once."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(measure, *args).result()


def faults() -> dict[str, Any]:
    """By fault, how often it was done and how often something was lost: a test that failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-n", "1", "tests/system/test_faults.py", f"--junitxml={report}"]
        subprocess.run(command, cwd=REPOSITORY, stdout=sys.stderr)
        return {"by_fault": counted(report)}


def counted(report: Path) -> dict[str, dict[str, int]]:
    """Fault -> tried, lost; from a report of pytest. A test that says nothing of itself counts as one."""
    tried, lost = Counter[str](), Counter[str]()
    for case in ET.parse(report).iter("testcase"):
        if case.find("skipped") is not None:
            continue
        said = {item.get("name"): item.get("value") for item in case.iter("property")}
        fault = said.get("fault") or case.get("name", "").partition("[")[0].removeprefix("test_").replace("_", " ")
        tried[fault] += int(said.get("tried") or 1)
        lost[fault] += case.find("failure") is not None or case.find("error") is not None
    return {fault: {"tried": tried[fault], "lost": lost[fault]} for fault in tried}


def sizes_of(env: str, num_envs: int) -> dict[str, Any]:
    """Bytes of a real checkpoint, as written and before it is deflated, and of all that Genesis would save."""
    import torch

    from ppo_lab.learning import checkpoint

    with tempfile.TemporaryDirectory() as parent:
        run = Path(parent) / "run"
        words = [f"env={env}", f"num_envs={num_envs}", "max_iterations=2", "device=cpu", "quiet=true"]
        command = [sys.executable, "train.py", *words, f"hydra.run.dir={run}"]
        subprocess.run(command, cwd=REPOSITORY, check=True)
        found: dict[str, Any] = {"env": env, "num_envs": num_envs}
        for kind in ("model", "state"):
            path, raw = run / "checkpoints" / f"{kind}_1.pt", io.BytesIO()
            torch.save(checkpoint.load(path), raw)
            found[kind] = {"bytes": path.stat().st_size, "raw_bytes": len(raw.getvalue())}

    from ppo_lab.envs import make_env

    cfg = to_experiment(compose(words))
    built: Any = make_env(cfg.env, num_envs, torch.device("cpu"), seed=1)
    whole = io.BytesIO()
    torch.save(built._scene.__getstate__(), whole)
    return found | {"whole_scene_bytes": len(whole.getvalue())}


def cost() -> dict[str, Any]:
    """Seconds of iterations that end in a checkpoint, and of the next, in which the thread that writes is at work."""
    from ppo_lab.envs import make_env
    from ppo_lab.learning.checkpoint import Checkpoints
    from ppo_lab.learning.loop import Loop
    from ppo_lab.machine.devices import resolve_device
    from ppo_lab.memory.measure.monitor import MemoryMonitor
    from ppo_lab.runs.metrics import MetricsWriter

    default = to_experiment(compose([])).save_interval
    words = ["experiment=go2_small", f"max_iterations={2 * (WARM_UP + PAIRS)}"]
    cfg = to_experiment(compose(words))
    device = resolve_device(cfg.device)
    env = make_env(cfg.env, cfg.num_envs, device, cfg.seed)
    with tempfile.TemporaryDirectory() as folder, MemoryMonitor(device, False) as monitor:
        metrics = MetricsWriter(Path(folder))
        checkpoints = Checkpoints(Path(folder) / "checkpoints", save_interval=2, before_saving=metrics.sync)
        save, ended_s = checkpoints.maybe_save, [time.perf_counter()]
        saving_s: list[float] = []

        def clocked(*args: Any) -> None:
            started_s = time.perf_counter()
            save(*args)
            ended_s.append(time.perf_counter())
            saving_s.append(ended_s[-1] - started_s)

        vars(checkpoints).update(maybe_save=clocked)
        loop = Loop(env, cfg, monitor, checkpoints, metrics.write)
        loop.learn(cfg.max_iterations, init_at_random_ep_len=True)
        metrics.close()
    whole_s = [after - before for before, after in itertools.pairwise(ended_s)]
    saving = range(2 * WARM_UP, len(whole_s) - 2, 2)  # the last is written at once
    bare_s = [whole_s[i] - saving_s[i] for i in saving]  # nothing is being written then
    extra_s = [whole_s[i] + whole_s[i + 1] - 2 * bare for i, bare in zip(saving, bare_s, strict=True)]
    iteration_s, offer_s, extra = map(statistics.median, (bare_s, [saving_s[i] for i in saving], extra_s))
    return {
        "env": cfg.env.name,
        "num_envs": cfg.num_envs,
        "pairs": len(saving),
        "iteration_s": iteration_s,
        "offer_s": offer_s,
        "extra_s": extra,
        "default_save_interval": default,
        "share_of_training": max(offer_s, extra) / (default * iteration_s),
    }


def circumstances() -> dict[str, Any]:
    import torch

    from ppo_lab.runs.manifest import describe_machine

    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return {
        "machine": describe_machine(torch.device("cpu")) | {"load_average": os.getloadavg()[0]},
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
        "date": datetime.date.today().isoformat(),
    }


def tables(result: dict[str, Any]) -> dict[str, str]:
    """What docs/reliability.md shows of the result, which a test compares."""
    show: dict[str, Callable[[dict[str, Any]], str]] = {"faults": faults_table, "sizes": sizes_table, "cost": cost_text}
    return {name: show[name](found) for name, found in result.items()}


def faults_table(found: dict[str, Any]) -> str:
    rows = [f"| {fault} | {row['tried']} | {row['lost']} |" for fault, row in found["by_fault"].items()]
    return "\n".join(["| what was done | times | runs lost |", "|---|---:|---:|", *rows])


def sizes_table(found: dict[str, Any]) -> str:
    rows = ["| env | num_envs | `model` | `state` | `state` per env | before deflating | whole scene |"]
    rows.append("|---|---:|---:|---:|---:|---:|---:|")
    for run in found["runs"]:
        whole = [run[kind]["bytes"] / 1e3 for kind in ("model", "state")]
        each = [size / run["num_envs"] / 1e3 for size in (run["state"]["bytes"], run["state"]["raw_bytes"])]
        scene = run["whole_scene_bytes"] / run["num_envs"] / 1e3
        figures = [f"{size:,.0f}" for size in whole] + [f"{size:.2f}" for size in each] + [f"{scene:.1f}"]
        rows.append(f"| {run['env']} | {run['num_envs']:,} | {' | '.join(figures)} |")
    return "\n".join(rows)


def cost_text(found: dict[str, Any]) -> str:
    return (
        f"A checkpoint holds up training for {1e3 * found['offer_s']:.0f} ms, beside {1e3 * found['iteration_s']:,.0f} "
        f"ms of an iteration of\n{found['num_envs']} {found['env']} envs. With what the thread that writes takes "
        f"meanwhile, two iterations last {1e3 * found['extra_s']:.0f} ms longer.\nAt the default "
        f"`save_interval={found['default_save_interval']}` that is {100 * found['share_of_training']:.2f} % of "
        f"training time (medians of {found['pairs']} checkpoints in one process)."
    )


if __name__ == "__main__":
    main()
