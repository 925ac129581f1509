"""`estimate.py`: one question about memory, from the command line to a table, JSON or pictures."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich
import yaml
from omegaconf import DictConfig, OmegaConf

from ppo_lab.cli import argv as command_line
from ppo_lab.cli import calibrate, waiting
from ppo_lab.cli.compose import CONF, ESTIMATE, ask_hydra, compose, is_question
from ppo_lab.config import ExperimentConfig, as_text, setting
from ppo_lab.errors import ConfigError, ExitCode, MeasurementError
from ppo_lab.memory.measure import measured
from ppo_lab.memory.predict import calibration, hardware, largest
from ppo_lab.memory.predict.allocator import settings_of_this_process
from ppo_lab.memory.predict.estimate import Estimate, estimate
from ppo_lab.memory.predict.hardware import Hardware
from ppo_lab.memory.predict.simulator import measure, simulator_memory
from ppo_lab.memory.show import table
from ppo_lab.runs.config import to_experiment, to_settings
from ppo_lab.runs.files import to_json


@dataclass
class Question:
    """What is asked of an experiment; its keys stand beside the experiment's on the command line."""

    hardware: Hardware = setting()
    trace: bool = setting()
    explain: bool = setting()
    format: str = setting(choices=("table", "json", "png"))
    plot: str | None = setting(pattern=r".+\.png")
    fit: str | None = setting(choices=("num_envs", "num_mini_batches", "frontier"))
    run: str | None = setting()
    calibrate: bool = setting()


def main(argv: list[str]) -> ExitCode:
    """Answers on stdout. Raises a ConfigError."""
    if is_question(argv):
        ask_hydra(argv, ESTIMATE.name)
        return ExitCode.DONE
    cfg, question = ask(argv)
    try:
        return _answer(cfg, question, argv)
    except MeasurementError as error:
        raise ConfigError(str(error)) from None


def _answer(cfg: ExperimentConfig, question: Question, argv: list[str]) -> ExitCode:
    if question.calibrate:
        return calibrate.calibrate(_overrides_to_calibrate(argv), question.format)
    plot = question.plot or ("memory.png" if question.format == "png" else None)
    if plot and not question.trace:
        raise ConfigError("trace=false leaves nothing to draw. Allowed with plot: trace=true.")
    if plot and not Path(plot).parent.is_dir():
        raise ConfigError(f"plot={as_text(plot)}: there is no folder {as_text(Path(plot).parent)}.")
    if plot and Path(plot).is_dir():
        raise ConfigError(f"plot={as_text(plot)} is a folder. Allowed: the name of a new file.")
    if question.run is not None:
        return _compare(Path(question.run), question.format)
    with waiting.shown() as show:
        if (question.trace or question.fit) and simulator_memory(cfg) is None:
            show("counting what the simulator holds for this env: once, a minute or more")
            measure(cfg)
    if question.fit is not None:
        return _fit(cfg, question)
    with waiting.shown() as show:
        if question.trace:
            show("tracing the learner")
        found = estimate(cfg, question.hardware, question.trace)
    if question.format == "json":
        print(to_json(table.as_json(found), indent=2))
    elif question.format == "table":
        if question.explain:
            rich.print(table.explanation(cfg))
        rich.print(table.table(found))
    if plot:
        try:
            _draw(cfg, found, Path(plot))
        except OSError as error:
            raise ConfigError(f"plot={as_text(plot)} cannot be written: {error.strerror}.") from None
    return ExitCode.OVER_BUDGET if found.fits is False else ExitCode.DONE


def ask(argv: list[str]) -> tuple[ExperimentConfig, Question]:
    """The experiment and the question in `argv`. Raises a ConfigError."""
    overrides, source = command_line.read(argv, ESTIMATE.name)
    cfg = compose(overrides, source)
    own = {f.name for f in dataclasses.fields(Question)}
    question = to_settings(OmegaConf.masked_copy(cfg, list(own)), OmegaConf.structured(Question))
    rest = [str(key) for key in cfg if key not in own]
    experiment = to_experiment(OmegaConf.masked_copy(cfg, rest))
    _note_what_another_card_has(overrides, cfg)
    return experiment, question


def _note_what_another_card_has(overrides: list[str], cfg: DictConfig) -> None:
    """Says on stderr what a card that is given by its name leaves to the one in conf/hardware."""
    given = {text.lstrip("+~").partition("=")[0] for text in overrides}
    others = [key for key in ("hardware.compute_capability", "hardware.multiprocessors") if key not in given]
    if "hardware.name" not in given or not others:
        return
    left = " and ".join(f"{key}={OmegaConf.select(cfg, key)}" for key in others)
    are, those = ("are those", "those") if len(others) > 1 else ("is that", "that")
    print(
        f"note: {left} {are} of hardware={cfg.hydra.runtime.choices.hardware}. "
        f"Give {those} of {as_text(cfg.hardware.name)}, from its data sheet.",
        file=sys.stderr,
    )


