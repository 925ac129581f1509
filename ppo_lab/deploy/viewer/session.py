"""A policy acts in one env, and both are steered. Knows no browser; one thread makes all calls."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Protocol

import torch

from ppo_lab.errors import ConfigError
from ppo_lab.runs.folder import named_checkpoints

if TYPE_CHECKING:
    from pathlib import Path

    from ppo_lab.contracts import Policy, StepDetails, WatchedEnv
    from ppo_lab.deploy.trained import Trained

BARS_S = 1.0
"""Reward terms are the mean over this time."""
CURVES_S = 10.0
"""How far back curves reach."""
BEYOND = 1.0
"""How far a command may go beyond the range that training draws it from, to both sides: 1 m/s, 1 rad/s, 1 m."""
REWARD = "reward_per_s"


class Policies(Protocol):
    """The policies there are to choose from, by name."""

    def names(self) -> list[str]:
        """Those that there are by now."""
        ...

    def version(self, name: str) -> object:
        """Differs once the policy `name` is another one."""
        ...

    def load(self, name: str) -> Policy:
        """Raises a ConfigError where there is none, or it cannot be read."""
        ...


class Checkpoints:
    """The policies in a run folder, where a training may be adding to them. `Policies` is the contract."""

    def __init__(self, trained: Trained, device: torch.device) -> None:
        self._trained = trained
        self._device = device

    def names(self) -> list[str]:
        return list(named_checkpoints(self._trained.folder))

    def version(self, name: str) -> object:
        try:
            found = named_checkpoints(self._trained.folder)[name].stat()
        except (KeyError, OSError):
            return None
        return found.st_mtime_ns, found.st_ino

    def name_of(self, checkpoint: Path) -> str:
        """What a file of the run is called among `names`."""
        return next(name for name, file in named_checkpoints(self._trained.folder).items() if file == checkpoint)

    def load(self, name: str) -> Policy:
        return self._trained.policy(self._trained.checkpoints(name)[0], self._device)


class Session:
    """One env, the policy that acts in it, and what they came to in the last seconds."""

    def __init__(self, env: WatchedEnv, policies: Policies, name: str) -> None:
        """Plays the policy `name`. Raises a ConfigError where it cannot be had."""
        self.is_paused = False
        self.speed = 1.0
        """Times real time."""
        self.names = policies.names()
        self.playing = name
        self.is_held = False
        """Whether the commands are those that were given, instead of those that the env draws."""
        self.ranges = {command: (low - BEYOND, high + BEYOND) for command, (low, high) in env.commands.items()}
        """What each command may be."""
        self.steps = 0
        """Since the session began."""
        self.episode_s = 0.0
        """Since the env was reset."""
        self.ended_by = ""
        """Why the last episode ended."""
        self.problem = ""
        """What was asked for last and could not be done, and why."""
        self._env = env
        self.dt = env.spec.dt
        self._policies = policies
        self._version = policies.version(name)
        self._policy = policies.load(name)
        self._rewards: deque[dict[str, float]] = deque(maxlen=max(1, round(BARS_S / self.dt)))
        self._measured: deque[dict[str, float]] = deque(maxlen=max(2, round(CURVES_S / self.dt)))
        self._terminations: list[str] = []
        env.watch(self._see)
        self.step()  # so that there is something to show

    @torch.inference_mode()
    def step(self) -> None:
        """Steps the env once, paused or not."""
        result = self._env.step(self._policy.mean(self._env.get_observations()))
        self.steps += 1
        self.episode_s += self.dt
        if result.dones[0]:
            self.ended_by = ", ".join(self._terminations)
            self.episode_s = 0.0

    def reset(self) -> None:
        """Begins a new episode, and takes its first step, in which some envs first place the robot.

        The contract of envs has it that one whose length is the longest times out in the next step.
        """
        lengths = self._env.episode_length_buf
        self._env.episode_length_buf = torch.full_like(lengths, self._env.spec.max_episode_length)
        self.step()
        self.ended_by = "reset"
        self._rewards.clear()
        self._measured.clear()
        self.step()

    def toggle_pause(self) -> None:
        self.is_paused = not self.is_paused

    def single_step(self) -> None:
        """Pauses, and steps once."""
        self.is_paused = True
        self.step()

    def play(self, name: str) -> None:
        """Acts with the policy `name` from now on; the env stays as it is. `problem` says why that cannot be."""
        version = self._policies.version(name)
        try:
            self._policy = self._policies.load(name)
        except ConfigError as error:
            self.problem = str(error)
            return
        self.playing, self._version, self.problem = name, version, ""

    def look_for_policies(self) -> None:
        """Notices new policies, and plays the present one anew where another is called so now, as the best may be."""
        self.names = self._policies.names()
        version = self._policies.version(self.playing)
        if version not in (None, self._version):
            self._version = version
            self.play(self.playing)

    @property
    def iteration(self) -> int | None:
        """The last one that the policy was trained in."""
        return getattr(self._policy, "iteration", None)

    @property
    def commands(self) -> dict[str, float]:
        """As they are now."""
        return dict(zip(self.ranges, self._env.get_commands()[0].tolist(), strict=True))

    def command(self, changes: dict[str, float]) -> None:
        """Holds the commands as they are, but for `changes`; each stays within its range."""
        wanted = {**self.commands, **{name: value for name, value in changes.items() if math.isfinite(value)}}
        held = [min(max(wanted[name], low), high) for name, (low, high) in self.ranges.items()]
        self._env.hold_commands(held)
        self.is_held = True

    def change_command(self, name: str, by: float) -> None:
        self.command({name: self.commands[name] + by})

    def let_draw_commands(self) -> None:
        """The env draws them again, as in training."""
        self._env.hold_commands(None)
        self.is_held = False

    def rewards(self) -> dict[str, float]:
        """Each term per second, the mean over the last second; the largest first, whatever its sign."""
        count = len(self._rewards)
        names = self._rewards[-1] if count else {}
        means = {name: sum(step[name] for step in self._rewards) / count / self.dt for name in names}
        return dict(sorted(means.items(), key=lambda term: -abs(term[1])))

    @property
    def measurements(self) -> list[str]:
        """What there are curves of: the reward, and what the env measures."""
        return list(self._measured[-1]) if self._measured else [REWARD]

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Seconds before now, and the values then; of the last ten seconds, without what came before a reset."""
        values = [step.get(name, math.nan) for step in self._measured]
        return [(index + 1 - len(values)) * self.dt for index in range(len(values))], values

    def _see(self, details: StepDetails) -> None:
        measured = {name: measurement.values for name, measurement in details.measurements.items()}
        values = torch.stack([value[0].float() for value in [*details.rewards.values(), *measured.values()]]).tolist()
        rewards = dict(zip(details.rewards, values, strict=False))
        self._rewards.append(rewards)
        total = sum(rewards.values()) / self.dt
        self._measured.append({REWARD: total, **dict(zip(measured, values[len(rewards) :], strict=True))})
        self._terminations = [name for name, ended in details.terminations.items() if ended[0]]
