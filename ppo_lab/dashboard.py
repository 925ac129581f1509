"""TensorBoard on a run, a sweep, or a folder of them, for this machine alone."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import tensorboard_data_server
from tensorboard.program import TensorBoard, TensorBoardServerException

from ppo_lab.command_line import Parser, exit_codes
from ppo_lab.config import ConfigError

VIEWS = {
    "timeseries": "every curve, runs side by side",
    "custom_scalars": "reward, losses, memory and speed, grouped",
    "hparams": "a sweep's table and parallel coordinates",
    "text": "configuration and environment",
}


def main() -> None:
    parser = Parser(prog="python -m ppo_lab.dashboard", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("outputs"), help="default: outputs")
    parser.add_argument("--port", type=int, help="default: 6006, or the next that is free")
    with exit_codes():
        words = parser.parse_args()
        url = serve(words.folder, words.port)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            print(f"TensorBoard on {words.folder}:")
            for view, what in VIEWS.items():
                print(f"  {url}#{view:<14}  {what}")
            print("Ctrl-C ends it.", flush=True)
            signal.pause()


def serve(folder: Path, port: int | None) -> str:
    """Starts TensorBoard beside this thread, until the process ends, and returns its address.

    Raises a ConfigError where there is nothing to show, or where `port` cannot be had; None takes 6006 or the next.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder. Name a run, a sweep, or a folder of them.")
    if not any(folder.rglob("events.out.tfevents.*")):
        raise ConfigError(f"{folder}: there is no run in it. Train one, or name a run, a sweep, or a folder of them.")
    board = TensorBoard()
    fast = "true" if tensorboard_data_server.server_binary() else "false"  # what "auto" does, less its advertisement
    board.configure(logdir=str(folder), host="localhost", port=port, load_fast=fast)
    try:
        return board.launch()
    except (TensorBoardServerException, OverflowError) as error:
        raise ConfigError(
            f"--port {port}: {str(error).rstrip('.')}. Leave --port out for the first that is free."
        ) from None


if __name__ == "__main__":
    main()
