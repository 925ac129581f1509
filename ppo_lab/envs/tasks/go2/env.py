"""A legged robot walks at a commanded velocity: the MDP of Genesis' public walking example, there with Go2.

Observation (45): base angular velocity (3), gravity in the base frame (3), command (3), joint positions less
their defaults (12), joint velocities (12), the last actions (12); each scaled by `obs_scales`.
Action (12): joint positions less their defaults, for PD control at 50 Hz, one step late.
An episode ends when the base rolls or pitches too far or the simulator loses the env, and by time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppo_lab.contracts import Measurement, StepResult
from ppo_lab.envs import randomization, rewards
from ppo_lab.envs.genesis.frames import euler_deg
from ppo_lab.envs.genesis.legged import LeggedEnv
from ppo_lab.envs.tasks.go2 import Config


class Go2Env(LeggedEnv):
    """See the module's text; `ppo_lab.contracts.Env` is the contract."""

    cfg: Config

    def __init__(self, cfg: Config, num_envs: int, device: torch.device, seed: int) -> None:
        super().__init__(cfg, num_envs, device, seed)
        scales = cfg.obs_scales
        self._commands_scale = self._tensor([scales.lin_vel, scales.lin_vel, scales.ang_vel])
        self._commands_low, self._commands_high = self._tensor(list(cfg.command_ranges.values())).T.contiguous()
        self._resampling_steps = int(cfg.resampling_time_s / cfg.dt)
        self.commands = randomization.told_ranges(cfg)

        everyone = torch.ones(num_envs, dtype=torch.bool, device=device)
        self._commands = torch.zeros(num_envs, 3, device=device)
        self._read_state()
        self._reset(everyone)
        self._update_observations()

    def step(self, actions: Tensor) -> StepResult:
        target = self._act(actions)
        self._simulate()
        self.episode_length_buf += 1
        self._read_state()

        step_rewards = self._weighted_rewards(self._reward_terms())
        terminations = self._terminations()
        self._show(terminations, self._measurements, target)
        self._resample_commands(self.episode_length_buf % self._resampling_steps == 0)
        time_outs = terminations["time_out"]
        dones = torch.stack(list(terminations.values())).any(dim=0)
        episode_sums = self._reset(dones)
        self._update_observations()
        self._last_actions = self._actions
        return self._result(step_rewards, dones, time_outs, episode_sums)

    def _reward_terms(self) -> dict[str, Tensor]:
        """Each (N,); `env.reward_scales` has a weight for each."""
        sigma = self.cfg.tracking_sigma
        return {
            "tracking_lin_vel": rewards.tracking(self._commands[:, :2], self._base_lin_vel[:, :2], sigma),
            "tracking_ang_vel": rewards.tracking(self._commands[:, 2:], self._base_ang_vel[:, 2:], sigma),
            "lin_vel_z": rewards.squared_deviation(self._base_lin_vel[:, 2]),
            "base_height": rewards.squared_deviation(self._base_height, self.cfg.base_height_target),
            "action_rate": rewards.squared_change(self._actions, self._last_actions),
            "similar_to_default": rewards.absolute_deviation(self._dof_pos, self._default_dof_pos),
        }

    def _terminations(self) -> dict[str, Tensor]:
        roll, pitch = self._base_euler_deg[:, 0].abs(), self._base_euler_deg[:, 1].abs()
        return {
            "time_out": self.episode_length_buf > self.spec.max_episode_length,
            "roll": roll > self.cfg.termination_if_roll_greater_than,
            "pitch": pitch > self.cfg.termination_if_pitch_greater_than,
            "lost_by_simulator": self._scene.rigid_solver.get_error_envs_mask(),
        }

    def _measurements(self) -> dict[str, Measurement]:
        error = self._commands - torch.cat([self._base_lin_vel[:, :2], self._base_ang_vel[:, 2:]], dim=1)
        torque, speed = self._robot.torque(), torch.linalg.vector_norm(self._base_lin_vel[:, :2], dim=1)
        return {
            "speed_m_s": Measurement(speed, "mean"),
            "velocity_error_m_s": Measurement(torch.linalg.vector_norm(error[:, :2], dim=1), "mean"),
            "yaw_rate_error_rad_s": Measurement(error[:, 2].abs(), "mean"),
            "distance_m": Measurement(speed * self.cfg.dt, "sum"),
            "joint_torque_n_m": Measurement(torque.abs().mean(dim=1), "mean"),
            "peak_torque_n_m": Measurement(torque.abs().amax(dim=1), "max"),
            "joint_power_w": Measurement((torque * self._dof_vel).abs().sum(dim=1), "mean"),
            "foot_slip_m_s": Measurement(self._robot.foot_slip(), "mean"),
        }

    def sensors(self) -> dict[str, Tensor]:
        return super().sensors() | {"commands": self._commands}

    def get_commands(self) -> Tensor:
        return self._commands

    def hold_commands(self, values: Sequence[float] | None) -> None:
        super().hold_commands(values)
        everyone = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        self._resample_commands(everyone)
        self._update_observations()

    def _read_state(self) -> Tensor:
        quat = super()._read_state()
        self._base_euler_deg = euler_deg(quat, self._init_quat)
        return quat

    def _command_bounds(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest commands that are drawn now, (3,) each."""
        return self._commands_low, self._commands_high

    def _resample_commands(self, chosen: Tensor) -> None:
        drawn = self._draw(*self._command_bounds())
        for term in self._terms.values():
            drawn = term.on_commands(drawn)
        if self._held_commands:
            drawn = self._tensor(self._held_commands).expand_as(drawn)
        self._commands = torch.where(chosen.unsqueeze(1), drawn, self._commands)

    def _reset(self, ended: Tensor) -> Tensor:
        """Puts the envs in `ended` back to the start; returns the sums of the episodes that ended."""
        self._reset_robot(ended)
        self._resample_commands(ended)
        return self._end_episodes(ended)

    def _policy_terms(self) -> dict[str, Tensor]:
        scales = self.cfg.obs_scales
        return {
            "base_ang_vel": self._base_ang_vel * scales.ang_vel,
            "projected_gravity": self._projected_gravity,
            "commands": self._commands * self._commands_scale,
            "dof_pos": (self._dof_pos - self._default_dof_pos) * scales.dof_pos,
            "dof_vel": self._dof_vel * scales.dof_vel,
            "actions": self._actions,
        }

    def _update_observations(self) -> None:
        self._observe(policy=self._as_seen(self._policy_terms()))
