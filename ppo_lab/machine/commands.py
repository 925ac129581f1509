"""Commands that the program prints or starts: they work in a checkout and where the package is installed."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def _checkout() -> Path | None:
    folder = PACKAGE.parent
    has_both = (folder / "train.py").is_file() and (folder / "conf").is_dir()
    return folder if has_both else None


CHECKOUT = _checkout()
"""The folder with train.py and conf/ that this package lies in; None where it was installed from a wheel."""


def train(*overrides: str) -> str:
    """The command that trains with these overrides."""
    return shlex.join([*_program("train"), *overrides])


def calibrate() -> str:
    """The command that measures this machine."""
    return shlex.join([*_program("estimate"), "calibrate=true"])


def module(name: str, *arguments: str) -> str:
    """Another of the package's commands, with its arguments."""
    return shlex.join([*_program(name), *arguments])


def portable(name: str, *arguments: str) -> str:
    """The same command as it is typed on another machine or in another environment, for what is kept."""
    program = ["ppo-lab", name] if CHECKOUT is None else _in_checkout("python", name, Path())
    return shlex.join([*program, *arguments])


def train_program() -> tuple[str, ...]:
    """What starts train.py with this interpreter, in whatever folder; overrides follow."""
    if CHECKOUT is None:
        return sys.executable, "-m", "ppo_lab", "train"
    return sys.executable, str(CHECKOUT / "train.py")


def _program(name: str) -> list[str]:
    if CHECKOUT is not None:
        return _in_checkout(_python(), name, CHECKOUT)
    return ["ppo-lab", name] if _is_found("ppo-lab") else [_python(), "-m", "ppo_lab", name]


def _in_checkout(python: str, name: str, folder: Path) -> list[str]:
    script = folder / f"{name}.py"
    return [python, str(relative_to_cwd(script))] if name in ("train", "estimate") else [python, "-m", "ppo_lab", name]


def _python() -> str:
    """The interpreter that runs this: "python" where the shell finds that one."""
    return "python" if _is_found("python") else str(relative_to_cwd(Path(sys.executable)))


def _is_found(program: str) -> bool:
    """Whether the shell finds `program` beside the interpreter that runs this."""
    found = shutil.which(program)
    return found is not None and Path(found).parent.samefile(Path(sys.executable).parent)


def relative_to_cwd(path: Path) -> Path:
    """`path` relative to the current folder where it lies within."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
