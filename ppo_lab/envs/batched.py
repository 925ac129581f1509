"""What envs have in common, on a simulator or not: buffers, random draws, observations, rewards, episodes, state."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from ppo_lab.config import EnvConfig
from ppo_lab.contracts import Measurement, State, StepDetails, StepResult
from ppo_lab.envs.ramp import RewardRamp
from ppo_lab.states import gather, put_back

log = logging.getLogger(__name__)


class BatchedEnv:
    """N envs of one kind, stepped together. `ppo_lab.contracts.Env` is the contract; a subclass defines `step`.

    A `step` is written out in the order that its MDP prescribes. What it calls here: `_weighted_rewards`, `_show` where
    it has more to tell an evaluation than rewards, `_end_episodes` for the envs that are reset, `_observe`, `_result`.

    Whatever changes from step to step is an attribute that is a tensor, a number, or an object with `state` and
    `restore`: see `ppo_lab.states`. All draws are from `self._generator`.
    """

    commands: Mapping[str, tuple[float, float]] = {}

    def __init__(self, cfg: EnvConfig, num_envs: int, device: torch.device, seed: int) -> None:
        self.cfg = cfg
        self.spec = cfg.spec()
        self.num_envs = num_envs
        self.device = device
        self.episode_length_buf = torch.zeros(num_envs, dtype=torch.int32, device=device)
        self._generator = torch.Generator(device).manual_seed(seed)
        weights = asdict(getattr(cfg, "reward_scales", None) or _no_scales(cfg))
        if tuple(weights) != tuple(self.spec.rewards):
            raise ValueError(
                f"env {cfg.name}: reward_scales has {', '.join(weights)}; spec().rewards has "
                f"{', '.join(self.spec.rewards)}. Give both the same names in the same order."
            )
        self._weights = self._tensor(list(weights.values())).unsqueeze(1) * cfg.dt  # (K, 1)
        ramp = getattr(cfg, "reward_ramp", None)
        self._ramp = RewardRamp(ramp, self.spec.rewards, device) if ramp else None
        self._reward_sums = torch.zeros(len(weights), num_envs, device=device)  # (K, N), of the episode so far
        self._observations: dict[str, Tensor] = {}
        self._has_rewarded = False
        self._on_step: Callable[[StepDetails], None] | None = None
        self._seen: dict[str, Any] = {}  # the details of the step, while it is watched; empty between steps
        self._held_commands: tuple[float, ...] | None = None

    def watch(self, on_step: Callable[[StepDetails], None] | None) -> None:
        self._on_step = on_step
        if self._ramp:
            self._ramp.finish()

    def sensors(self) -> Mapping[str, Tensor]:
        return {}

    def get_commands(self) -> Tensor:
        return torch.zeros(self.num_envs, 0, device=self.device)

    def hold_commands(self, values: Sequence[float] | None) -> None:
        self._held_commands = None if values is None else tuple(values)

    def get_observations(self) -> TensorDict:
        return TensorDict(self._observations, batch_size=[self.num_envs], device=self.device)

    def check(self) -> dict[str, float]:
        return {}

    def state(self) -> State:
        return {"own": gather(self)}

    def restore(self, state: State) -> None:
        if "buffers" in state:
            put_back(self, self._from_older_version(state["buffers"]), self.device)
            return
        put_back(self, state["own"], self.device)

    def _from_older_version(self, buffers: Mapping[str, Tensor]) -> State:
        """The state of a checkpoint from before 2026-11-26, which held the tensors alone.

        Its env drew from torch's generator. Now its draws begin anew, in a stream that no run begins with.
        """
        log.warning(
            "the checkpoint is of an older version, whose envs drew from torch's generator: "
            "the env's draws begin anew, so the run goes on, but not identically"
        )
        own = gather(self)
        anew = torch.Generator(self.device).manual_seed(self._generator.initial_seed() + 2**32)
        own["_generator"] = gather(SimpleNamespace(generator=anew))["generator"]
        for name, value in own.items():
            if isinstance(value, Tensor):
                if name not in buffers:
                    raise ValueError(f"the saved state has no {name}, which {type(self).__name__} has")
                own[name] = buffers[name]
        return own | {"_observations": {"policy": buffers["_obs"]}}

    def _observe(self, **groups: Mapping[str, Tensor]) -> None:
        """Sets the observations to fresh tensors: of each group the terms (N, D_i), side by side.

        Raises a ValueError where groups, terms or widths are not those of the spec.
        """
        widths = {group: {name: term.shape[-1] for name, term in terms.items()} for group, terms in groups.items()}
        if widths != self.spec.observations:
            raise ValueError(
                f"env {self.cfg.name} observes {_as_text(widths)}; spec().observations says "
                f"{_as_text(self.spec.observations)}. Make them equal."
            )
        for group, terms in groups.items():
            if list(terms) != list(self.spec.observations[group]):
                raise ValueError(
                    f"env {self.cfg.name} observes {', '.join(terms)} in group {group}; spec().observations has "
                    f"another order: {', '.join(self.spec.observations[group])}. The order is that of the vector."
                )
        self._observations = {group: torch.cat(list(terms.values()), dim=-1) for group, terms in groups.items()}

    def _weighted_rewards(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The step's rewards (N,), from every term (N,); adds them to the sums of the episodes.

        Raises a ValueError in the first step where terms and weights are not of the same names.
        """
        if not self._has_rewarded:
            self._check_terms(terms)
            self._has_rewarded = True
        weights = self._ramp.applied_to(self._weights) if self._ramp else self._weights
        weighted = torch.stack([terms[name] for name in self.spec.rewards]) * weights
        self._reward_sums += weighted
        if self._on_step:
            self._seen["rewards"] = dict(zip(self.spec.rewards, weighted, strict=True))
        return weighted.sum(dim=0)

    def _check_terms(self, terms: Mapping[str, Tensor]) -> None:
        unweighted = [name for name in terms if name not in self.spec.rewards]
        missing = [name for name in self.spec.rewards if name not in terms]
        misshapen = [f"{name} {tuple(term.shape)}" for name, term in terms.items() if term.shape != (self.num_envs,)]
        wrong = [
            *([f"no weight in reward_scales: {', '.join(unweighted)}"] if unweighted else []),
            *([f"a weight, but not computed by step: {', '.join(missing)}"] if missing else []),
            *([f"not of shape ({self.num_envs},): {', '.join(misshapen)}"] if misshapen else []),
        ]
        if wrong:
            raise ValueError(
                f"the reward terms of env {self.cfg.name} do not match its reward_scales: {'; '.join(wrong)}. "
                "Give _weighted_rewards one term (N,) for each field of the dataclass reward_scales."
            )

    def _show(
        self,
        terminations: Mapping[str, Tensor],
        measure: Callable[[], Mapping[str, Measurement]],
        targets: Tensor | None = None,
    ) -> None:
        """Tells who watches why episodes end in this step, each (N,) bool, and what the task came to.

        To be called before anything is reset. `measure` is called only where somebody watches. `targets`: (N, A), what
        the actuators were told.
        """
        if self._on_step:
            self._seen |= {"terminations": terminations, "measurements": measure(), "targets": targets}

    def _end_episodes(self, ended: Tensor) -> Tensor:
        """Clears reward sums and lengths of the envs in `ended` (N,) bool; returns their sums, (K,) per second."""
        sums = torch.where(ended, self._reward_sums, 0.0).sum(dim=1) / (self.spec.max_episode_length * self.cfg.dt)
        self._reward_sums.masked_fill_(ended, 0.0)
        self.episode_length_buf.masked_fill_(ended, 0)
        return sums

    def _result(self, rewards: Tensor, dones: Tensor, time_outs: Tensor, episode_sums: Tensor) -> StepResult:
        if self._on_step:
            unnamed = {"time_out": time_outs, "terminated": dones & ~time_outs}
            self._on_step(StepDetails(**{"terminations": unnamed, "measurements": {}} | self._seen))
            self._seen = {}
        return StepResult(self.get_observations(), rewards, dones, time_outs, episode_sums)

    def _draw(self, low: Tensor, high: Tensor) -> Tensor:
        """A uniform draw for every env, (N, D), between low (D,) and high (D,). Costs no host sync."""
        uniform = torch.rand(self.num_envs, len(low), device=self.device, generator=self._generator)
        return (high - low) * uniform + low

    def _tensor(self, values: Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)


def _no_scales(cfg: EnvConfig) -> Any:
    raise ValueError(f"env {cfg.name} has no reward_scales: give its Config a dataclass with a weight for each term.")


def _as_text(observations: Mapping[str, Mapping[str, int]]) -> str:
    """{"policy": {"pos": 2}} -> "policy: pos 2" """
    return "; ".join(
        f"{group}: {', '.join(f'{name} {width}' for name, width in terms.items())}"
        for group, terms in observations.items()
    )
