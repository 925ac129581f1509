"""How fast training is beside rsl_rl's own runner on the same env: python benchmarks/speed.py [PART ...]

    iteration     collection, update, iteration and start-up: with nothing else running, and beside a busy process
    sizes         seconds of an iteration by num_envs
    growth        whether late iterations take longer than early ones
    --walk SEEDS  also: seconds until Go2 walks, with so many seeds; up to five minutes a seed and row
    --quick       iteration alone, once, for rsl_rl's runner and the last row
    --out FOLDER  where speed.json and speed.png go; outputs/speed where nothing is said

All three parts, in about ten minutes on two cores, where none is named. Rows alternate, and every measurement is a
process of its own. Needs a machine that is idle otherwise; speed.json says how many cores others used. A part that is
measured again replaces what speed.json has of it. rsl_rl's runner: benchmarks/stock.py.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout, whatever is installed

import psutil
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich import box
from rich.console import Console, Group
from rich.table import Table

from benchmarks.busy_machine import busy_processes
from benchmarks.reliability import circumstances
from ppo_lab.cli.compose import compose
from ppo_lab.config import flat, to_json
from ppo_lab.runs import record
from ppo_lab.runs.config import to_experiment
from ppo_lab.runs.files import read_json, write_json
from ppo_lab.runs.folder import RunFolder
from ppo_lab.runs.manifest import PACKAGES, read_checkout

REPOSITORY = Path(__file__).resolve().parent.parent

STOCK = "rsl_rl's runner"
CHOSEN = ("envs_per_scene=auto", "algorithm.use_mixed_precision=auto")
ROWS: dict[str, tuple[str, ...]] = {
    STOCK: ("processes=1", "algorithm.use_mixed_precision=false"),
    "1 process": ("processes=1", *CHOSEN),
    "2 processes": ("processes=2", *CHOSEN),
}
"""Name -> overrides of train.py. The first is the one that the others are compared with, the last is the fastest."""
NUM_ENVS, STEPS = 512, 24
"""Of the workload: num_envs where nothing else is said, and num_steps_per_env."""
WORKLOAD = ("env=go2", f"num_steps_per_env={STEPS}", "save_interval=50", "device=cpu")
WALKING: dict[str, tuple[str, ...]] = {
    STOCK: (*ROWS[STOCK], *WORKLOAD, f"num_envs={NUM_ENVS}", "max_iterations=150"),
    list(ROWS)[-1]: (*list(ROWS.values())[-1], "experiment=go2_small", "device=cpu"),
}
"""Name -> overrides of train.py, with as many iterations as a run has to learn to walk."""
SETTINGS = ("processes", "envs_per_scene", "algorithm.use_mixed_precision")
"""Noted for each row as the run resolved them, where it has them."""

REPEATS = {0: 2, 1: 1}
"""By the number of busy processes beside it, how often a row is measured."""
ITERATIONS = {0: 10, 1: 6}
WARM_UP = 2
"""Iterations before the clock counts."""
SIZES = {128: 12, 256: 10, 512: 8, 1024: 6, 2048: 5, 4096: 4}
"""num_envs -> iterations."""
STOCK_SIZES = (128, 512, 4096)
"""Those that are measured of rsl_rl's runner, too."""
GROWTH_ENVS, EARLY, LATE = 128, slice(10, 20), slice(100, 200)
"""Of part growth: num_envs, and the iterations that are compared."""
GOALS = {0: 2.3, 1: 5.0}
"""By the number of busy processes: times as fast as rsl_rl's runner."""
WALKS_LENGTH, WALKS_REWARD = 850, 10
"""Means over the last 100 episodes, from which on Go2 walks."""
POLL_S = 5.0
LIMIT_S = 1800.0
COLORS = {"collect": "#4477AA", "update": "#EE6677"}
CONDITIONS = {0: "idle machine", 1: "one busy process"}
"""By the number of busy processes beside a row."""


