"""Robots, apart from what they are trained to do: asset, joints, gains, default pose. Standard library only.

A robot called NAME is `conf/robot/NAME.yaml`, and `robot=NAME` on the command line. A new one with a URDF of its own
needs no code: see docs/add_an_env.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ppo_lab.config import as_text, setting

LEGS = ("FL_", "FR_", "RL_", "RR_")
"""Front and rear, left and right."""


@dataclass
class RobotConfig:
    """What every robot has. Units are in conf/robot, beside the values."""

    urdf: str = setting()
    """The asset: a path, or the name of one that comes with Genesis."""
    base_init_pos: list[float] = setting(items=3)
    base_init_quat: list[float] = setting(items=4)

    def problems(self) -> Iterator[str]:
        """Combinations of these values that cannot work."""
        length = math.hypot(*self.base_init_quat)
        if abs(length - 1) > 1e-3:
            yield (
                f"env.robot.base_init_quat={as_text(self.base_init_quat)} has length {length:.3g}; "
                "a quaternion has length 1."
            )
        if not asset(self.urdf).is_file():
            yield f"env.robot.urdf={as_text(self.urdf)}: there is no such file, nor an asset of Genesis of that name."


@dataclass
class JointedRobotConfig(RobotConfig):
    """A free base with joints under position control."""

    default_joint_angles: dict[str, float] = setting()
    """Every joint that moves; the order is that of the actions."""
    kp: float = setting(at_least=0)
    kd: float = setting(at_least=0)

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        path = asset(self.urdf)
        try:
            joints = movable_joints(path) if path.is_file() else set(self.default_joint_angles)
        except (ElementTree.ParseError, OSError) as error:
            yield f"env.robot.urdf={as_text(self.urdf)} cannot be read as a URDF: {error}."
            return
        if set(self.default_joint_angles) != joints:
            wrong = ", ".join(map(as_text, sorted(joints ^ set(self.default_joint_angles))))
            yield (
                f"env.robot.default_joint_angles must name the {len(joints)} joints that move in {path.name}; "
                f"missing or unknown: {wrong}."
            )

    def leg_problems(self) -> Iterator[str]:
        """Of a task that tells the legs of a quadruped apart: by the first letters of their joints and feet."""
        path = asset(self.urdf)
        if not path.is_file():
            return
        if not all(name[:3] in LEGS for name in [*self.default_joint_angles, *feet(path)]):
            yield (
                f"env.robot.urdf={as_text(self.urdf)}: this task tells legs apart by names that begin with "
                f"{', '.join(LEGS)}; some joints or feet have others."
            )
        if not feet(path):
            yield f"env.robot.urdf={as_text(self.urdf)} names no feet: fixed links that end in foot."


@dataclass
class DroneConfig(RobotConfig):
    """A quadrotor with fixed propellers."""

    hover_rpm: float = setting(above=0)


def with_robot(settings: dict[str, Any], robot: type[RobotConfig], urdf: str) -> dict[str, Any]:
    """The settings of an env from before 2026-11-26, when the robot's stood among them and its asset in the code."""
    if "robot" in settings:
        return settings
    names = [f.name for f in fields(robot) if f.name in settings]
    rest = {name: value for name, value in settings.items() if name not in names}
    return rest | {"robot": {"urdf": urdf} | {name: settings[name] for name in names}}


def asset(name: str) -> Path:
    """The file of an asset: a path, or a name below the assets that come with Genesis. Does not load Genesis."""
    path = Path(name).expanduser()
    if path.is_absolute() or path.is_file():
        return path.absolute()
    genesis = find_spec("genesis")
    folder = Path(genesis.origin).parent if genesis and genesis.origin else Path()
    return folder / "assets" / name


def without_looks(urdf: Path) -> str:
    """The URDF at `urdf` as Genesis takes it, without the shapes that only cameras see: its text, or else its path.

    A link that has no shape to collide with keeps what cameras see, from which Genesis may estimate its mass.
    """
    root = ElementTree.parse(urdf).getroot()
    for link in root.iter("link"):
        if link.find("collision") is not None:
            for shape in link.findall("visual"):
                link.remove(shape)
    named = [element for kind in ("mesh", "texture") for element in root.iter(kind)]
    names = [element.get("filename", "") for element in named]
    if root.tag != "robot" or urdf.suffix != ".urdf" or any("://" in name for name in names):
        return str(urdf)
    for element, name in zip(named, names, strict=True):
        element.set("filename", str(urdf.parent / name))  # a text has no folder of its own
    return ElementTree.tostring(root, encoding="unicode")


def feet(urdf: Path) -> dict[str, tuple[str, tuple[float, ...]]]:
    """The feet that a URDF names as such: link -> the link that it is fixed to, which moves, and where on it, m."""
    found = {}
    for joint in ElementTree.parse(urdf).getroot().iter("joint"):
        link, parent, origin = joint.find("child"), joint.find("parent"), joint.find("origin")
        if joint.get("type") == "fixed" and link is not None and parent is not None:
            name, offset = link.get("link", ""), (origin.get("xyz") if origin is not None else None) or "0 0 0"
            if name.lower().endswith("foot"):
                found[name] = (parent.get("link", ""), tuple(map(float, offset.split())))
    return found


def movable_joints(urdf: Path) -> set[str]:
    """Names of the joints in a URDF that are neither fixed nor the base's own."""
    joints = ElementTree.parse(urdf).getroot().iter("joint")
    return {joint.attrib["name"] for joint in joints if joint.get("type") not in (None, "fixed", "floating")}
