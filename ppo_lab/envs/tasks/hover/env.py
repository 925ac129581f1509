"""A Crazyflie flies to a target and on to the next: the MDP of Genesis' public drone example.

Observation (17): target relative to the drone (3), orientation (4), linear (3) and angular (3) velocity in the
drone's frame, the actions of the step before last (4); the first, third and fourth are scaled and clipped to +-1.
Action (4): each propeller's speed, as a share of the hovering speed, at 100 Hz.
An episode ends in a crash (too far from the target, too near to the ground) and by time.
"""

from __future__ import annotations

from collections.abc import Sequence

import genesis as gs
import torch
from torch import Tensor

from ppo_lab.contracts import Measurement, StepResult
from ppo_lab.envs import rewards
from ppo_lab.envs.genesis.env import GenesisEnv
from ppo_lab.envs.genesis.frames import euler_deg, in_frame
from ppo_lab.envs.robots import asset
from ppo_lab.envs.tasks.hover import Config


class HoverEnv(GenesisEnv):
    """See the module's text; `ppo_lab.contracts.Env` is the contract."""

    cfg: Config

    def __init__(self, cfg: Config, num_envs: int, device: torch.device, seed: int) -> None:
        super().__init__(cfg, num_envs, device, seed)
        self._build_scene()

        ranges = [cfg.pos_x_range, cfg.pos_y_range, cfg.pos_z_range]
        self._target_low, self._target_high = self._tensor(ranges).T.contiguous()
        names = ("target_x_m", "target_y_m", "target_z_m")
        self.commands = {name: (low, high) for name, (low, high) in zip(names, ranges, strict=True)}
        self._init_pos = self._tensor(cfg.robot.base_init_pos)
        self._init_quat = self._tensor(cfg.robot.base_init_quat)
        self._init_qpos = torch.cat((self._init_pos, self._init_quat))
        self._max_rel_pos = self._tensor(
            [cfg.termination_if_x_greater_than, cfg.termination_if_y_greater_than, cfg.termination_if_z_greater_than]
        )

        everyone = torch.ones(num_envs, dtype=torch.bool, device=device)
        self._targets = torch.zeros(num_envs, 3, device=device)
        self._last_actions = torch.zeros(num_envs, len(self.spec.actions), device=device)
        self._pos = self._init_pos.expand(num_envs, 3)
        self._read_state()
        self._reset(everyone)
        self._update_observations()

    def step(self, actions: Tensor) -> StepResult:
        cfg = self.cfg
        actions = actions.clip(-cfg.clip_actions, cfg.clip_actions)
        time_outs, crashed = self._fly(actions)
        dones = time_outs | crashed
        yaw_deg = self._euler_deg[:, 2]
        self._reset(dones)

        # After the reset: where an episode ended, all terms but yaw and crash are of the new one.
        step_rewards = self._weighted_rewards(
            {
                "target": rewards.approach(self._rel_pos, self._last_rel_pos),
                "smooth": rewards.squared_change(actions, self._last_actions),
                "yaw": rewards.heading(yaw_deg, cfg.yaw_lambda),
                "angular": rewards.spin(self._ang_vel),
                "crash": crashed.float(),
            }
        )
        episode_sums = self._end_episodes(dones)
        self._update_observations()
        self._last_actions = actions
        return self._result(step_rewards, dones, time_outs, episode_sums)

    def _speeds_rpm(self, actions: Tensor) -> Tensor:
        return (1 + actions * self.cfg.action_scale) * self.cfg.robot.hover_rpm

    def _fly(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Steps the simulator; who is out of time (N,), and who crashed (N,)."""
        self._drone.set_propellers_rpm(self._speeds_rpm(actions))
        self._simulate()
        self.episode_length_buf += 1
        self._read_state()

        distance = torch.linalg.vector_norm(self._rel_pos, dim=1)
        at_target = distance < self.cfg.at_target_threshold
        terminations = self._terminations()
        targets = self._speeds_rpm(actions) if self._on_step else None
        self._show(terminations, lambda: self._measurements(distance, at_target), targets)
        self._resample_targets(at_target)  # seen from the next step on
        crashes = [ended for name, ended in terminations.items() if name != "time_out"]
        return terminations["time_out"], torch.stack(crashes).any(dim=0)

    def _terminations(self) -> dict[str, Tensor]:
        cfg = self.cfg
        return {
            "time_out": self.episode_length_buf > self.spec.max_episode_length,
            "roll": self._euler_deg[:, 0].abs() > cfg.termination_if_roll_greater_than,
            "pitch": self._euler_deg[:, 1].abs() > cfg.termination_if_pitch_greater_than,
            "out_of_bounds": (self._rel_pos.abs() > self._max_rel_pos).any(dim=1),
            "crashed": self._pos[:, 2] < cfg.termination_if_close_to_ground,
        }

    def _measurements(self, distance: Tensor, at_target: Tensor) -> dict[str, Measurement]:
        """distance (N,), m, and at_target (N,) bool, before a new target is drawn."""
        return {
            "distance_to_target_m": Measurement(distance, "mean"),
            "targets_reached": Measurement(at_target, "sum"),
            "first_target_s": Measurement(at_target, "first_s"),
            "speed_m_s": Measurement(torch.linalg.vector_norm(self._lin_vel, dim=1), "mean"),
        }

    def sensors(self) -> dict[str, Tensor]:
        return {"rel_pos": self._rel_pos, "quat": self._quat, "lin_vel": self._lin_vel, "ang_vel": self._ang_vel}

    def get_commands(self) -> Tensor:
        return self._targets

    def get_targets(self) -> Tensor:
        return self._targets.unsqueeze(1)

    def hold_commands(self, values: Sequence[float] | None) -> None:
        super().hold_commands(values)
        self._resample_targets(torch.ones(self.num_envs, dtype=torch.bool, device=self.device))
        self._rel_pos = self._targets - self._pos
        self._update_observations()

    def _build_scene(self) -> None:
        self._scene = self._new_scene(
            rigid_options=gs.options.RigidOptions(
                constraint_solver=gs.constraint_solver.Newton, enable_collision=True, enable_joint_limit=True
            )
        )
        self._scene.add_entity(gs.morphs.Plane())
        self._drone = self._scene.add_entity(gs.morphs.Drone(file=str(asset(self.cfg.robot.urdf))))
        self._scene.build(n_envs=self.num_envs)

    def _read_state(self) -> None:
        self._last_rel_pos = self._targets - self._pos
        self._pos = self._drone.get_pos()
        self._rel_pos = self._targets - self._pos
        self._quat = self._drone.get_quat()
        self._euler_deg = euler_deg(self._quat, self._init_quat)
        self._lin_vel = in_frame(self._quat, self._drone.get_vel())
        self._ang_vel = in_frame(self._quat, self._drone.get_ang())

    def _resample_targets(self, chosen: Tensor) -> None:
        drawn = self._draw(self._target_low, self._target_high)
        if self._held_commands:
            drawn = self._tensor(self._held_commands).expand_as(drawn)
        self._targets = torch.where(chosen.unsqueeze(1), drawn, self._targets)

    def _reset(self, ended: Tensor) -> None:
        """Puts the envs in `ended` back to the start, with new targets."""
        self._drone.set_qpos(self._init_qpos, envs_idx=ended, zero_velocity=True)
        where = ended.unsqueeze(1)
        self._resample_targets(ended)
        self._pos = torch.where(where, self._init_pos, self._pos)
        self._quat = torch.where(where, self._init_quat, self._quat)
        self._rel_pos = torch.where(where, self._targets - self._init_pos, self._rel_pos)
        self._last_rel_pos = torch.where(where, self._rel_pos, self._last_rel_pos)
        self._lin_vel = self._lin_vel.masked_fill(where, 0.0)
        self._ang_vel = self._ang_vel.masked_fill(where, 0.0)
        self._last_actions = self._last_actions.masked_fill(where, 0.0)

    def _update_observations(self) -> None:
        scales = self.cfg.obs_scales
        self._observe(
            policy={
                "rel_pos": (self._rel_pos * scales.rel_pos).clip(-1, 1),
                "quat": self._quat,
                "lin_vel": (self._lin_vel * scales.lin_vel).clip(-1, 1),
                "ang_vel": (self._ang_vel * scales.ang_vel).clip(-1, 1),
                "last_actions": self._last_actions,
            }
        )