class Iteration(NamedTuple):
    """An iteration as the run itself logged it."""

    ended_s: float
    """Since the command was started."""
    collect_s: float
    update_s: float
    reward: float | None
    length: float | None
    """Steps."""


Measured = tuple[list[Iteration], dict[str, Any]]
Until = Callable[[list[Iteration]], bool]


# Measuring


def run(name: str, overrides: Sequence[str], busy: int = 0, until: Until | None = None) -> Measured:
    """Trains in a process of its own beside `busy` others: the iterations, and the settings as they were resolved.

    Ends the run as soon as `until` holds, where it is given. Raises a RuntimeError where the run fails.
    """
    with tempfile.TemporaryDirectory() as parent, busy_processes(busy):
        folder, said = Path(parent) / "run", Path(parent) / "stderr"
        started_s = time.time()  # as TensorBoard's events have it
        with said.open("wb") as stderr, started(name, overrides, folder, stderr) as process:
            while (code := exit_code(process, POLL_S if until else LIMIT_S)) is None:
                if until and until(read_iterations(folder, started_s)):
                    break
                if time.time() > started_s + LIMIT_S:
                    raise RuntimeError(f"{name}: not done after {LIMIT_S:.0f} s")
        if code:
            raise RuntimeError(f"{name} ended with {code}: {said.read_text().strip()[-1000:]}")
        settings = flat(dict(record.read(folder, only_tail=True).config))
        return read_iterations(folder, started_s), {key: settings[key] for key in SETTINGS if key in settings}


@contextmanager
def started(name: str, overrides: Sequence[str], folder: Path, stderr: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The process that trains, without settings for threads of whoever measures. It ends with all that it started."""
    quiet = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "MKL_"))}
    environment = quiet | {"GIT_PYTHON_REFRESH": "quiet"}  # rsl_rl's logger asks for git
    if name == STOCK:
        command = [sys.executable, "benchmarks/stock.py", str(folder)]
        given = to_json(to_experiment(compose(list(overrides)))).encode()
    else:
        command, given = [sys.executable, "train.py", *overrides, f"hydra.run.dir={folder}"], b""
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr
    )
    assert process.stdin
    process.stdin.write(given)
    process.stdin.close()
    try:
        yield process
    finally:
        if process.poll() is None:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for member in family:
                member.kill()
            process.wait()


def exit_code(process: subprocess.Popen[bytes], within_s: float) -> int | None:
    """None where it still runs."""
    try:
        return process.wait(within_s)
    except subprocess.TimeoutExpired:
        return None


def read_iterations(folder: Path, started_s: float) -> list[Iteration]:
    """What TensorBoard's event file holds so far. rsl_rl's tags and ours are the same."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not RunFolder(folder).event_files():
        return []
    board = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = ("Perf/collection_time", "Perf/learning_time", "Train/mean_reward", "Train/mean_episode_length")
    there = set(board.Tags()["scalars"])
    of = {tag: {event.step: event for event in board.Scalars(tag)} if tag in there else {} for tag in tags}
    collect, update, rewards, lengths = of.values()
    return [
        Iteration(
            update[step].wall_time - started_s,
            collect[step].value,
            update[step].value,
            rewards[step].value if step in rewards else None,
            lengths[step].value if step in lengths else None,
        )
        for step in sorted(update)
    ]


def medians(iterations: Sequence[Iteration], warm_up: int = WARM_UP) -> dict[str, float]:
    """Seconds of start-up, and of collection, update and whole iteration after the first `warm_up`.

    A whole iteration lasts from the end of one to the end of the next, with all that is logged and saved.
    """
    counted = iterations[warm_up:]
    figures = {
        "startup_s": iterations[0].ended_s,
        "collect_s": median(iteration.collect_s for iteration in counted),
        "update_s": median(iteration.update_s for iteration in counted),
        "iteration_s": median(whole_s(iterations)[warm_up - 1 :]),
    }
    return {key: round(value, 4) for key, value in figures.items()}


def whole_s(iterations: Sequence[Iteration]) -> list[float]:
    """Seconds from the end of each iteration to the end of the next."""
    return [after.ended_s - before.ended_s for before, after in itertools.pairwise(iterations)]


def overrides_of(name: str, num_envs: int, iterations: int) -> list[str]:
    """A row's overrides."""
    return [*WORKLOAD, f"num_envs={num_envs}", f"max_iterations={iterations}", *ROWS[name]]


def measure(name: str, num_envs: int, iterations: int, busy: int = 0) -> dict[str, Any]:
    """One measurement of a row."""
    before_s, others_before_s = time.monotonic(), others_s()
    rows, settings = run(name, overrides_of(name, num_envs, iterations), busy)
    others = (others_s() - others_before_s) / (time.monotonic() - before_s)
    found: dict[str, Any] = {"row": name, "num_envs": num_envs, "iterations": iterations, "busy_processes": busy}
    found |= medians(rows) | {"others_cores": round(others, 2)}
    print(found, file=sys.stderr)
    return found | settings


def others_s() -> float:
    """Seconds of cores that processes have used which this one has not started, since it was started."""
    machine, own = (
        psutil.cpu_times(),
        [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)],
    )
    return machine.user + machine.nice + machine.system - sum(used.ru_utime + used.ru_stime for used in own)


