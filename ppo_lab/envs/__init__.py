"""The envs. Loads neither torch nor the simulator.

The env NAME is a module that defines

    Config                              its settings, a dataclass derived from `ppo_lab.config.EnvConfig`
    make(cfg, num_envs, device, seed)   the env itself, a `ppo_lab.contracts.Env`

and a YAML file, `conf/env/NAME.yaml`. Importing the module must load neither torch nor the simulator.

- In this repository the module is `ppo_lab.envs.tasks.NAME`, and the YAML is in the top-level `conf/`.
- In a package of its own, say `my_lab`, the module is registered as an entry point, and the YAML (and that of any other
  group) is in the package's `conf/`, here `my_lab/conf/env/backflip.yaml`:

      [project.entry-points."ppo_lab.envs"]
      backflip = "my_lab.backflip"

  Only that is ever imported: a run folder of an env that is not registered is refused.

docs/add_an_env.md has worked examples.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, NamedTuple

from ppo_lab.config import EnvConfig
from ppo_lab.envs import tasks
from ppo_lab.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from ppo_lab.contracts import Env, Looks


ENTRY_POINTS = "ppo_lab.envs"
"""The group of entry points: name of the env = its module."""
HOW_TO_ADD = f" Others come with packages that register them as entry points of {ENTRY_POINTS}; install theirs."


class Registered(NamedTuple):
    """An env of an installed package."""

    module: str
    package: str
    """The name of the distribution, as pip knows it."""
    version: str

    @property
    def folder(self) -> Path | None:
        """The folder of the top-level package of `module`, which is not imported; None where it is not there."""
        spec = find_spec(self.module.partition(".")[0])
        folders = spec.submodule_search_locations if spec else None
        return Path(next(iter(folders))) if folders else None


@cache
def registered() -> dict[str, Registered]:
    """The envs that installed packages bring, by name. Raises a ConfigError where a name is taken or is none."""
    found: dict[str, Registered] = {}
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        assert entry.dist is not None
        env = Registered(entry.module, entry.dist.name, entry.dist.version)
        other = "ppo-lab" if entry.name in _own() else found.get(entry.name, env).package
        if other != env.package:
            raise ConfigError(
                f"the env {entry.name} is registered by {env.package} and by {other}. Uninstall one of them."
            )
        if not re.fullmatch(r"[A-Za-z]\w*", entry.name):
            raise ConfigError(f"{env.package} registers the env {entry.name!r}. Allowed: letters, digits, underscores.")
        found[entry.name] = env
    return found


def conf_folders() -> list[Path]:
    """The conf/ folders of the packages that bring envs."""
    folders = {env.folder: None for env in registered().values()}
    return [conf for folder in folders if folder is not None and (conf := folder / "conf").is_dir()]


def sources(name: str) -> list[Path]:
    """The code of the package that registered the env; empty for an env of this repository."""
    folder = registered()[name].folder if name in registered() else None
    return sorted(folder.rglob("*.py")) if folder else []


def names() -> list[str]:
    """The envs there are."""
    return sorted({*_own(), *registered()})


def config_class(name: str) -> type[EnvConfig]:
    """The settings' class of the env `name`. Imports neither torch nor the simulator. Raises a ConfigError."""
    try:
        found: type[EnvConfig] = import_module(_module(name)).Config
    except (ImportError, AttributeError) as error:
        if name in _own():
            raise
        raise ConfigError(f"the env {name} of {registered()[name].package} cannot be loaded: {error}.") from error
    return found


def _own() -> list[str]:
    return [module.name for module in iter_modules(tasks.__path__)]


def preload(name: str) -> None:
    """Imports what `make_env` will, while there is something to wait for: the submodule `env`, where there is one."""
    module = _module(name)
    if hasattr(import_module(module), "__path__") and find_spec(f"{module}.env"):
        import_module(f"{module}.env")


def _module(name: str) -> str:
    return registered()[name].module if name in registered() else f"ppo_lab.envs.tasks.{name}"


LOOKS: ContextVar[Looks | None] = ContextVar("looks", default=None)
"""Of the env that is being made. A variable, not an argument of `make`: so every env on the simulator can be seen."""


def make_env(cfg: EnvConfig, num_envs: int, device: torch.device, seed: int, looks: Looks | None = None) -> Env:
    """Builds the env that `cfg` describes on `device`; it draws from a generator of its own, which `seed` begins.

    `looks`: what it needs to be seen, beyond what training needs.

    Raises a ValueError where its observations or reward terms are not those of its Config's `spec`.
    """
    before = LOOKS.set(looks)
    try:
        return import_module(_module(cfg.name)).make(cfg, num_envs, device, seed)
    finally:
        LOOKS.reset(before)
