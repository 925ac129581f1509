"""A legged robot trots at any velocity that is commanded and lifts its feet.

Observation (47): that of `env=go2`, and the clock of the gait (2). The critic sees velocity (3) and height (1) of the
base and which feet touch the ground (4) as well. Actions are those of `env=go2`. The rewards are go2's and those that
keep the base level and calm and let the feet step in time. The ranges of the commands grow with success.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ppo_lab.contracts import Measurement, StepDetails
from ppo_lab.envs.curriculum import Curriculum
from ppo_lab.envs.legged import FOOT_RADIUS_M
from ppo_lab.envs.robots import asset, feet
from ppo_lab.envs.tasks.go2.env import Go2Env
from ppo_lab.envs.tasks.go2_walk import Config, gait


class Go2WalkEnv(Go2Env):
    """See the module's text; `ppo_lab.contracts.Env` is the contract."""

    cfg: Config

    def __init__(self, cfg: Config, num_envs: int, device: torch.device, seed: int) -> None:
        self._curriculum = Curriculum(cfg.curriculum, device)
        self._offsets = gait.offsets(list(feet(asset(cfg.robot.urdf))), device)
        self._is_hip = torch.tensor(["hip" in name for name in cfg.robot.default_joint_angles], device=device)
        super().__init__(cfg, num_envs, device, seed)

    def watch(self, on_step: Callable[[StepDetails], None] | None) -> None:
        super().watch(on_step)
        self._curriculum.finish()
        self.hold_commands(self._held_commands)  # those of now were drawn from a share of the ranges

    def sensors(self) -> dict[str, Tensor]:
        return super().sensors() | {"gait_clock": self._gait_clock()}

    def _command_bounds(self) -> tuple[Tensor, Tensor]:
        return self._commands_low * self._curriculum.share, self._commands_high * self._curriculum.share

    def _walks(self) -> Tensor:
        return torch.linalg.vector_norm(self._commands, dim=1) > self.cfg.gait.stands_below

    def _phase(self) -> Tensor:
        return gait.phase(self.episode_length_buf, self.cfg.gait.period_s / self.cfg.dt)

    def _gait_clock(self) -> Tensor:
        return gait.clock(self._phase(), self._walks())

    def _read_state(self) -> Tensor:
        quat = super()._read_state()
        self._feet_touch = self._robot.feet_touch()
        return quat

    def _reward_terms(self) -> dict[str, Tensor]:
        of_gait = self.cfg.gait
        swing = gait.swing(self._phase(), self._offsets, of_gait.stance_share, self._walks())
        is_in_time = self._feet_touch == (swing == 0)
        height = self._robot.feet_pos()[..., 2]
        return super()._reward_terms() | {
            "orientation": self._projected_gravity[:, :2].square().sum(dim=1),
            "ang_vel_xy": self._base_ang_vel[:, :2].square().sum(dim=1),
            "gait": is_in_time.float().mean(dim=1),
            "swing_height": gait.swing_error(height, swing, FOOT_RADIUS_M, of_gait.swing_height),
            "foot_slip": self._robot.foot_slip(),
            "hips": (self._is_hip * (self._dof_pos - self._default_dof_pos)).abs().sum(dim=1),
            "torque": self._robot.torque().square().sum(dim=1),
        }

    def _measurements(self) -> dict[str, Measurement]:
        height, is_up = self._robot.feet_pos()[..., 2], ~self._feet_touch
        return super()._measurements() | {
            "highest_foot_m": Measurement(height.amax(dim=1), "mean"),
            "feet_in_air": Measurement(is_up.float().sum(dim=1), "mean"),
        }

    def _reset(self, ended: Tensor) -> Tensor:
        of_tracking = self.spec.rewards.index("tracking_lin_vel")
        perfect = self._weights[of_tracking, 0] * self.spec.max_episode_length
        self._curriculum.learn(self._reward_sums[of_tracking] / perfect, ended)
        self._feet_touch = self._feet_touch | ended.unsqueeze(1)
        return super()._reset(ended)

    def _update_observations(self) -> None:
        policy = self._policy_terms() | {"gait_clock": self._gait_clock()}
        privileged = {
            "base_lin_vel": self._base_lin_vel * self.cfg.obs_scales.lin_vel,
            "base_height": self._base_height.unsqueeze(1),
            "feet_touch": self._feet_touch.float(),
        }
        self._observe(policy=self._as_seen(policy), critic=policy | privileged)