# The parts


def iteration(quick: bool) -> dict[str, Any]:
    names = list(dict.fromkeys([STOCK, list(ROWS)[-1]])) if quick else list(ROWS)
    for name in names:
        if name != STOCK and not quick:
            run(name, overrides_of(name, NUM_ENVS, 1))  # compiles kernels and traces, once for all
    runs = [
        measure(name, NUM_ENVS, ITERATIONS[busy] - 2 * quick, busy)
        for busy in CONDITIONS
        for _ in range(1 if quick else REPEATS[busy])
        for name in names
    ]
    return {"runs": runs}


def sizes(_quick: bool) -> dict[str, Any]:
    runs = [
        measure(name, num_envs, iterations)
        for num_envs, iterations in SIZES.items()
        for name in dict.fromkeys([STOCK, list(ROWS)[-1]])
        if name != STOCK or num_envs in STOCK_SIZES
    ]
    return {"runs": runs}


def growth(_quick: bool) -> dict[str, Any]:
    name = list(ROWS)[-1]
    iterations, _ = run(name, overrides_of(name, GROWTH_ENVS, LATE.stop))
    took_s = [math.nan, *whole_s(iterations)]  # what the first took is in the start-up
    early_s, late_s = median(took_s[EARLY]), median(took_s[LATE])
    return {"row": name, "num_envs": GROWTH_ENVS, "early_s": round(early_s, 4), "late_s": round(late_s, 4)}


def walk(seeds: int) -> dict[str, Any]:
    """Seconds from the command until Go2 walks; None where it did not within the iterations of its row."""
    runs = []
    for seed, name in itertools.product(range(1, seeds + 1), WALKING):
        iterations, _ = run(name, [*WALKING[name], f"seed={seed}"], until=lambda found: walked(found) is not None)
        there = walked(iterations)
        found = {"row": name, "seed": seed, "iteration": there, "walks_s": None}
        if there is not None:
            found["walks_s"] = round(iterations[there].ended_s, 1)
        print(found, file=sys.stderr)
        runs.append(found)
    return {"runs": runs}


def walked(iterations: Sequence[Iteration]) -> int | None:
    """The first iteration, counted from 0, after which the policy walks."""
    for number, found in enumerate(iterations):
        if (found.length or 0) >= WALKS_LENGTH and (found.reward or 0) >= WALKS_REWARD:
            return number
    return None


