"""What only a GPU can tell, in ten minutes: `python benchmarks/gpu.py [arguments]`.

    device=cpu     a dry run where there is no GPU: what makes sense on a CPU, at tiny sizes
    parts=A,B      these alone, or those that fit a pattern such as memory*; parts=list says which there are
    out=FOLDER     where gpu.json, gpu.txt and gpu.log go; outputs/gpu where nothing is said
    again=true     runs parts again that are in gpu.json
    seconds=600    for all of it

Every figure stands beside what the model expects of the card at hand, and where they disagree beside the model that is
wrong. Each part is a process of its own with a time limit; gpu.json is written after each, and the same command goes on
with what is missing. CUDA_VISIBLE_DEVICES chooses the card. Needs a GPU that nothing else uses, a checkout and its
packages; neither git nor NVML nor an installed ppo-lab.
"""

from __future__ import annotations

import contextlib
import datetime
import fnmatch
import os
import signal
import sys
import textwrap
import time
import traceback
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout, whatever is installed

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.gpu_checks import PARTS, Part, machine
from ppo_lab.cli.exits import exit_codes
from ppo_lab.errors import ConfigError
from ppo_lab.machine.preflight import yield_busy_cores
from ppo_lab.memory.rows import MIB
from ppo_lab.runs.files import read_json, write_json

LEAST_S = 10
"""What a part is started with; importing takes as long."""


def run(part: Part, device: str, limit_s: float, log: Path) -> dict[str, Any]:
    """Runs a part in a process of its own, which is ended after `limit_s` with all that it started."""
    started_s = time.monotonic()
    processes = get_context("spawn")
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=_send_rows, args=(part, device, log, sender))
    process.start()
    sender.close()
    rows, error = list[dict[str, Any]](), None
    try:
        while receiver.poll(max(0.0, started_s + limit_s - time.monotonic())):
            received = receiver.recv()
            if isinstance(received, str):
                error = received
            else:
                rows.append(received._asdict() | {"agrees": received.agrees})
        error = f"not done after {limit_s:.0f} s"
    except EOFError:
        process.join(10)
        error = error or (f"its process ended with {process.exitcode}, see {log.name}" if process.exitcode else None)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(cast(int, process.pid), signal.SIGKILL)
        process.kill()
        process.join()
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return {"date": now, "seconds": round(time.monotonic() - started_s, 1), "error": error, "rows": rows}


def _send_rows(part: Part, device: str, log: Path, sender: Connection) -> None:
    """In the process of a part: sends each row as it is found, and the error that ended it, as text."""
    os.setsid()
    os.environ.update(part.environment)
    yield_busy_cores()
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    print(f"--- {part.what} ({device})", flush=True)
    try:
        for row in part.check(device):
            sender.send(row)
    except BaseException as error:
        traceback.print_exc()
        sender.send(f"{type(error).__name__}: {error}")
    sender.close()


def main(arguments: list[str]) -> None:
    """Raises a ConfigError."""
    given = ask(arguments)
    if given["parts"] == "list":
        for name, part in PARTS.items():
            print(f"{name:<22} {part.limit_s:>4.0f} s  {'GPU' if part.needs_gpu else '   '}  {part.what}")
        return
    names, device, out = chosen(given["parts"]), given["device"], Path(given["out"])
    again, ends_s = given["again"] == "true", time.monotonic() + float(given["seconds"])
    out.mkdir(parents=True, exist_ok=True)
    log = out / "gpu.log"
    found = run(Part(machine, 60), device, 60, log)
    if found["error"]:
        raise ConfigError(f"{found['error'].split(': ', 1)[-1]} A dry run without a GPU: device=cpu.")
    here = {row["check"]: row["measured"] for row in found["rows"]}
    result = read_json(out / "gpu.json") or {"machine": here, "parts": {}}
    differs = [name for name in here if result["machine"].get(name) != here[name]]
    if differs:
        raise ConfigError(
            f"{out}/gpu.json is of another machine or code ({differs[0]} was {result['machine'].get(differs[0])} and "
            f"is {here[differs[0]]}). Allowed: another folder, out=FOLDER."
        )
    for name in names:
        part, left_s = PARTS[name], ends_s - time.monotonic()
        is_cut = left_s < part.limit_s
        if name in result["parts"] and not result["parts"][name].get("cut") and not again:
            print(f"{name}: is in {out}/gpu.json; again=true runs it again")
            continue
        if part.needs_gpu and device == "cpu":
            record: dict[str, Any] = {"needs_gpu": True, "error": None, "rows": []}
        elif left_s < LEAST_S:
            print(f"{name}: no time left of seconds={given['seconds']}; the same command goes on with it")
            continue
        else:
            record = run(part, device, min(part.limit_s, left_s), log)
            record["cut"] = is_cut and str(record["error"]).startswith("not done")
        result["parts"][name] = record
        write_json(out / "gpu.json", result)
        print(f"{name}: {summary(record)}", flush=True)
    order = {name: result["parts"][name] for name in PARTS if name in result["parts"]}
    with (out / "gpu.txt").open("w") as file:
        for console in (Console(width=100), Console(width=100, file=file)):
            console.print(table(here, order))
    print(f"wrote {out}/gpu.json and gpu.txt; what the parts said: gpu.log")


