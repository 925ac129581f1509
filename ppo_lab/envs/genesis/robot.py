"""Robots in a Genesis scene."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import genesis as gs
import torch
from genesis.utils.geom import transform_by_quat
from torch import Tensor

from ppo_lab.envs import LOOKS
from ppo_lab.envs.genesis.looks import simplified
from ppo_lab.envs.robots import JointedRobotConfig, asset, feet, without_looks
from ppo_lab.errors import SimulatorError

BASE_DOFS = 6
"""Of a free base; the joints' come after."""
TOUCH_N = 1.0
"""A foot touches the ground where the force on its leg's last link is larger."""


class JointedRobot:
    """A free base with joints under position control. J joints, in the order of `cfg.default_joint_angles`.

    Holds nothing that changes: the scene does.
    """

    def __init__(self, scene: gs.Scene, cfg: JointedRobotConfig, device: torch.device) -> None:
        """Adds the robot to a scene that is not built yet. Raises a SimulatorError where Genesis refuses its URDF.

        An env that is not to be seen saves reading the robot's meshes.
        """
        self.cfg = cfg
        self.device = device
        urdf = asset(cfg.urdf)
        looks = LOOKS.get()
        file = without_looks(urdf) if looks is None else simplified(urdf) if looks.width_px else str(urdf)
        morph = gs.morphs.URDF(file=file, pos=cfg.base_init_pos, quat=cfg.base_init_quat)
        try:
            self.entity: Any = scene.add_entity(morph)
        except gs.GenesisException as error:  # it quotes the whole text
            raise SimulatorError(str(error).replace(str(file), str(urdf))) from error

    def begin(self) -> None:
        """Called once, when the scene is built."""
        angles, count = self.cfg.default_joint_angles, len(self.cfg.default_joint_angles)
        dofs = [self.entity.get_joint(name).dof_start for name in angles]
        self._motor_dofs = torch.tensor(dofs, dtype=torch.int32, device=self.device)
        self._dof_order = torch.argsort(self._motor_dofs)
        self._joint_dofs = slice(BASE_DOFS, BASE_DOFS + count)
        self.set_gains(torch.ones(count, device=self.device), torch.ones(count, device=self.device))
        in_dof_order = [angles[joint.name] for joint in self.entity.joints if joint.name in angles]
        start = [*self.cfg.base_init_pos, *self.cfg.base_init_quat, *in_dof_order]
        self._init_qpos = torch.tensor(start, dtype=torch.float32, device=self.device)
        self._base = self.entity.base_link.idx_local
        self._feet = [
            (self.entity.get_link(link).idx_local, offset) for link, offset in feet(asset(self.cfg.urdf)).values()
        ]

    @property
    def num_envs(self) -> int:
        return self.entity.scene.n_envs

    @property
    def num_joints(self) -> int:
        return len(self.cfg.default_joint_angles)

    def tensor(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def joint_pos(self) -> Tensor:
        """Joint positions (N, J), rad."""
        return self.entity.get_dofs_position(self._motor_dofs)

    def joint_vel(self) -> Tensor:
        """Joint velocities (N, J), rad/s."""
        return self.entity.get_dofs_velocity(self._motor_dofs)

    def control_joint_pos(self, target: Tensor) -> None:
        """Sets the targets (N, J), rad, of the position control."""
        self.entity.control_dofs_position(target[:, self._dof_order], self._joint_dofs)

    def torque(self) -> Tensor:
        """What the joints' control exerts (N, J), N m."""
        return self.entity.get_dofs_control_force(self._motor_dofs)

    def foot_slip(self) -> Tensor:
        """Horizontal speed of the feet that touch something, summed up (N,), m/s; 0 where the URDF names no feet."""
        if not self._feet:
            return torch.zeros(self.num_envs, device=self.device)
        return (self.feet_vel()[..., :2].norm(dim=-1) * self.feet_touch()).sum(dim=1)

    def feet_touch(self) -> Tensor:
        """Whether something touches the links that the feet are fixed to (N, F)."""
        return self.entity.get_links_net_contact_force()[:, self._feet_places[0]].norm(dim=-1) > TOUCH_N

    def feet_vel(self) -> Tensor:
        """Velocities of the feet in the world (N, F, 3), m/s."""
        links, arm = self._feet_arms()
        return self.entity.get_links_vel(links) + torch.linalg.cross(self.entity.get_links_ang(links), arm)

    def feet_pos(self) -> Tensor:
        """Where the feet are in the world (N, F, 3), m, in the order of `feet`."""
        links, arm = self._feet_arms()
        return self.entity.get_links_pos(links) + arm

    def _feet_arms(self) -> tuple[Tensor, Tensor]:
        """The links that the feet are fixed to (F,), and from there to the feet in the world (N, F, 3), m."""
        links, offsets = self._feet_places
        return links, transform_by_quat(offsets.expand(self.num_envs, -1, -1), self.entity.get_links_quat(links))

    @cached_property
    def _feet_places(self) -> tuple[Tensor, Tensor]:
        """Links (F,), and the feet in their frames (F, 3), m."""
        links, offsets = zip(*self._feet, strict=True)
        return torch.tensor(links, dtype=torch.int32, device=self.device), torch.tensor(offsets, device=self.device)

    def set_gains(self, kp_factors: Tensor, kd_factors: Tensor) -> None:
        """Multiplies those of `cfg`: (J,), or (N, J) in a scene that keeps them for each env."""
        self.entity.set_dofs_kp(kp_factors * self.cfg.kp, self._motor_dofs)
        self.entity.set_dofs_kv(kd_factors * self.cfg.kd, self._motor_dofs)

    def torque_limits(self) -> Tensor:
        """The most that each joint's control exerts, (J,) or (N, J), N m."""
        return self.entity.get_dofs_force_range(self._motor_dofs)[1]

    @cached_property
    def nominal_torque_limits(self) -> Tensor:
        """Before they were set."""
        return self.torque_limits()

    def set_torque_limits(self, limits: Tensor) -> None:
        """(N, J), N m, in a scene that keeps them for each env."""
        self.entity.set_dofs_force_range(-limits, limits, self._motor_dofs)

    def set_joint_friction(self, friction: Tensor) -> None:
        """(N, J), N m, in a scene that keeps it for each env."""
        self.entity.set_dofs_frictionloss(friction, self._motor_dofs)

    @cached_property
    def nominal_armature(self) -> Tensor:
        """Before it was set (N, J), kg m^2."""
        return self.entity.get_dofs_armature(self._motor_dofs)

    def set_armature(self, armature: Tensor) -> None:
        """(N, J), kg m^2, in a scene that keeps it for each env."""
        self.entity.set_dofs_armature(armature, self._motor_dofs)

    @cached_property
    def base_mass(self) -> Tensor:
        """Before it was set (N, 1), kg."""
        return self.entity.get_links_mass([self._base])

    def set_base_mass(self, mass: Tensor) -> None:
        """(N, 1), kg, in a scene that keeps it for each env."""
        self.entity.set_links_mass(mass, [self._base])

    @cached_property
    def base_center(self) -> Tensor:
        """The base's center of mass in its frame, before it was set (N, 3), m."""
        return self.entity.get_links_COM([self._base])[:, 0]

    def set_base_center(self, center: Tensor) -> None:
        """(N, 3), m, in a scene that keeps it for each env."""
        self.entity.set_links_COM(center.unsqueeze(1), [self._base])

    @cached_property
    def nominal_friction(self) -> float:
        """The coefficient of friction of every contact before it was set: the largest in the scene."""
        return self.entity.scene.rigid_solver.get_geoms_friction().max().item()

    def set_friction(self, friction: Tensor) -> None:
        """The coefficient of friction (N, 1) of all that is in the scene; of two bodies Genesis takes the larger."""
        solver = self.entity.scene.rigid_solver
        solver.set_geoms_friction_ratio(friction / solver.get_geoms_friction())

    def push(self, velocity: Tensor) -> None:
        """Adds (N, 2), m/s, to the horizontal velocity of the base in the world."""
        horizontal = [0, 1]
        self.entity.set_dofs_velocity(self.entity.get_dofs_velocity(horizontal) + velocity, horizontal)

    def base_touches(self) -> Tensor:
        """Whether something touches the base, or what is fixed to it (N,), as trunk and head."""
        return self.entity.get_links_net_contact_force()[:, self._base].norm(dim=-1) > TOUCH_N

    def reset(self, ended: Tensor, joint_pos: Tensor | None = None) -> None:
        """Puts the envs in `ended` (N,) bool at rest in the default pose, its joints at `joint_pos` (N, J), rad."""
        start = self._init_qpos
        if joint_pos is not None:
            base = start[: len(start) - self.num_joints].expand(len(joint_pos), -1)
            start = torch.cat([base, joint_pos[:, self._dof_order]], dim=1)
        self.entity.set_qpos(start, envs_idx=ended, zero_velocity=True, skip_forward=True)
