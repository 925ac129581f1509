"""Go2 walks at any velocity that is commanded, and lifts its feet.

Observation and action are those of `env=go2`; the critic sees velocity and height of the base and which feet touch the
ground as well. The rewards are go2's and those that keep the base level and calm and let the feet step. The ranges of
the commands grow with success.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppo_lab.contracts import Measurement
from ppo_lab.envs import rewards
from ppo_lab.envs.curriculum import Curriculum
from ppo_lab.envs.robots import asset, feet
from ppo_lab.envs.tasks.go2.env import Go2Env
from ppo_lab.envs.tasks.go2_walk import Config

STANDS_M_S = 0.1
"""A slower command is one to stand."""


class Go2WalkEnv(Go2Env):
    """See the module's text; `ppo_lab.contracts.Env` is the contract."""

    cfg: Config

    def __init__(self, cfg: Config, num_envs: int, device: torch.device, seed: int) -> None:
        self._curriculum = Curriculum(cfg.curriculum, device)
        self._feet_touch = torch.ones(num_envs, len(feet(asset(cfg.robot.urdf))), dtype=torch.bool, device=device)
        self._has_landed = torch.zeros_like(self._feet_touch)
        self._air_time_s = torch.zeros(self._feet_touch.shape, device=device)
        self._hips = torch.tensor(["hip" in name for name in cfg.robot.default_joint_angles], device=device)
        super().__init__(cfg, num_envs, device, seed)

    def _command_ranges(self) -> tuple[Tensor, Tensor]:
        return self._commands_low * self._curriculum.share, self._commands_high * self._curriculum.share

    def _read_state(self) -> Tensor:
        quat = super()._read_state()
        touched, self._feet_touch = self._feet_touch, self._robot.feet_touch()
        self._has_landed = self._feet_touch & ~touched
        return quat

    def _reward_terms(self) -> dict[str, Tensor]:
        cfg = self.cfg
        walks = self._commands.norm(dim=1) > STANDS_M_S
        in_air_s = self._air_time_s + cfg.dt
        steps = (self._has_landed * (in_air_s - cfg.air_time_s)).sum(dim=1)
        self._air_time_s = in_air_s.masked_fill(self._feet_touch, 0.0)
        hips = self._hips * (self._dof_pos - self._default_dof_pos)
        return super()._reward_terms() | {
            "orientation": self._projected_gravity[:, :2].square().sum(dim=1),
            "ang_vel_xy": self._base_ang_vel[:, :2].square().sum(dim=1),
            "air_time": steps * walks / cfg.dt,
            "foot_clearance": rewards.foot_clearance(
                self._robot.feet_pos()[..., 2], self._robot.feet_vel()[..., :2], cfg.foot_clearance
            ),
            "foot_slip": self._robot.foot_slip(),
            "hips": hips.abs().sum(dim=1),
            "torque": self._robot.torque().square().sum(dim=1),
        }

    def _measurements(self) -> dict[str, Measurement]:
        highest = (self._robot.feet_pos()[..., 2]).amax(dim=1)
        return super()._measurements() | {"highest_foot_m": Measurement(highest, "mean")}

    def _reset(self, ended: Tensor) -> Tensor:
        index = self.spec.rewards.index("tracking_lin_vel")
        perfect = self._weights[index, 0] * self.spec.max_episode_length
        self._curriculum.learn(self._reward_sums[index] / perfect, ended)
        self._air_time_s = self._air_time_s.masked_fill(ended.unsqueeze(1), 0.0)
        return super()._reset(ended)

    def _update_observations(self) -> None:
        terms = self._policy_terms()
        privileged = {
            "base_lin_vel": self._base_lin_vel * self.cfg.obs_scales.lin_vel,
            "base_height": self._base_height.unsqueeze(1),
            "feet_touch": self._feet_touch.float(),
        }
        self._observe(policy=self._as_seen(terms), critic=terms | privileged)
