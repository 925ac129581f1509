"""A legged robot does one backflip or two and stands again: the frame of Genesis' public backflip evaluation, with Go2.

Observation (60): base angular velocity (3), gravity in the base frame (3), joint positions less their defaults (12),
joint velocities (12), the last actions twice (24), sine and cosine of the phase and its half and quarter (6).
The critic sees height (1) and velocity (3) of the base as well. Action (12): joint positions less their defaults, for
PD control at 50 Hz, one step late. An episode ends by time.

The rewards are those of the public trainings of this flip (ziyanx02/Genesis-backflip, and tatsuya-ogawa's for Isaac
Lab), with a stance width that counts, and, by a ramp, terms that pay for standing up again.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppo_lab.contracts import Measurement, StepResult
from ppo_lab.envs import rewards
from ppo_lab.envs.genesis.frames import in_frame
from ppo_lab.envs.genesis.legged import LeggedEnv
from ppo_lab.envs.legged import FOOT_RADIUS_M
from ppo_lab.envs.robots import asset, feet
from ppo_lab.envs.tasks.go2_backflip import Config, flip

TURN_RAD = 5.5
"""A flip counts from here on."""
STILL_M_S, STILL_RAD_S, STILL_S, STANDS_M, UPRIGHT = 0.3, 1.0, 0.2, 0.25, 0.9
"""It stands when, for STILL_S, its base is slower, higher, and more upright (cosine of its tilt)."""
MOTOR_RAD_S, MOTOR_STOPS_RAD_S = 13.5, 30.0
"""Up to the first speed a motor gives its full torque, at the second none."""


class Go2BackflipEnv(LeggedEnv):
    """See the module's text; `ppo_lab.contracts.Env` is the contract."""

    cfg: Config

    def __init__(self, cfg: Config, num_envs: int, device: torch.device, seed: int) -> None:
        super().__init__(cfg, num_envs, device, seed)
        self._mirrored, self._sign = flip.mirror(list(cfg.robot.default_joint_angles), device)
        self._sides = flip.sides(list(feet(asset(cfg.robot.urdf))), device)
        self._turned = torch.zeros(num_envs, device=device)  # rad, backwards
        self._still_steps = torch.zeros(num_envs, device=device)
        self._has_left_ground = torch.zeros(num_envs, dtype=torch.bool, device=device)
        self._has_fallen = self._has_left_ground.clone()
        self._stands = self._has_left_ground.clone()
        self._has_stood = self._has_left_ground.clone()
        everyone = torch.ones(num_envs, dtype=torch.bool, device=device)
        self._read_state()
        self._reset(everyone)
        self._update_observations()

    def step(self, actions: Tensor) -> StepResult:
        target = self._act(actions)
        self._simulate()
        self.episode_length_buf += 1
        self._read_state()
        self._follow_the_flip()

        step_rewards = self._weighted_rewards(self._reward_terms())
        terminations = self._terminations()
        self._show(terminations, self._measurements, target)
        dones = torch.stack(list(terminations.values())).any(dim=0)
        episode_sums = self._reset(dones)
        self._last_actions = self._actions
        self._update_observations()
        return self._result(step_rewards, dones, terminations["time_out"], episode_sums)

    def _follow_the_flip(self) -> None:
        is_up = (self._feet_pos[..., 2] > FOOT_RADIUS_M + 0.05).all(dim=1)
        self._has_left_ground = self._has_left_ground | is_up
        self._has_fallen = self._has_fallen | (self._has_left_ground & self._base_touches)
        self._turned = self._turned - self._base_ang_vel[:, 1] * self.cfg.dt
        speed = torch.linalg.vector_norm(self._base_lin_vel, dim=1)
        is_still = (speed < STILL_M_S) & (torch.linalg.vector_norm(self._base_ang_vel, dim=1) < STILL_RAD_S)
        stands = is_still & (self._base_height > STANDS_M) & (self._projected_gravity[:, 2] < -UPRIGHT)
        self._still_steps = torch.where(stands & self._has_left_ground, self._still_steps + 1, 0.0)
        self._stands = self._still_steps >= STILL_S / self.cfg.dt
        self._has_stood = self._has_stood | self._stands

    def _reward_terms(self) -> dict[str, Tensor]:
        """Each (N,); `env.reward_scales` has a weight for each."""
        cfg, windows = self.cfg, self.cfg.windows
        time_s = self.episode_length_buf * cfg.dt
        clock_s, flips_before = flip.clock(time_s, cfg.flip_interval_s, cfg.flips, windows.stand_before)
        before, after = clock_s < windows.stand_before, clock_s > windows.stand_after
        upright = flip.projected_gravity(flips_before + flip.progress(clock_s, windows.turn))
        height_error = rewards.squared_deviation(self._base_height, cfg.stand_height)
        speed = self._base_lin_vel.square().sum(dim=1) + self._base_ang_vel.square().sum(dim=1)
        return {
            "ang_vel_y": flip.within(clock_s, windows.turn) * (-self._base_ang_vel[:, 1]).clip(-7.2, 7.2),
            "lin_vel_z": flip.within(clock_s, windows.push) * self._world_vel_z.clip(max=3.0),
            "orientation_control": (self._projected_gravity - upright).square().sum(dim=1),
            "height_control": (before | after) * height_error,
            "feet_height": before * (self._feet_pos[..., 2] - FOOT_RADIUS_M).clip(min=0.0).sum(dim=1),
            "gravity_y": self._projected_gravity[:, 1].square(),
            "ang_vel_z": self._base_ang_vel[:, 2].abs(),
            "actions_symmetry": flip.asymmetry(self._actions, self._mirrored, self._sign),
            "feet_distance": flip.stance_error(self._feet_in_base, self._sides, cfg.stance_width),
            "action_rate": rewards.squared_change(self._actions, self._last_actions),
            "stand": after * flip.standing(self._projected_gravity, self._base_height, cfg.stand_height),
            "upright": after * (1 + self._projected_gravity[:, 2]),
            "low": (before | after) * (self._base_height < 0.15),
            "trunk_contact": self._base_touches.float(),
            "pose": after * (self._dof_pos - self._default_dof_pos).square().sum(dim=1),
            "still": after * speed.clip(max=10.0),
        }

    def _terminations(self) -> dict[str, Tensor]:
        never = torch.zeros_like(self._has_fallen)
        return {
            "time_out": self.episode_length_buf > self.spec.max_episode_length,
            "trunk_contact": self._has_fallen if self.cfg.terminate_on_trunk_contact else never,
            "lost_by_simulator": self._scene.rigid_solver.get_error_envs_mask(),
        }

    def _measurements(self) -> dict[str, Measurement]:
        torque, speed = self._robot.torque().abs(), self._dof_vel.abs()
        limit = self._robot.torque_limits()
        allowed = limit * ((MOTOR_STOPS_RAD_S - speed) / (MOTOR_STOPS_RAD_S - MOTOR_RAD_S)).clip(0.0, 1.0)
        has_turned = self._turned >= TURN_RAD + (self.cfg.flips - 1) * 2 * math.pi
        is_over = self.episode_length_buf > self.spec.max_episode_length
        success = is_over & has_turned & self._has_stood & ~self._has_fallen
        feet_apart = self._feet_in_base[..., 1].amax(dim=1) - self._feet_in_base[..., 1].amin(dim=1)
        return {
            "turn_rad": Measurement(self._turned, "max"),
            "peak_height_m": Measurement(self._base_height, "max"),
            "success": Measurement(success, "max"),
            "turned": Measurement(has_turned, "max"),
            "stood": Measurement(self._has_stood, "max"),
            "stands_at_end": Measurement(is_over & self._stands, "max"),
            "trunk_touched": Measurement(self._has_fallen, "max"),
            "final_height_m": Measurement(is_over * self._base_height, "max"),
            "feet_apart_m": Measurement(feet_apart, "mean"),
            "peak_torque_n_m": Measurement(torque.amax(dim=1), "max"),
            "peak_joint_speed_rad_s": Measurement(speed.amax(dim=1), "max"),
            "beyond_motor_share": Measurement((torque > allowed + 0.1).float().mean(dim=1), "mean"),
        }

    def sensors(self) -> dict[str, Tensor]:
        return super().sensors() | {"phase": self._phase()}

    def _phase(self) -> Tensor:
        return flip.phase(self.episode_length_buf, self.spec.max_episode_length)

    def _read_state(self) -> Tensor:
        quat, entity = super()._read_state(), self._robot.entity
        self._world_vel_z = entity.get_vel()[:, 2]
        self._base_touches = self._robot.base_touches()
        self._feet_pos = self._robot.feet_pos()
        of_each_foot = quat.unsqueeze(1).expand(-1, self._feet_pos.shape[1], -1)
        self._feet_in_base = in_frame(of_each_foot, self._feet_pos - entity.get_pos().unsqueeze(1))
        return quat

    def _reset(self, ended: Tensor) -> Tensor:
        """Puts the envs in `ended` back to the start; returns the sums of the episodes that ended."""
        self._reset_robot(ended)
        self._base_height = self._base_height.masked_fill(ended, self.cfg.robot.base_init_pos[2])
        self._base_lin_vel = self._base_lin_vel.masked_fill(ended.unsqueeze(1), 0.0)
        for name in ("_turned", "_still_steps", "_has_left_ground", "_has_fallen", "_stands", "_has_stood"):
            setattr(self, name, getattr(self, name).masked_fill(ended, 0))
        return self._end_episodes(ended)

    def _update_observations(self) -> None:
        scales = self.cfg.obs_scales
        policy = {
            "base_ang_vel": self._base_ang_vel * scales.ang_vel,
            "projected_gravity": self._projected_gravity,
            "dof_pos": (self._dof_pos - self._default_dof_pos) * scales.dof_pos,
            "dof_vel": self._dof_vel * scales.dof_vel,
            "actions": self._actions,
            "last_actions": self._actions,
            "phase": self._phase(),
        }
        privileged = {
            "base_height": self._base_height.unsqueeze(1),
            "base_lin_vel": self._base_lin_vel * scales.lin_vel,
        }
        self._observe(policy=self._as_seen(policy), critic=policy | privileged)
