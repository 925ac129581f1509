"""NaN and Inf stop training: where the first came up, and the evidence. Checked once an iteration.

Checked is what training uses: observations, actions, values, rewards, losses and weights. What is only logged
(`Episode/`, `Train/`, an env's own rows) harms no training: `runs.metrics` warns of it.

A sum is finite only where every term is, so the sum of all that an iteration made answers with one host read and no
memory. Only a sum that is not finite is looked into: it may have overflowed.

T = num_steps_per_env, N = num_envs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rsl_rl.algorithms import PPO
    from tensordict import TensorDict

    from ppo_lab.contracts import State

HINTS = {
    "observations": "the dump shows what led there; a larger env.substeps steadies a simulation",
    "critic observations": "the dump shows what led there; a larger env.substeps steadies a simulation",
    "actions": "try a lower algorithm.learning_rate or algorithm.max_grad_norm",
    "values": "try a lower algorithm.learning_rate or algorithm.max_grad_norm",
    "rewards": "look at the env's reward terms; a larger env.substeps steadies a simulation",
    "losses": "try a lower algorithm.learning_rate or algorithm.max_grad_norm",
    "weights": "try a lower algorithm.learning_rate or algorithm.max_grad_norm",
}
"""What is not finite -> what to do about it. The first five are computed in this order in each step."""
MAX_FAULTY_ENVS, MAX_HEALTHY_ENVS = 16, 4
"""Envs in the dump: at most so many with the fault, and so many others."""
MAX_SHOWN = 8
"""Env ids in a message."""


@dataclass(frozen=True)
class Fault:
    """The first value that is not finite."""

    iteration: int
    group: str
    value: float
    """nan, inf or -inf."""
    step: int | None
    """Of the rollout, from 0; T: the observations after its last step. None for losses and weights."""
    env_ids: list[int]
    """Every env in which the group is not finite at that step."""
    names: list[str]
    """Of the losses or weights that are not finite."""

    def __str__(self) -> str:
        what = f"{self.group} are not finite in iteration {self.iteration}: "
        if self.step is None:
            return f"{what}{', '.join(self.names[:MAX_SHOWN])}{', ...' * (len(self.names) > MAX_SHOWN)}: {self.value}"
        ids = ", ".join(map(str, self.env_ids[:MAX_SHOWN])) + ", ..." * (len(self.env_ids) > MAX_SHOWN)
        env = "env" if len(self.env_ids) == 1 else f"{len(self.env_ids)} envs:"
        return f"{what}{self.value} first at step {self.step} in {env} {ids}"


class NonFiniteError(RuntimeError):
    """Training made a value that is not finite, and cannot go on."""

    def __init__(self, fault: Fault, evidence: State) -> None:
        """`evidence`: see `evidence_of`."""
        super().__init__(str(fault))
        self.fault = fault
        self.evidence = evidence


def of_rank(fault: Fault, evidence: State, rank: int, envs_per_rank: int) -> NonFiniteError:
    """What `rank` found, with the numbers that its envs have among those of all ranks."""
    first = rank * envs_per_rank
    fault = replace(fault, env_ids=[first + env for env in fault.env_ids])
    return NonFiniteError(fault, evidence | {"fault": asdict(fault), "envs": first + evidence["envs"]})


@torch.no_grad()
def check(alg: PPO, iteration: int, obs: TensorDict, losses: dict[str, float]) -> None:
    """Looks at an iteration that is complete, `obs` being those after the rollout. Raises a NonFiniteError."""
    storage = alg.storage
    observations = [*storage.observations.values(), *obs.values()]
    made = [*observations, storage.actions, storage.values, storage.rewards]
    total = torch.stack([tensor.sum() for tensor in (*made, *_weights(alg).values())]).sum()
    is_suspect = bool(~torch.isfinite(total))
    if is_suspect or not all(map(math.isfinite, losses.values())):
        steps = storage.num_transitions_per_env
        fault = _rollout_fault(alg, iteration, steps, obs) or _learner_fault(alg, iteration, losses)
        if fault:
            raise NonFiniteError(fault, evidence_of(fault, alg, steps, obs, losses))


@torch.no_grad()
def check_interrupted(alg: PPO, iteration: int, obs: TensorDict) -> None:
    """Looks at an iteration in which something raised, `obs` being the newest. Raises a NonFiniteError if need be."""
    steps = alg.storage.step
    fault = _rollout_fault(alg, iteration, steps, obs) or _learner_fault(alg, iteration, {})
    if fault:
        raise NonFiniteError(fault, evidence_of(fault, alg, steps, obs, {}))


def evidence_of(fault: Fault, alg: PPO, steps: int, obs: TensorDict, losses: dict[str, float]) -> State:
    """What a dump holds, on the CPU: the fault, the learner as it is, and the rollout of some envs.

    envs (E,): their ids, those at fault first. observations (t + 1, E, O), and "critic observations" where the critic
    has its own; actions, values, rewards, dones (t, E, .): the t steps, as the learner has them: where an episode ended
    by time, rewards have its value in them.
    """
    storage = alg.storage
    at_fault = fault.env_ids[:MAX_FAULTY_ENVS]
    others = (env for env in range(storage.num_envs) if env not in set(fault.env_ids))
    envs = [*at_fault, *(env for env, _ in zip(others, range(MAX_HEALTHY_ENVS), strict=False))]
    observations = {
        _name_of(group): torch.cat([storage.observations[group][:steps, envs], obs[group][envs].unsqueeze(0)]).cpu()
        for group in obs.keys()  # noqa: SIM118, of a TensorDict
    }
    return {
        "fault": asdict(fault),
        "losses": losses,
        "envs": torch.tensor(envs),
        **observations,
        **{name: getattr(storage, name)[:steps, envs].cpu() for name in ("actions", "values", "rewards", "dones")},
        "actor_state_dict": alg.actor.state_dict(),
        "critic_state_dict": alg.critic.state_dict(),
    }


def _rollout_fault(alg: PPO, iteration: int, steps: int, obs: TensorDict) -> Fault | None:
    for step, group, tensor in _in_order_of_computation(alg, steps, obs):
        finite = tensor.isfinite().flatten(1).all(dim=1)  # (N,)
        if not finite.all():
            value = tensor[~tensor.isfinite()][0].item()
            return Fault(iteration, group, value, step, torch.nonzero(~finite).flatten().tolist(), [])
    return None


def _in_order_of_computation(alg: PPO, steps: int, obs: TensorDict) -> Iterator[tuple[int, str, Tensor]]:
    """Step, group and tensor (N, ...) of a rollout, each after what it comes from."""
    storage, unfinished = alg.storage, alg.transition
    for step in range(steps):
        for group in storage.observations.keys():  # noqa: SIM118, of a TensorDict
            yield step, _name_of(group), storage.observations[group][step]
        for group in ("actions", "values", "rewards"):
            yield step, group, getattr(storage, group)[step]
    for group, tensor in obs.items():
        yield steps, _name_of(group), tensor
    if unfinished.actions is not None:
        yield steps, "actions", unfinished.actions


def _name_of(group: str) -> str:
    """What the observations of `group` are called in a message."""
    return "observations" if group == "policy" else f"{group} observations"


def _learner_fault(alg: PPO, iteration: int, losses: dict[str, float]) -> Fault | None:
    bad_losses = {name: value for name, value in losses.items() if not math.isfinite(value)}
    if bad_losses:
        return Fault(iteration, "losses", next(iter(bad_losses.values())), None, [], list(bad_losses))
    bad = {name: tensor for name, tensor in _weights(alg).items() if not tensor.isfinite().all()}
    if bad:
        first = next(iter(bad.values()))
        return Fault(iteration, "weights", first[~first.isfinite()].flatten()[0].item(), None, [], list(bad))
    return None


def _weights(alg: PPO) -> dict[str, Any]:
    """What the networks hold, normalizers and the standard deviation of the actions included."""
    networks = {"actor": alg.actor, "critic": alg.critic}
    held = {f"{name}.{key}": value for name, network in networks.items() for key, value in network.state_dict().items()}
    return held | {"actor.output_std": alg.actor.output_std}
