"""The run whose weights another one begins with (`init_from`): which checkpoint is meant, and whether it fits.

Loads neither torch nor the simulator.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from ppo_lab.config import ExperimentConfig, as_text
from ppo_lab.contracts import EnvSpec
from ppo_lab.errors import ConfigError
from ppo_lab.machine.commands import relative_to_cwd
from ppo_lab.runs.config import from_plain, read_experiment
from ppo_lab.runs.files import damage, numbered, read_json
from ppo_lab.runs.folder import BEST, RunFolder, find_checkpoint, folder_of_checkpoint

LAST = "last"
ALLOWED = "Allowed: RUN, RUN:last, RUN:best, RUN:ITERATION, a checkpoint in a run folder."
MAY_DIFFER = "all but observations, the number of actions, and the networks' layers and normalization"
MOST_NAMED = 12
"""Differences in a message."""


@dataclass(frozen=True)
class Ancestor:
    """A checkpoint that a run begins with."""

    checkpoint: Path
    """Absolute."""
    sha256: str
    """Of the file."""
    settings: ExperimentConfig
    """Of its run, as that began."""
    earlier: list[dict[str, Any]]
    """The ancestry of its run; empty where that began from scratch."""

    @property
    def folder(self) -> Path:
        """Its run's."""
        return self.checkpoint.parent.parent

    def ancestry(self, iteration: int) -> list[dict[str, Any]]:
        """As manifest.json keeps it, the nearest first. `iteration`: the checkpoint's, which best.pt alone knows."""
        own = {"folder": str(self.folder), "checkpoint": self.checkpoint.name, "iteration": iteration}
        return [own | {"sha256": self.sha256}, *self.earlier]

    def refuse_misfit(self, cfg: ExperimentConfig) -> None:
        """Raises a ConfigError that names, term by term, why a run of `cfg` cannot begin with these weights."""
        found = list(_misfits(self.settings, cfg))
        if not found:
            return
        shown = [misfit.what for misfit in found[:MOST_NAMED]]
        shown += [f"and {len(found) - MOST_NAMED} more"] if len(found) > MOST_NAMED else []
        mends = {mend: None for misfit in found for mend in misfit.mends}
        can_be_mended = all(misfit.mends for misfit in found)
        raise ConfigError(
            f"{self} does not fit this run: {'; '.join(shown)}. Allowed to differ: {MAY_DIFFER}."
            + (f" Try {' '.join(mends)}." if can_be_mended else "")
        )

    def warnings(self, cfg: ExperimentConfig) -> list[str]:
        """What differs of the env's actions, with which a run of `cfg` may begin all the same."""
        found = "; ".join(_other_actions(self.settings.env.spec(), cfg.env.spec()))
        return [f"{self}: the weights fit, but actions or time steps differ: {found}"] if found else []

    def __str__(self) -> str:
        return f"init_from={as_text(relative_to_cwd(self.checkpoint))}"


def with_ancestor(cfg: ExperimentConfig) -> tuple[ExperimentConfig, Ancestor | None]:
    """`cfg` with the path of the very checkpoint that it asks for, and that one. Raises a ConfigError."""
    if cfg.init_from is None:
        return cfg, None
    ancestor = find(cfg.init_from)
    ancestor.refuse_misfit(cfg)
    return replace(cfg, init_from=str(ancestor.checkpoint)), ancestor


def find(text: str) -> Ancestor:
    """The checkpoint that `init_from=text` means, and that it is whole. Raises a ConfigError."""
    asked = f"init_from={as_text(text)}"
    try:
        _refuse_unreadable(text)
        path, name = named(text)
        checkpoint = _file(Path(os.path.abspath(path)), name)  # noqa: PTH100
        _refuse_unreadable(str(checkpoint))
        content = checkpoint.read_bytes()
        if why := damage(content):
            where = as_text(relative_to_cwd(checkpoint))
            raise ConfigError(f"{where} {why}. Allowed: another checkpoint, as RUN:ITERATION.")
        folder = checkpoint.parent.parent
        earlier = recorded(read_json(RunFolder(folder).manifest))
        return Ancestor(checkpoint, hashlib.sha256(content).hexdigest(), _settings_of(folder), earlier)
    except ConfigError as error:
        raise ConfigError(f"{asked}: {error}") from None
    except OSError as error:
        raise ConfigError(f"{asked}: {error.strerror}. {ALLOWED}") from None