def main(arguments: Sequence[str]) -> None:
    parts: dict[str, Callable[[bool], dict[str, Any]]] = {"iteration": iteration, "sizes": sizes, "growth": growth}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *parts], metavar="PART")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--walk", type=int, default=0, metavar="SEEDS")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "outputs/speed", metavar="FOLDER")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "speed.json"
    result = read_json(file)
    asked = given.parts or ([] if given.walk and not given.quick else ["iteration"] if given.quick else list(parts))
    for name in [*asked, *(["walk"] if given.walk else [])]:
        about = describe()
        found = walk(given.walk) if name == "walk" else parts[name](given.quick)
        result[name] = found | about
        write_json(file, result)
        draw(result, given.out / "speed.png")
    Console(width=80).print(report(result))
    print(f"wrote {file} and speed.png")


def describe() -> dict[str, Any]:
    """Machine, its load before the measurement, versions, commit, date, and what is compared."""
    about = circumstances()
    if about["machine"]["load_average"] > 0.5:
        print(f"this machine is busy: its load is {about['machine']['load_average']:.1f}", file=sys.stderr)
    versions = {name: metadata.version(name) for name in PACKAGES if name != "ppo-lab"}
    dirty = {"dirty": read_checkout().is_dirty}
    return about | dirty | {"versions": versions, "num_steps_per_env": STEPS, "rows": ROWS}


# What is shown


def middle(runs: Sequence[dict[str, Any]], key: str, **of: Any) -> float:
    """The median of a figure over the runs that have all of `of`; nan where there is none."""
    return median([run[key] for run in runs if of.items() <= run.items()] or [math.nan])


def times_as_fast(runs: Sequence[dict[str, Any]], name: str, **of: Any) -> float:
    """How many times as fast as rsl_rl's runner an iteration is."""
    return middle(runs, "iteration_s", row=STOCK, **of) / middle(runs, "iteration_s", row=name, **of)


def exponent(seconds_of: dict[int, float]) -> float:
    """p of the power law seconds = c num_envs^p that fits best in logarithms: 1 where time grows as num_envs does."""
    x, y = ([math.log(value) for value in values] for values in (seconds_of.keys(), seconds_of.values()))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slopes = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return slopes / sum((a - mean_x) ** 2 for a in x)


def by_size(runs: Sequence[dict[str, Any]], name: str) -> dict[int, float]:
    """num_envs -> seconds of an iteration."""
    found = sorted({run["num_envs"] for run in runs if run["row"] == name})
    return {num_envs: middle(runs, "iteration_s", row=name, num_envs=num_envs) for num_envs in found}


def report(result: dict[str, Any]) -> Group:
    """Tables and verdicts, 80 columns wide, of the parts that there are."""
    show = {"iteration": show_iteration, "sizes": show_sizes, "growth": show_growth, "walk": show_walk}
    return Group(*itertools.chain.from_iterable(show[name](result[name]) for name in show if name in result))


def show_iteration(part: dict[str, Any]) -> Iterator[Table | str]:
    runs = part["runs"]
    shown = new_table("seconds, medians", "collect", "update", "iteration", "start-up", "as fast")
    for busy, condition in CONDITIONS.items():
        shown.add_row(f"[bold]{condition}[/]")
        for name in dict.fromkeys(run["row"] for run in runs):
            of = {"row": name, "busy_processes": busy}
            seconds = [f"{middle(runs, f'{key}_s', **of):.2f}" for key in ("collect", "update", "iteration")]
            fast = times_as_fast(runs, name, busy_processes=busy)
            shown.add_row(f"  {name}", *seconds, f"{middle(runs, 'startup_s', **of):.1f}", f"{fast:.2f} x")
    yield shown
    others = max(run["others_cores"] for run in runs)
    if others > 0.2:
        yield f"disturbed: processes of others used up to {others:.1f} cores meanwhile"
    fastest = runs[-1]["row"]
    for busy, condition in CONDITIONS.items():
        fast = times_as_fast(runs, fastest, busy_processes=busy)
        verdict = "reached" if fast >= GOALS[busy] else "missed"
        yield f"{fastest}, {condition}: {fast:.2f} times as fast; the goal of {GOALS[busy]} is {verdict}"


