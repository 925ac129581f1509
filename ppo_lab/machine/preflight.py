"""What must be true of this machine before a run starts. Standard library, and `packaging` where it is there.

`python -m ppo_lab.machine.preflight` checks it all and says in one line what is missing.
`... preflight libraries` checks the system's libraries alone, and a driver, which only films need; `... preflight
packages` names what brings them.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from ppo_lab.errors import MachineError
from ppo_lab.machine import commands

NAME = "ppo-lab"
"""What this package is called where it is installed."""
ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv"
"""What `make setup` makes."""
SYSTEM_LIBRARIES = ("libGL.so.1", "libEGL.so.1")
SPINS = "10000"
"""How often a waiting thread of OpenMP looks before it sleeps: as fast as ever on an idle machine."""
SYSTEM_PACKAGES = "libgl1 libegl1 libgl1-mesa-dri libglu1-mesa"


def check_installed() -> None:
    """Raises a MachineError when a package is missing or of a version that this project does not run on.

    The versions are those that pyproject.toml names.
    """
    try:
        from packaging.requirements import Requirement
    except ImportError:
        raise MachineError(f"{sys.executable} lacks packaging; {_how_to_install()}") from None
    needed = [Requirement(text) for text in requirements()]
    needed = [requirement for requirement in needed if requirement.marker is None or requirement.marker.evaluate()]
    wrong = [
        requirement
        for requirement in needed
        if (version := version_of(requirement.name)) is None
        or not requirement.specifier.contains(version, prereleases=True)
    ]
    if wrong:
        if _is_system_python():
            lacks = ", ".join(requirement.name for requirement in wrong)
            raise MachineError(f"{sys.executable} lacks {lacks}; {_how_to_install()}")
        found = ", ".join(f"{requirement.name} {version_of(requirement.name) or 'missing'}" for requirement in wrong)
        wanted = [f"{requirement.name}{requirement.specifier}" for requirement in wrong]
        raise MachineError(f"installed: {found}; needed: {', '.join(wanted)}; run: {_pip_install(wanted)}")
    if version_of("rsl-rl") is not None:
        ours = next(f"{requirement.name}{requirement.specifier}" for requirement in needed if "rsl" in requirement.name)
        again = _pip_install(["--force-reinstall", "--no-deps", ours])
        raise MachineError(
            f"installed: rsl-rl {version_of('rsl-rl')}, which shadows rsl-rl-lib; needed: rsl-rl-lib alone; "
            f"run: {sys.executable} -m pip uninstall -y rsl-rl && {again}"
        )


def requirements() -> list[str]:
    """The packages that this one needs: by pyproject.toml in a checkout, or else by what pip noted down.

    Raises a MachineError where neither is there.
    """
    if commands.CHECKOUT and (project := commands.CHECKOUT / "pyproject.toml").is_file():
        return list(tomllib.loads(project.read_text())["project"]["dependencies"])
    try:
        noted = metadata.requires(NAME)
    except metadata.PackageNotFoundError:
        raise MachineError(f"{NAME} was copied, not installed; {_how_to_install()}") from None
    return [text for text in noted or () if "extra ==" not in text]


def version_of(package: str) -> str | None:
    """Of an installed package, such as "2.11.0+cpu"; None where it is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_system_libraries() -> None:
    """Raises a MachineError where OpenGL is missing, which the simulator loads even without a screen."""
    if not sys.platform.startswith("linux"):
        return
    missing = [name for name in SYSTEM_LIBRARIES if not _loads(name)]
    if missing:
        raise MachineError(
            f"{' and '.join(missing)} not found, which the simulator needs even without a screen; "
            f"run: apt-get install {SYSTEM_PACKAGES} (Debian, Ubuntu; as root)"
        )


def yield_busy_cores() -> None:
    """Lets torch's threads sleep soon where one waits for another. To be called before torch is loaded.

    By default they spin for milliseconds: beside another busy process an iteration then takes many times as long
    (docs/results/README.md). What the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def cpu_name() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "CPU"
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "CPU")


def exit_on_wrong_packages() -> None:
    """Ends the process with one line and exit code 2 where `check_installed` raises."""
    try:
        check_installed()
    except MachineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _how_to_install() -> str:
    """How to come by the project's own environment: nobody should install torch into the system."""
    if not _is_system_python():
        source = "." if commands.CHECKOUT is None else shlex.quote(str(commands.CHECKOUT))
        return f"run: {sys.executable} -m pip install -e {source}"
    if not (ENVIRONMENT / "bin" / "python").exists():
        return f"the project's environment is not set up; run: make -C {shlex.quote(str(ENVIRONMENT.parent))} setup"
    activate = shlex.join([".", str(ENVIRONMENT / "bin" / "activate")])
    return f"the project's environment is not activated; run: {activate}"


def _is_system_python() -> bool:
    return sys.prefix == sys.base_prefix and "CONDA_PREFIX" not in os.environ


def _pip_install(requirements: list[str]) -> str:
    return f"{sys.executable} -m pip install {shlex.join(requirements)}"


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    if sys.argv[1:] == ["packages"]:
        sys.exit(print(SYSTEM_PACKAGES))
    try:
        if sys.argv[1:] == ["libraries"]:
            from ppo_lab.machine import opengl

            opengl.check()
        else:
            check_system_libraries()
            check_installed()
    except MachineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