def _overrides_to_calibrate(argv: list[str]) -> list[str]:
    """The experiment's overrides. Raises a ConfigError for one that asks something else at the same time."""
    keys = {text: text.lstrip("+~").partition("=")[0].partition(".")[0] for text in argv}
    if other := next((text for text, key in keys.items() if key in ("hardware", "fit", "plot", "run")), None):
        raise ConfigError(f"{other}: calibrate=true measures the machine that it runs on. Leave it out.")
    if option := next((text for text in argv if text.startswith("-")), None):
        raise ConfigError(f"{option}: calibrate=true takes overrides alone. Leave it out.")
    own = {f.name for f in dataclasses.fields(Question)}
    return [text for text, key in keys.items() if key not in own]


def _this_machine(field: str) -> Any:
    return dataclasses.asdict(hardware.this_machine())[field]


OmegaConf.register_new_resolver("this_machine", _this_machine, replace=True)


def _fit(cfg: ExperimentConfig, question: Question) -> ExitCode:
    card = question.hardware
    calibrated, notes = calibration.find(card.name)
    with waiting.shown() as show:
        if question.fit == "num_envs":
            show("searching the largest num_envs that fits")
            fits = [largest.largest_num_envs(cfg, card, calibrated)]
        elif question.fit == "num_mini_batches":
            show("searching the smallest num_mini_batches that fits")
            fits = [largest.smallest_num_mini_batches(cfg, card, calibrated)]
        else:
            fits = list(largest.frontier(cfg, card, calibrated, show=show))
    if question.format == "json":
        print(to_json({"hardware": card.name, "fits": [dataclasses.asdict(one) for one in fits]}, indent=2))
    else:
        rich.print(table.fits_table(card, fits, calibrated))
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
    return ExitCode.DONE


def _compare(folder: Path, form: str) -> ExitCode:
    with _as_train_writes_it(folder):
        run = measured.read_run(folder)
    prediction = run.estimate or table.as_json(estimate(run.cfg, run.hardware))
    with _as_train_writes_it(folder):
        comparisons = measured.compare(prediction, run.peak_mib)
        overhead_bytes = measured.overhead_bytes(run, prediction)
        learned, remembered_in = measured.measured_run(run, prediction), None
        if learned:
            remembered_in = calibration.remember(
                measured.versions(run), [learned], "finished runs", learned.started[:10]
            )
        rows = [measured.as_json(comparison) for comparison in comparisons]
    if not calibration.is_of_such_runs(run.cfg):
        print(
            "note: a calibration is of one process with one scene; it learns nothing from this run, which has "
            f"{run.cfg.processes} with {len(run.cfg.scene_sizes)} each",
            file=sys.stderr,
        )
    if form == "json":
        print(to_json({"run": str(folder), "memory": rows, "overhead_bytes": overhead_bytes}, indent=2))
    else:
        rich.print(table.comparison_table(comparisons, overhead_bytes, remembered_in))
    return ExitCode.DONE


@contextmanager
def _as_train_writes_it(folder: Path) -> Iterator[None]:
    """A run folder may come from anywhere: whatever is not as expected in its files is a ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        what = as_text(f"{type(error).__name__}: {error}")
        raise ConfigError(f"run={as_text(folder)}: its files are not as train.py writes them ({what}).") from None


def _draw(cfg: ExperimentConfig, found: Estimate, path: Path) -> None:
    from ppo_lab.memory.show import pictures

    map_path = path.with_stem(f"{path.stem}_map")
    title = f"{cfg.env.name}, {cfg.num_steps_per_env} steps, on {found.hardware.name}"
    with waiting.shown() as show:
        show("the iteration")
        pictures.draw_iteration(cfg, found, path, settings_of_this_process())
        needs = largest.need_table(cfg, found.hardware, show=show)
        pictures.draw_map(needs, _cards(found.hardware), title, map_path)
    print(f"drew {path} and {map_path}", file=sys.stderr)


def _cards(asked: Hardware) -> dict[str, int]:
    """The cards in conf/hardware, as one types them with their size, and the one that was asked for -> bytes."""
    mib: dict[str, int] = {}
    for file in sorted((CONF / "hardware").glob("*.yaml")):
        with suppress(OSError, ValueError, yaml.YAMLError):  # a user's own may be none, and is not what was asked for
            content = yaml.safe_load(file.read_text())
            if isinstance(content, dict) and isinstance(content.get("memory_mib"), int):
                mib[file.stem] = content["memory_mib"]
    if asked.memory_mib not in mib.values():
        mib["this card"] = asked.memory_mib  # the title has its name, which may be long
    return {f"{name} ({round(size / 1024)} GB)": size * hardware.MIB for name, size in mib.items()}