def show_sizes(part: dict[str, Any]) -> Iterator[Table | str]:
    runs, steps = part["runs"], part["num_steps_per_env"]
    stock, ours = by_size(runs, STOCK), by_size(runs, runs[-1]["row"])
    shown = new_table("num_envs", STOCK, runs[-1]["row"], "us a step", "as fast")
    for num_envs, seconds in ours.items():
        there = num_envs in stock
        before, fast = (f"{stock[num_envs]:.2f} s", f"{stock[num_envs] / seconds:.2f} x") if there else ("", "")
        shown.add_row(f"{num_envs:,}", before, f"{seconds:.2f} s", f"{1e6 * seconds / num_envs / steps:.1f}", fast)
    yield shown
    power = exponent(ours)
    verdict = "no faster than num_envs" if power <= 1.05 else "faster than num_envs"
    yield f"an iteration's time grows as num_envs^{power:.2f}: {verdict}"


def show_growth(part: dict[str, Any]) -> Iterator[str]:
    ratio = part["late_s"] / part["early_s"]
    yield (
        f"iterations {LATE.start} to {LATE.stop} of {part['num_envs']} envs take {ratio:.2f} times as long as "
        f"{EARLY.start} to {EARLY.stop}"
    )


def show_walk(part: dict[str, Any]) -> Iterator[Table]:
    runs = part["runs"]
    shown = new_table("until Go2 walks", "median (s)", "range (s)", "walks", "seeds")
    for name in dict.fromkeys(run["row"] for run in runs):
        of_row = [run["walks_s"] for run in runs if run["row"] == name]
        took_s = sorted(seconds for seconds in of_row if seconds is not None)
        figures = (f"{median(took_s):.0f}", f"{took_s[0]:.0f} .. {took_s[-1]:.0f}") if took_s else ("", "")
        shown.add_row(name, *figures, str(len(took_s)), str(len(of_row)))
    yield shown


def new_table(first: str, *others: str) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column(first, no_wrap=True)
    for name in others:
        shown.add_column(name, justify="right")
    return shown


def draw(result: dict[str, Any], path: Path) -> None:
    """Collection and update of each row as stacked bars; steps per second over num_envs."""
    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    bars, line = figure.subplots(1, 2)
    if "iteration" in result:
        draw_bars(bars, result["iteration"])
    if "sizes" in result:
        draw_sizes(line, result["sizes"])
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def draw_bars(axes: Any, part: dict[str, Any]) -> None:
    runs = part["runs"]
    names = list(dict.fromkeys(run["row"] for run in runs))
    rows = [(name, busy) for busy in CONDITIONS for name in names]
    places = [number + 0.5 * busy for number, (_, busy) in enumerate(rows)]
    ends = [0.0] * len(rows)
    for key, color in COLORS.items():
        seconds = [middle(runs, f"{key}_s", row=name, busy_processes=busy) for name, busy in rows]
        axes.barh(places, seconds, left=ends, color=color, label=key)
        ends = [end + more for end, more in zip(ends, seconds, strict=True)]
    for place, end in zip(places, ends, strict=True):
        axes.annotate(f" {end:.2f}", (end, place), va="center", fontsize="small")
    axes.set_yticks(places, [f"{name}\n{CONDITIONS[busy]}" for name, busy in rows], fontsize="small")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(ends))
    axes.set_xlabel(f"seconds an iteration, {runs[0]['num_envs']} envs x {part['num_steps_per_env']} steps")
    axes.legend(frameon=False, loc="lower right")


def draw_sizes(axes: Any, part: dict[str, Any]) -> None:
    runs, steps = part["runs"], part["num_steps_per_env"]
    for name in dict.fromkeys(run["row"] for run in runs):
        seconds = by_size(runs, name)
        axes.plot(list(seconds), [steps * n / s for n, s in seconds.items()], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(SIZES), [str(num_envs) for num_envs in SIZES])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("num_envs")
    axes.set_ylabel("env steps per second, nothing else running")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


if __name__ == "__main__":
    main(sys.argv[1:])