def find_again(asked: str, folder: Path, cfg: ExperimentConfig) -> Ancestor | None:
    """The checkpoint that the run of `cfg` in `folder` began with; None where it began from scratch.

    `asked`: the override that names the run. Raises a ConfigError where that checkpoint is gone, or changed since.
    """
    if cfg.init_from is None:
        return None
    before, path = recorded(read_json(RunFolder(folder).manifest)), relative_to_cwd(Path(cfg.init_from))
    mend = "Put it back, or name where it is now: init_from=CHECKPOINT."
    if not _exists(path):
        raise ConfigError(f"{asked}: the run began with {as_text(path)}, which is gone. {mend}")
    found = find(cfg.init_from)
    if before and found.sha256 != before[0]["sha256"]:
        was, now = before[0]["sha256"][:16], found.sha256[:16]
        raise ConfigError(
            f"{asked}: {as_text(path)} was changed since the run began with it: "
            f"its sha256 was {as_text(was)}... and is {now}... {mend}"
        )
    return found


def same_start(text: str | None, cfg: ExperimentConfig, folder: Path) -> str | None:
    """The absolute path of what the run of `cfg` in `folder` began with, if `init_from=text` may mean that.

    It does where it names the run that was named then, of which nothing need be left, or a file with the same content.
    """
    if text is None or cfg.init_from is None:
        return None
    path, name = named(text)
    began = Path(cfg.init_from)
    may_be_last = name in (None, LAST) and began.name != BEST
    is_named = name is not None and began.name in (f"{name}.pt", f"model_{name}.pt")
    if path.resolve() == began or (path.resolve() == began.parent.parent and (may_be_last or is_named)):
        return cfg.init_from
    before = recorded(read_json(RunFolder(folder).manifest))
    try:
        found = find(text)
    except ConfigError:
        return None
    return str(found.checkpoint) if before and found.sha256 == before[0]["sha256"] else None


def named(text: str) -> tuple[Path, str | None]:
    """Path and name of a checkpoint in RUN:NAME. A path with a colon is one where it exists."""
    text = os.path.expanduser(text)  # noqa: PTH111, which raises where there is no such user
    before, _, name = text.rpartition(":")
    is_name = name in (LAST, "best") or name.isdecimal()
    may_be_name = "," not in name and "/" not in name and _exists(Path(before))
    if before and not _exists(Path(text)) and (is_name or may_be_name):
        return Path(before), name
    return Path(text), None


def several(text: str) -> list[str]:
    """What `text` names, one after the other with commas between; a path may have commas in it where it exists."""
    found: list[str] = []
    rest = ""
    for part in text.split(","):
        rest += f",{part}" if rest else part
        if rest == "null" or _exists(named(rest)[0]):
            found.append(rest)
            rest = ""
    is_one = _exists(named(text)[0]) or not found
    return [text] if is_one else [*found, *([rest] if rest else [])]


