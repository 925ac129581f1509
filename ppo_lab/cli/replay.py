"""`python -m ppo_lab replay <run folder>/nan_<iteration>.pt`: shows what a run stopped for, and makes it happen again.

The run goes on in memory from its last good checkpoint up to the iteration that failed; nothing is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich
from rich import box
from rich.table import Table
from torch import Tensor

from ppo_lab.cli.exits import Parser
from ppo_lab.config import ExperimentConfig
from ppo_lab.contracts import State
from ppo_lab.errors import (
    CheckpointError,
    ConfigError,
    NotReproducedError,
    RunFailedError,
)
from ppo_lab.learning.checkpoint import NoCheckpoints, load, load_both
from ppo_lab.learning.guard import Fault, NonFiniteError
from ppo_lab.machine import commands, devices, preflight
from ppo_lab.runs import ancestry
from ppo_lab.runs.config import read_experiment
from ppo_lab.runs.folder import RunFolder

STEPS, ENVS = 8, 4
"""At most so many steps of so many envs are shown."""


def main(argv: list[str]) -> None:
    """Raises a ConfigError, or a NotReproducedError where it did not happen again."""
    parser = Parser(prog=commands.portable("replay"), description="Shows what a run stopped for, and repeats it.")
    parser.add_argument("dump", type=Path, help="nan_<iteration>.pt in the folder of a run that stopped for it")
    path: Path = parser.parse_args(argv).dump
    fault, dump = read(path)
    show(fault, dump)
    folder, good = path.resolve().parent, dump["last_good"]
    try:
        model, state = (None, None) if good is None else load_both(RunFolder(folder).checkpoints, good)
    except CheckpointError as error:
        print(f"not repeated, as there is no full state to go on from: {error}")
        return
    if not RunFolder(folder).config.is_file():
        print(f"not repeated: {folder} is not a run folder, it has no config.yaml")
        return
    cfg = read_experiment(RunFolder(folder).config)
    if cfg.processes > 1:
        print(f"not repeated: the run has {cfg.processes} ranks, and this is one process")
        return
    if good is None:
        try:
            ancestor = ancestry.find_again(f"replay of {folder}", folder, cfg)
            model = load(ancestor.checkpoint, ancestor.sha256) if ancestor else None
        except (CheckpointError, ConfigError) as error:
            print(f"not repeated: {error}")
            return
    again = repeat(cfg, fault.iteration, model, state)
    start = "the start" if good is None else f"the checkpoint of iteration {good}"
    if again is None:
        raise NotReproducedError(f"from {start} on, all was finite up to iteration {fault.iteration}")
    found = differences(dump, again.evidence)
    if found:
        raise NotReproducedError(f"from {start} on, {again}; not identical: {', '.join(found)}")
    print(f"repeated from {start}, identically: {again}")


def read(path: Path) -> tuple[Fault, State]:
    """The dump at `path`. Raises a ConfigError where it is none."""
    try:
        dump = load(path)
        if not isinstance(dump["last_good"], int | None):
            raise TypeError("last_good is an iteration")
        return Fault(**dump["fault"]), dump
    except CheckpointError as error:
        raise ConfigError(str(error)) from None
    except (KeyError, TypeError):
        raise ConfigError(f"{path} is no dump. Allowed: nan_<iteration>.pt of a run that stopped for it.") from None


def show(fault: Fault, dump: State) -> None:
    """Prints the fault, and the steps that led to it in the envs where it came up."""
    print(fault)
    for name, value in dump["losses"].items():
        print(f"  {name}: {value:.6g}")
    if fault.step is None:
        return
    for row, env in enumerate(dump["envs"].tolist()):
        if env in fault.env_ids and row < ENVS:
            rich.print(_steps_of(dump, row, f"env {env}", fault.step))


def repeat(cfg: ExperimentConfig, iteration: int, model: State | None, state: State | None) -> NonFiniteError | None:
    """Trains in memory as the run of `cfg` did, on from `model` and `state`, or from the start, which `model` is of.

    Returns what stopped it; None where nothing did. Raises a RunFailedError where something else broke.
    """
    from ppo_lab.memory.measure.monitor import MemoryMonitor
    from ppo_lab.training.build import build_loop, obey

    preflight.check_system_libraries()
    device = devices.resolve_device(cfg.device)
    with MemoryMonitor(device) as monitor:
        loop = build_loop(cfg, device, monitor, NoCheckpoints(), lambda *_: None)
        try:
            obey(loop, cfg, {"model": model, "state": state})
            loop.learn(iteration + 1 - loop.next_iteration, init_at_random_ep_len=state is None)
        except NonFiniteError as found:
            return found
        except Exception as error:
            raise RunFailedError(f"not repeated: {error}") from error
    return None


def differences(dump: State, again: State) -> list[str]:
    """What of the evidence is not identical; tensors with NaN in them are equal where their bits are."""
    return [name for name, value in again.items() if _bits(value) != _bits(dump.get(name))]


def _bits(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.dtype, value.shape, value.cpu().numpy().tobytes()
    if isinstance(value, dict):
        return {name: _bits(part) for name, part in value.items()}
    return repr(value)


def _steps_of(dump: State, row: int, title: str, fault_step: int) -> Table:
    """The last steps up to the fault, one row each: the range of what is finite, and where the rest is."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    columns = ("observations", "actions", "values", "rewards", "dones")
    for name in ("step", *columns):
        table.add_column(name, justify="right")
    for step in range(max(0, fault_step - STEPS + 1), fault_step + 1):
        values = [dump[name][step, row] for name in columns if step < len(dump[name])]
        is_fine = all(value.isfinite().all() for value in values)
        table.add_row(str(step), *map(_cell, values), style=None if is_fine else "bold red")
    return table


def _cell(values: Tensor) -> str:
    finite = values[values.isfinite()]
    if not values.is_floating_point() or values.numel() == 1:
        return f"{values.item():.4g}"
    parts = [f"{finite.min():.3g} .. {finite.max():.3g}"] if len(finite) else []
    for value in ("nan", "inf", "-inf"):
        where = [str(index) for index, number in enumerate(values.tolist()) if str(number) == value]
        if where:
            parts.append(f"{value} at {', '.join(where)}")
    return "; ".join(parts)
