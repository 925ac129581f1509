"""What runs survived, and what that costs: writes docs/results/reliability.json and the tables of docs/reliability.md.

python benchmarks/reliability.py [faults] [sizes] [cost] [ranks] [overrides]     # all four where none is named

faults: tests/system/test_faults.py, the long versions included. sizes: checkpoints of real runs. cost: Go2 that saves
every second iteration, so that an iteration with a checkpoint stands beside one without, in one run; it wants a quiet
machine. ranks: a run of several ranks, of which one, or all, are killed at random moments.

Overrides of train.py, such as processes=2, go to cost and ranks, whose results stand beside those without any.
"""

import contextlib
import datetime
import io
import itertools
import json
import math
import os
import random
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

import psutil

from ppo_lab.cli.compose import compose
from ppo_lab.machine.preflight import yield_busy_cores
from ppo_lab.runs.config import to_experiment
from ppo_lab.runs.files import write_json
from ppo_lab.runs.record import read_metrics
from ppo_lab.training.reproduction import compare

REPOSITORY = Path(__file__).resolve().parent.parent
RESULT = REPOSITORY / "docs/results/reliability.json"
PAGE = REPOSITORY / "docs/reliability.md"
SIZES = [("go2", 512), ("go2", 4096), ("hover", 512), ("hover", 4096)]
"""env, num_envs"""
ITERATIONS, KILLS = 150, 4
"""Of the run whose ranks are killed; how often each fault is done to it."""
FAULTS_OF_RANKS = ALL_RANKS, RANK_0, OTHER_RANK = "SIGKILL of all ranks", "SIGKILL of rank 0", "SIGKILL of another rank"
OVERRIDES_OF_RANKS = ["experiment=smoke", "env=go2", f"max_iterations={ITERATIONS}"]
WAIT_S = 30.0
"""Within this time after a kill all processes of a run are gone."""
WARM_UP, PAIRS = 4, 20
"""Iterations before the clock counts; iterations with a checkpoint after that, and as many without."""


def main() -> None:
    measures: dict[str, Callable[[list[str]], Any]] = {
        "faults": lambda _: faults(),
        "sizes": lambda _: {"runs": [in_a_process(sizes_of, *case) for case in SIZES]},
        "cost": lambda overrides: in_a_process(cost, overrides),
        "ranks": ranks,
    }
    overrides = [argument for argument in sys.argv[1:] if "=" in argument]
    asked = [argument for argument in sys.argv[1:] if "=" not in argument]
    if set(asked) - measures.keys():
        sys.exit(__doc__)
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in asked or measures:
        key = " ".join([name, *overrides]) if name in ("cost", "ranks") else name
        result[key] = measures[name](overrides) | in_a_process(circumstances)
        print(json.dumps(result[key], indent=2), flush=True)
        write_json(RESULT, result)
    page = PAGE.read_text()
    for key, table in tables(result).items():
        page = re.sub(
            rf"(<!-- {re.escape(key)} -->\n).*?(\n<!-- end -->)", rf"\g<1>{table}\g<2>", page, flags=re.DOTALL
        )
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


def ranks(overrides: list[str]) -> dict[str, Any]:
    """Kills of a run of several ranks, until it is complete: by whom they hit, how often, and how often it was lost.

    A kill is lost where a process is left behind, where rank 0 is alive and does not say in one message what happened,
    or where the run that was resumed at last differs from one that was never killed.
    """
    dice, fates = random.Random(0), list[dict[str, Any]]()
    arguments = [
        *OVERRIDES_OF_RANKS,
        *([] if any("processes=" in argument for argument in overrides) else ["processes=2"]),
        *overrides,
    ]
    with tempfile.TemporaryDirectory() as parent:
        straight, run = Path(parent) / "straight", Path(parent) / "run"
        start(arguments, straight).wait()
        for fault in FAULTS_OF_RANKS * KILLS:
            fates.append({"fault": fault} | kill_once(start([*arguments, "resume=auto"], run), run, fault, dice))
            print(fates[-1], file=sys.stderr)
        code = start([*arguments, "resume=auto"], run).wait()
        is_equal = code == 0 and compare(straight, run).equal and compare(straight, run).iterations == ITERATIONS
    by_fault = {}
    for fault in FAULTS_OF_RANKS:
        of_fault = [fate for fate in fates if fate["fault"] == fault and fate["killed"]]
        lost = sum(not is_equal or fate["left_behind"] > 0 or not fate["explained"] for fate in of_fault)
        by_fault[fault] = {"tried": len(of_fault), "lost": lost}
    return {"by_fault": by_fault, "longest_end_s": max(fate["end_s"] for fate in fates), "overrides": arguments}


def start(arguments: list[str], run: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "train.py", *arguments, "quiet=true", f"hydra.run.dir={run}"]
    return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)


def kill_once(process: subprocess.Popen[str], run: Path, fault: str, dice: random.Random) -> dict[str, Any]:
    """Does `fault` at a random moment to a run that has just been started; waits until all its processes have ended.

    `end_s`: how long that took. `left_behind`: processes that had to be killed after WAIT_S.
    """
    before = len(read_metrics(run))
    if dice.random() < 0.2:
        time.sleep(dice.uniform(0, 10))  # while it starts
    else:
        while process.poll() is None and len(read_metrics(run)) == before:
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.5))
    first = psutil.Process(process.pid)
    family = [first, *first.children(recursive=True)]
    ranks = [first, *(child for child in family[1:] if "train" in child.cmdline())]
    victims = {ALL_RANKS: family, RANK_0: ranks[:1], OTHER_RANK: [dice.choice(ranks[1:] or ranks)]}
    for member in victims[fault]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    killed_s = time.monotonic()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(WAIT_S)
    _, left = psutil.wait_procs(family[1:], timeout=WAIT_S)
    left += [first] if process.poll() is None else []
    end_s = time.monotonic() - killed_s
    for member in left:
        member.kill()
    _, said = process.communicate()
    explained = process.returncode < 0 or (process.returncode == 1 and said.count("error: ") == 1)
    killed = process.returncode != 0  # or the run was complete just before
    return {"killed": killed, "end_s": round(end_s, 1), "left_behind": len(left), "explained": explained, "said": said}


