"""TensorBoard on a run, a sweep, or a folder of them, for this machine alone."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import Any

import tensorboard_data_server
from tensorboard.data.provider import Run, RunTagFilter
from tensorboard.program import TensorBoard, TensorBoardServerException

from ppo_lab.cli.exits import Parser
from ppo_lab.errors import ConfigError
from ppo_lab.machine import commands
from ppo_lab.runs.hparams import EVENT_FILES

VIEWS = {
    "timeseries": "every curve, runs side by side",
    "custom_scalars": "reward, losses, memory and speed, grouped",
    "hparams": "settings and results of each run: table and parallel coordinates",
    "text": "configuration and environment",
}


def main(argv: list[str]) -> None:
    parser = Parser(prog=commands.portable("dashboard"), description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("outputs"), help="default: outputs")
    parser.add_argument("--port", type=int, help="default: 6006, or the next that is free")
    asked = parser.parse_args(argv)
    url = serve(asked.folder, asked.port)
    with contextlib.suppress(KeyboardInterrupt):
        print(f"TensorBoard on {asked.folder}:")
        for view, what in views(asked.folder).items():
            print(f"  {url}#{view:<14}  {what}")
        print("Ctrl-C ends it.", flush=True)
        signal.pause()


def views(folder: Path) -> dict[str, str]:
    """TensorBoard's pages that have something to show -> what. HParams has, once a run in `folder` has ended."""
    has_rows = any(folder.rglob(EVENT_FILES))
    return {view: what for view, what in VIEWS.items() if view != "hparams" or has_rows}


class _TensorBoard(TensorBoard):
    """Calls a run that lies in the log directory itself by its folder's name, where TensorBoard calls it "."."""

    def _make_data_provider(self) -> tuple[Any, Any]:
        provider, multiplexer = super()._make_data_provider()
        return _NamedRun(provider, Path(self.flags.logdir).resolve().name), multiplexer


class _NamedRun:
    """A `tensorboard.data.provider.DataProvider` in which the run "." has another name."""

    def __init__(self, provider: Any, name: str) -> None:
        self._provider = provider
        self._names = {".": name}

    def __getattr__(self, method: str) -> Any:
        def call(*args: Any, run_tag_filter: RunTagFilter | None = None, **options: Any) -> Any:
            if run_tag_filter is not None:
                options["run_tag_filter"] = self._asked(run_tag_filter)
            answer = getattr(self._provider, method)(*args, **options)
            if method == "list_runs":
                names = [self._names.get(run.run_name, run.run_name) for run in answer]
                return [Run(name, name, run.start_time) for name, run in zip(names, answer, strict=True)]
            if method.startswith(("list_", "read_")) and isinstance(answer, dict):
                return {self._names.get(run, run): tags for run, tags in answer.items()}
            return answer

        return call

    def _asked(self, wanted: RunTagFilter) -> RunTagFilter:
        if wanted.runs is None:
            return wanted
        original = {name: run for run, name in self._names.items()}
        return RunTagFilter(runs=[original.get(run, run) for run in wanted.runs], tags=wanted.tags)


def serve(folder: Path, port: int | None) -> str:
    """Starts TensorBoard beside this thread, until the process ends, and returns its address.

    Raises a ConfigError where there is nothing to show, or where `port` cannot be had; None takes 6006 or the next.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder. Name a run, a sweep, or a folder of them.")
    if not any(folder.rglob("events.out.tfevents.*")):
        raise ConfigError(f"{folder}: there is no run in it. Train one, or name a run, a sweep, or a folder of them.")
    board = _TensorBoard()
    fast = "true" if tensorboard_data_server.server_binary() else "false"  # what "auto" does, less its advertisement
    board.configure(logdir=str(folder), host="localhost", port=port, load_fast=fast)
    try:
        return board.launch()
    except (TensorBoardServerException, OverflowError) as error:
        raise ConfigError(
            f"--port {port}: {str(error).rstrip('.')}. Leave --port out for the first that is free."
        ) from None
