"""A legged robot on a plane, under position control: its scene, its actions, what it measures, its reset."""

from __future__ import annotations

import genesis as gs
import torch
from torch import Tensor

from ppo_lab.envs import randomization
from ppo_lab.envs.genesis.env import GenesisEnv
from ppo_lab.envs.genesis.frames import in_frame
from ppo_lab.envs.genesis.robot import JointedRobot
from ppo_lab.envs.legged import LeggedConfig


class LeggedEnv(GenesisEnv):
    """A subclass writes `step`, from `_act`, `_simulate`, `_read_state` and `_reset_robot`, and its MDP.

    J joints, each with an action: its position less its default, divided by `cfg.action_scale`.
    """

    cfg: LeggedConfig

    def __init__(self, cfg: LeggedConfig, num_envs: int, device: torch.device, seed: int) -> None:
        super().__init__(cfg, num_envs, device, seed)
        self._build_scene()
        self._gravity = self._tensor([0.0, 0.0, -1.0])
        self._init_quat = self._tensor(cfg.robot.base_init_quat)
        self._default_dof_pos = self._tensor(cfg.default_pose)
        self._init_gravity = in_frame(self._init_quat, self._gravity)
        self._last_actions = torch.zeros(num_envs, len(self.spec.actions), device=device)
        self._actions = self._last_actions.clone()

    def _build_scene(self) -> None:
        cfg = self.cfg
        self._scene = self._new_scene(
            rigid_options=gs.options.RigidOptions(
                enable_self_collision=False,
                tolerance=1e-5,
                max_collision_pairs=cfg.max_collision_pairs,
                **randomization.simulator_options(cfg),
            )
        )
        self._scene.add_entity(gs.morphs.URDF(file="urdf/plane/plane.urdf", fixed=True))
        self._robot = JointedRobot(self._scene, cfg.robot, self.device)
        self._scene.build(n_envs=self.num_envs)
        self._robot.begin()
        self._terms = randomization.build_terms(cfg, self._robot, self._generator)

    def _act(self, actions: Tensor) -> Tensor:
        """Clips the actions (N, J) and controls the joints; returns their targets (N, J), rad."""
        cfg = self.cfg
        self._actions = actions.clip(-cfg.clip_actions, cfg.clip_actions)
        executed = self._last_actions if cfg.simulate_action_latency else self._actions
        for term in self._terms.values():
            term.on_step()
            executed = term.on_actions(executed)
        target = executed * cfg.action_scale + self._default_dof_pos
        for term in self._terms.values():
            target = term.on_targets(target)
        self._robot.control_joint_pos(target)
        return target

    def _read_state(self) -> Tensor:
        """Reads what observations and rewards need; returns the orientation of the base (N, 4)."""
        entity, quat = self._robot.entity, self._robot.entity.get_quat()
        self._base_height = entity.get_pos()[:, 2]
        self._base_lin_vel = in_frame(quat, entity.get_vel())
        self._base_ang_vel = in_frame(quat, entity.get_ang())
        self._projected_gravity = in_frame(quat, self._gravity)
        self._dof_pos = self._robot.joint_pos()
        self._dof_vel = self._robot.joint_vel()
        return quat

    def _reset_robot(self, ended: Tensor) -> None:
        """Puts the robots in `ended` (N,) bool at their start, at rest, and what was read of them."""
        start = self._default_dof_pos
        for term in self._terms.values():
            start = term.on_start(start)
        self._robot.reset(ended, None if start is self._default_dof_pos else start)
        for term in self._terms.values():
            term.on_reset(ended)
        where = ended.unsqueeze(1)
        self._projected_gravity = torch.where(where, self._init_gravity, self._projected_gravity)
        self._dof_pos = torch.where(where, start, self._dof_pos)
        self._base_ang_vel = self._base_ang_vel.masked_fill(where, 0.0)
        self._dof_vel = self._dof_vel.masked_fill(where, 0.0)
        self._actions = self._actions.masked_fill(where, 0.0)

    def _as_seen(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the policy sees of the terms (N, D) of its observation."""
        for term in self._terms.values():
            terms = term.on_observations(terms)
        return terms

    def sensors(self) -> dict[str, Tensor]:
        return {
            "base_ang_vel": self._base_ang_vel,
            "projected_gravity": self._projected_gravity,
            "joint_pos": self._dof_pos,
            "joint_vel": self._dof_vel,
        }
