"""Robots in a Genesis scene."""

from __future__ import annotations

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

    def set_gains(self) -> None:
        """Called once, when the scene is built."""
        angles, count = self.cfg.default_joint_angles, len(self.cfg.default_joint_angles)
        dofs = [self.entity.get_joint(name).dof_start for name in angles]
        self._motor_dofs = torch.tensor(dofs, dtype=torch.int32, device=self.device)
        self._dof_order = torch.argsort(self._motor_dofs)
        self._joint_dofs = slice(BASE_DOFS, BASE_DOFS + count)
        self.entity.set_dofs_kp([self.cfg.kp] * count, self._motor_dofs)
        self.entity.set_dofs_kv([self.cfg.kd] * count, self._motor_dofs)
        in_dof_order = [angles[joint.name] for joint in self.entity.joints if joint.name in angles]
        start = [*self.cfg.base_init_pos, *self.cfg.base_init_quat, *in_dof_order]
        self._init_qpos = torch.tensor(start, dtype=torch.float32, device=self.device)
        self._feet = [
            (self.entity.get_link(link).idx_local, offset) for link, offset in feet(asset(self.cfg.urdf)).values()
        ]

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
        num_envs = self.entity.get_pos().shape[0]
        if not self._feet:
            return torch.zeros(num_envs, device=self.device)
        links = torch.tensor([link for link, _ in self._feet], dtype=torch.int32, device=self.device)
        offsets = torch.tensor([offset for _, offset in self._feet], device=self.device)
        arm = transform_by_quat(offsets.expand(num_envs, -1, -1), self.entity.get_links_quat(links))
        velocity = self.entity.get_links_vel(links) + torch.linalg.cross(self.entity.get_links_ang(links), arm)
        is_touching = self.entity.get_links_net_contact_force()[:, links].norm(dim=-1) > TOUCH_N
        return (velocity[..., :2].norm(dim=-1) * is_touching).sum(dim=1)

    def reset(self, ended: Tensor) -> None:
        """Puts the envs in `ended` (N,) bool into the default pose, at rest."""
        self.entity.set_qpos(self._init_qpos, envs_idx=ended, zero_velocity=True, skip_forward=True)