def ask(arguments: list[str]) -> dict[str, str]:
    """The arguments, with what is not said filled in. Raises a ConfigError."""
    given = {"device": "cuda", "parts": "*", "out": "outputs/gpu", "again": "false", "seconds": "600"}
    allowed = {"device": ("cuda", "cpu"), "again": ("true", "false")}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in given:
            raise ConfigError(
                f"{argument} is not an argument of this benchmark. Allowed: {', '.join(given)}, each with =."
            )
        if value not in allowed.get(key, (value,)) or (key == "seconds" and not value.isdecimal()):
            raise ConfigError(f"{argument}: allowed: {' or '.join(allowed.get(key, ['a whole number']))}.")
        given[key] = value
    return given


def chosen(patterns: str) -> list[str]:
    """The parts that fit one of the patterns, in order. Raises a ConfigError."""
    for pattern in patterns.split(","):
        if not fnmatch.filter(PARTS, pattern):
            raise ConfigError(f"parts={patterns}: there is no part {pattern}. Allowed: list, {', '.join(PARTS)}.")
    return [name for name in PARTS if any(fnmatch.fnmatch(name, pattern) for pattern in patterns.split(","))]


# What is shown


def summary(record: dict[str, Any]) -> str:
    if record.get("needs_gpu"):
        return "needs a GPU"
    wrong = sum(row["agrees"] is False for row in record["rows"])
    checks = sum(row["agrees"] is not None for row in record["rows"])
    said = f"{record['seconds']:.0f} s, {checks} checks, {wrong} not as expected"
    return f"{said}; {record['error']}" if record["error"] else said


def table(machine: dict[str, str], parts: dict[str, dict[str, Any]]) -> Table:
    """Every check of every part, at most 100 columns wide."""
    packages = (f"{name} {machine[name]}" for name in ("torch", "genesis-world", "rsl-rl-lib"))
    driver = f"driver {machine['driver']}" if "driver" in machine else "no GPU: a dry run"
    title = ", ".join([machine.get("gpu", machine["cpu"]), driver, *packages])
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("check", "expected", "measured"):
        shown.add_column(name, justify="left" if name == "check" else "right")
    shown.add_column("if not", overflow="fold")
    for name, record in parts.items():
        shown.add_row(f"[bold]{name}[/]", "", "", escape(summary(record)))
        for row in record["rows"]:
            verdict = {True: "as expected", False: row["if_not"], None: ""}[row["agrees"]]
            shown.add_row(f"  {row['check']}", _expected(row), _figure(row["measured"], row), verdict)
    return shown


def _expected(row: dict[str, Any]) -> str:
    if row["expected"] is None or isinstance(row["expected"], str):
        return row["expected"] or ""
    low, high = row["expected"]
    return _figure(low, row) if low == high else f"{_figure(low, row)} .. {_figure(high, row)}"


def _figure(value: float | str | None, row: dict[str, Any]) -> str:
    """Bytes to the last one, where that is expected, and else in MiB."""
    if value is None or isinstance(value, str):
        return escape(textwrap.shorten(str(value), 150, placeholder=" ..."))
    is_exact = isinstance(row["expected"], list | tuple) and row["expected"][0] == row["expected"][1]
    if row["unit"] == "B" and not is_exact:
        return f"{value / MIB:,.1f} MiB"
    text = f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.4g}"
    return f"{text} {row['unit']}".strip()


if __name__ == "__main__":
    with exit_codes():
        main(sys.argv[1:])