def sizes_of(env: str, num_envs: int) -> dict[str, Any]:
    """Bytes of a real checkpoint, as written and before it is deflated, and of all that Genesis would save."""
    import torch

    from ppo_lab.learning import checkpoint

    with tempfile.TemporaryDirectory() as parent:
        run = Path(parent) / "run"
        arguments = [f"env={env}", f"num_envs={num_envs}", "max_iterations=2", "device=cpu", "quiet=true"]
        command = [sys.executable, "train.py", *arguments, f"hydra.run.dir={run}"]
        subprocess.run(command, cwd=REPOSITORY, check=True)
        found: dict[str, Any] = {"env": env, "num_envs": num_envs}
        for kind in ("model", "state"):
            path, raw = run / "checkpoints" / f"{kind}_1.pt", io.BytesIO()
            torch.save(checkpoint.load(path), raw)
            found[kind] = {"bytes": path.stat().st_size, "raw_bytes": len(raw.getvalue())}

    from ppo_lab.envs import make_env

    cfg = to_experiment(compose(arguments))
    built: Any = make_env(cfg.env, num_envs, torch.device("cpu"), seed=1)
    whole = io.BytesIO()
    torch.save(built._scene.__getstate__(), whole)
    return found | {"whole_scene_bytes": len(whole.getvalue())}


def cost(overrides: list[str]) -> dict[str, Any]:
    """Seconds of iterations that end in a checkpoint, and of the next, in which the thread that writes is at work."""
    yield_busy_cores()
    from ppo_lab.cli import train
    from ppo_lab.learning.checkpoint import Checkpoints
    from ppo_lab.learning.loop import Loop
    from ppo_lab.runs.record import read

    gather, save = Loop.state, Checkpoints.maybe_save
    gathered_s, ended_s, saving_s = [0.0], list[float](), list[float]()

    def clocked_gather(loop: Loop) -> Any:
        started_s = time.perf_counter()
        state = gather(loop)
        gathered_s[0] = time.perf_counter() - started_s
        return state

    def clocked_save(*args: Any, **kwargs: Any) -> None:
        started_s = time.perf_counter()
        save(*args, **kwargs)
        ended_s.append(time.perf_counter())
        saving_s.append(ended_s[-1] - started_s + gathered_s[0])
        gathered_s[0] = 0.0

    setattr(Loop, "state", clocked_gather)  # noqa: B010  mypy allows no method to be assigned
    setattr(Checkpoints, "maybe_save", clocked_save)  # noqa: B010
    arguments = ["experiment=go2_small", f"max_iterations={2 * (WARM_UP + PAIRS)}", "save_interval=2", "quiet=true"]
    with tempfile.TemporaryDirectory() as parent:
        run = Path(parent) / "run"
        train.main([*arguments, *overrides, f"hydra.run.dir={run}"])
        config = read(run).config
    default = to_experiment(compose([])).save_interval
    whole_s = [math.nan, *(after - before for before, after in itertools.pairwise(ended_s))]
    saving = range(2 * WARM_UP, len(whole_s) - 2, 2)  # the last is written at once
    bare_s = [whole_s[i] - saving_s[i] for i in saving]  # nothing is being written then
    extra_s = [whole_s[i] + whole_s[i + 1] - 2 * bare for i, bare in zip(saving, bare_s, strict=True)]
    iteration_s, offer_s, extra = map(statistics.median, (bare_s, [saving_s[i] for i in saving], extra_s))
    return {
        "env": config["env"]["name"],
        "num_envs": config["num_envs"],
        "processes": config["processes"],
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
    show: dict[str, Callable[[dict[str, Any]], str]] = {
        **{"faults": faults_table, "ranks": ranks_table},
        **{"sizes": sizes_table, "cost": cost_text},
    }
    return {key: show[key.partition(" ")[0]](found) for key, found in result.items()}


def faults_table(found: dict[str, Any]) -> str:
    rows = [f"| {fault} | {row['tried']} | {row['lost']} |" for fault, row in found["by_fault"].items()]
    return "\n".join(["| what was done | times | runs lost |", "|---|---:|---:|", *rows])


def ranks_table(found: dict[str, Any]) -> str:
    after = f"After a kill all processes had ended within {found['longest_end_s']:.1f} s."
    return "\n".join([faults_table(found), "", after])


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
    processes = found.get("processes", 1)
    envs = f"{found['num_envs']} {found['env']} envs" + (f" in {processes} processes" if processes > 1 else "")
    return (
        f"A checkpoint holds up training for {1e3 * found['offer_s']:.0f} ms, beside {1e3 * found['iteration_s']:,.0f} "
        f"ms of an iteration of\n{envs}. With what the thread that writes takes "
        f"meanwhile, two iterations last {1e3 * found['extra_s']:.0f} ms longer.\nAt the default "
        f"`save_interval={found['default_save_interval']}` that is {100 * found['share_of_training']:.2f} % of "
        f"training time (medians of {found['pairs']} checkpoints in one {'process' if processes == 1 else 'run'})."
    )


if __name__ == "__main__":
    main()
