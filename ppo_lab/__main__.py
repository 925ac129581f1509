"""The package's commands: `python -m ppo_lab COMMAND`, or `ppo-lab COMMAND` where the package is installed.

Standard library only until the packages that the command needs are known to be there.
"""

from __future__ import annotations

import difflib
import signal
import sys
from importlib import import_module
from typing import NoReturn

from ppo_lab import __version__
from ppo_lab.machine import commands, loading
from ppo_lab.machine.preflight import exit_on_wrong_packages, version_of, yield_busy_cores

COMMANDS = {
    "train": "train a robot; with -m, many runs at once",
    "estimate": "what a run will hold in memory, before it starts",
    "dashboard": "TensorBoard on a run, a sweep, or all of outputs/",
    "report": "a sweep, or runs side by side, as one page",
    "replay": "what led a run to NaN, and the same again",
    "import": "an old run of rsl-rl-lib 2.2.4 becomes a run folder",
    "evaluate": "how good a trained policy is: statistics over many episodes",
    "film": "a film of what a run trained, or of six of its policies side by side",
    "export": "a policy for a robot: ONNX, TorchScript, manifest, and a program that runs it",
    "view": "a trained policy live in the browser, to be steered and pushed",
    "runs": "the runs there are: env, status, reward, time, folder",
}
"""Command -> what it does. Its module is `ppo_lab.cli.<command>`, whose `main` takes the arguments."""
MODULES = {"import": "import_run"}
"""The modules that cannot have the command's name."""
ON_A_RUN = ("evaluate", "film", "export", "view")
VERSIONS = ("torch", "genesis-world", "rsl-rl-lib")
"""What --version names beside our own."""


def main() -> NoReturn:
    name, *argv = sys.argv[1:] or [""]
    if name in COMMANDS:
        run(name, argv)
    if name == "--version":
        print(versions())
        sys.exit(0)
    if name not in ("", "-h", "--help"):
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        shown = ascii(name[:80]) if not name.isprintable() else name[:80]
        print(f"error: unknown command {shown}.{hint} Allowed: {', '.join(COMMANDS)}.", file=sys.stderr)
        sys.exit(2)
    for command, what in COMMANDS.items():
        print(f"{commands.portable(command):<28}{what}")
    print("\nEach explains itself with --help; --version says which versions are installed.")
    sys.exit(0)


def run(name: str, argv: list[str]) -> NoReturn:
    """Runs a command with its arguments, and ends the process with its exit code."""
    if argv == ["--version"]:
        print(versions())
        sys.exit(0)
    exit_on_wrong_packages()  # before the imports that would fail
    yield_busy_cores()
    if name in ("train", "replay", *ON_A_RUN):  # they load the simulator
        loading.begin()
    if name in ("dashboard", *ON_A_RUN):
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # tidies up, as after Ctrl-C
    from ppo_lab.cli.exits import exit_codes

    with exit_codes(output_may_fail=name == "train"):  # the others' output is their result
        code = import_module(f"ppo_lab.cli.{MODULES.get(name, name)}").main(argv)
    sys.exit(code or 0)


def versions() -> str:
    """Our version, and those of what decides a run's numbers."""
    found = [f"{name} {version_of(name) or 'missing'}" for name in VERSIONS]
    return f"ppo-lab {__version__} ({', '.join(found)})"


if __name__ == "__main__":
    main()
