"""What a policy takes and gives, as the manifest of an export says it. Loads neither torch nor onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ppo_lab.config import as_text
from ppo_lab.errors import ConfigError

if TYPE_CHECKING:
    from ppo_lab.config import EnvConfig
    from ppo_lab.contracts import Deployment

FREE = ("kp", "kd", "latency_steps")
"""Of the actions: what the robot, or the simulator, has of its own; a policy fits another all the same."""


def deployment(cfg: EnvConfig) -> Deployment:
    """How a policy of this env is used on a robot. Raises a ConfigError where the env does not say."""
    spec = cfg.spec()
    found = spec.deployment
    if found is None or not found.observations:
        raise ConfigError(
            f"a policy of the env {cfg.name} cannot be exported: its Config.spec() does not describe a robot. "
            "Give it a Deployment with observations, as docs/deploy.md shows."
        )
    described = {term.name: len(term.scale) for term in found.observations}
    if list(described.items()) != list(spec.observations["policy"].items()):
        raise ConfigError(
            f"the env {cfg.name} describes other observations than it has: its Config.spec() says "
            f"{dict(spec.observations['policy'])}, its Deployment {described}. Make them equal."
        )
    return found


def interface(cfg: EnvConfig) -> dict[str, Any]:
    """The part of the manifest that the env decides; docs/deploy.md lists the keys. Raises a ConfigError."""
    found = deployment(cfg)
    terms = [
        term._asdict() | {"scale": list(term.scale), "offset": list(term.offset or (0.0,) * len(term.scale))}
        for term in found.observations
    ]
    names = ("unit", "action_scale", "clip_actions", "kp", "kd", "latency_steps")
    actions = {"joints": list(found.joints), "default_pose": list(found.default_pose)}
    return {
        "env": cfg.name,
        "dt_s": cfg.dt,
        "quaternion": found.quaternion,
        "observations": terms,
        "actions": actions | {name: getattr(found, name) for name in names},
    }


def misfits(manifest: Mapping[str, Any], cfg: EnvConfig) -> Iterator[str]:
    """Why the policy of `manifest`, which a Runner has read, cannot act in the env of `cfg`. Raises a ConfigError."""
    needed = interface(cfg)
    theirs, ours = ([_as_text(term) for term in side["observations"]] for side in (manifest, needed))
    if theirs != ours:
        yield f"observations={as_text(theirs)}, the env has {as_text(ours)}"
        return
    for key in needed["actions"]:
        if key not in FREE and manifest["actions"][key] != needed["actions"][key]:
            yield f"{key}={as_text(manifest['actions'][key])}, the env has {as_text(needed['actions'][key])}"
    if manifest.get("quaternion") != needed["quaternion"]:
        yield f"quaternion={as_text(manifest.get('quaternion'))}, the env has {needed['quaternion']}"


def _as_text(term: Mapping[str, Any]) -> str:
    """ "joint_pos 12", "actions 4 of 2 steps ago" """
    ago = f" of {term['actions_ago']} steps ago" if term["actions_ago"] else ""
    return f"{term['source']} {len(term['scale'])}{ago}"