def recorded(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The ancestry in a manifest that anyone may have written, up to the first entry that is none."""
    found: list[dict[str, Any]] = []
    entries = manifest.get("ancestry")
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("iteration"), int):
            break
        if not all(isinstance(entry.get(key), str) for key in ("folder", "checkpoint", "sha256")):
            break
        found.append({key: entry[key] for key in ("folder", "checkpoint", "iteration", "sha256")})
    return found


def in_short(manifest: Mapping[str, Any]) -> str:
    """The ancestry in a manifest as "RUN:99 < EARLIER_RUN:49"; empty where the run began from scratch."""
    return " < ".join(f"{Path(entry['folder']).name}:{entry['iteration']}" for entry in recorded(manifest))


def _refuse_unreadable(text: str) -> None:
    """What config.yaml could not hold."""
    if not text or not text.isprintable() or "${" in text:
        raise ConfigError(f"{as_text(text)!r} must be printable, without ${{. {ALLOWED}")


def _file(path: Path, name: str | None) -> Path:
    """The checkpoint, in a folder without symbolic links. `path`: absolute. Raises a ConfigError or an OSError."""
    if path.is_dir():
        _refuse_other_folder(path)
        return find_checkpoint(path.resolve(), LAST if name is None else name)
    if not path.is_file():
        raise ConfigError(f"there is no such folder or file. {ALLOWED}")
    folder = folder_of_checkpoint(path)
    is_model = path.name == BEST or path in numbered(path.parent, "model").values()
    if folder is None or not is_model:
        raise ConfigError(f"it is no checkpoint with weights in a run folder, which says what they are of. {ALLOWED}")
    _refuse_other_folder(folder)
    if name is not None:
        raise ConfigError(f"it names a checkpoint already. Leave out :{as_text(name)}.")
    return path.parent.resolve() / path.name


def _refuse_other_folder(path: Path) -> None:
    config = RunFolder(path).config
    if not config.is_file():
        raise ConfigError(f"{as_text(relative_to_cwd(path))} is not a run folder: it has no {config.name}. {ALLOWED}")


def _settings_of(folder: Path) -> ExperimentConfig:
    """As the run in `folder` began: its checkpoints are of these, whatever was done to config.yaml since."""
    manifest = RunFolder(folder).manifest
    began = read_json(manifest).get("config")
    if not isinstance(began, dict):
        return read_experiment(RunFolder(folder).config)
    try:
        return from_plain(began)
    except ConfigError as error:
        raise ConfigError(f"{as_text(relative_to_cwd(manifest))}: {error}") from None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long, or not to be looked into
        return False


class _Misfit(NamedTuple):
    """Why weights cannot be taken, and the settings with which they could; none where there are none."""

    what: str
    mends: tuple[str, ...] = ()


def _misfits(there: ExperimentConfig, here: ExperimentConfig) -> Iterator[_Misfit]:
    specs = there.env.spec(), here.env.spec()
    yield from _other_observations("policy", *(spec.observations["policy"] for spec in specs))
    if here.init.critic and any(spec.critic_group != "policy" for spec in specs):
        observed = (spec.observations[spec.critic_group] for spec in specs)
        without = ("init.critic=false",)
        yield from (_Misfit(what, without) for what, _ in _other_observations("critic", *observed))
    if len(specs[0].actions) != len(specs[1].actions):
        yield _Misfit(f"actions: {len(specs[0].actions)} there, {len(specs[1].actions)} here")
    for network in ("actor", *(["critic"] if here.init.critic else [])):
        ours, theirs = (getattr(cfg.network, network) for cfg in (here, there))
        for key in ("hidden_dims", "activation", "obs_normalization"):
            yield from _other_setting(f"network.{network}.{key}", getattr(theirs, key), getattr(ours, key))
    if here.init.std or here.init.kl_coef:
        std_types = there.network.actor.std_type, here.network.actor.std_type
        yield from _other_setting("network.actor.std_type", *std_types)
    if here.init.optimizer:
        yield from _other_setting("algorithm.optimizer", there.algorithm.optimizer, here.algorithm.optimizer)


def _other_setting(key: str, there: Any, here: Any) -> Iterator[_Misfit]:
    if there != here:
        yield _Misfit(f"{key}: {as_text(there)} there, {as_text(here)} here", (f"{key}={as_text(there)}",))


def _other_observations(group: str, there: Mapping[str, int], here: Mapping[str, int]) -> Iterator[_Misfit]:
    for term in dict.fromkeys((*there, *here)):
        then, now = there.get(term, "none"), here.get(term, "none")
        if then != now:
            yield _Misfit(f"observation {as_text(f'{group}.{term}')}: {then} there, {now} here")
    if there.keys() == here.keys() and [*there] != [*here]:
        yield _Misfit(f"the order of the observations {group}: {_listed(there)} there, {_listed(here)} here")


def _other_actions(there: EnvSpec, here: EnvSpec) -> Iterator[str]:
    """As sentences; the weights fit all the same."""
    pairs: dict[str, tuple[Any, Any]] = {"action": (there.actions, here.actions), "dt": (there.dt, here.dt)}
    if there.deployment and here.deployment:
        ours, theirs = here.deployment._asdict(), there.deployment._asdict()
        pairs |= {name: (theirs[name], ours[name]) for name in ours if name != "joints"}  # which are the actions
    for name, (then, now) in pairs.items():
        if not isinstance(then, tuple):
            yield from [f"{name}: {as_text(then)} there, {as_text(now)} here"] if then != now else []
            continue
        differing = [(index, a, b) for index, (a, b) in enumerate(zip_longest(then, now)) if a != b]
        for index, was, now_is in differing[:1]:
            more = f", and {len(differing) - 1} more" if len(differing) > 1 else ""
            yield f"{name} {index}: {as_text(was)} there, {as_text(now_is)} here{more}"


def _listed(names: Sequence[str] | Mapping[str, int]) -> str:
    return as_text([*names])[1:-1]
