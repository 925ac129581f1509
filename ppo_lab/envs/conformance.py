"""Checks an env against its contract, `ppo_lab.contracts.Env`: every shipped env, and yours.

from ppo_lab.envs.conformance import violations
assert violations(my_env.make, cfg.env) == []
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppo_lab.config import EnvConfig
from ppo_lab.contracts import Env, EnvSpec, StepResult

STEPS, MIDDLE = 40, 20
"""Of the walk, and before the state from which another env goes on. Actions are random, so that episodes end."""
SEED = 7

Make = Callable[[Any, int, torch.device, int], Env]


@torch.inference_mode()
def violations(make: Make, cfg: EnvConfig, num_envs: int = 6, device: torch.device | None = None) -> list[str]:
    """What the env does against its contract, in sentences; empty where it keeps it.

    Args:
        make: the env's `make(cfg, num_envs, device, seed)`.
        cfg: its settings. Random actions should end some episodes within `STEPS` steps, or little is checked.
        num_envs: two at least.
        device: default the CPU.
    """
    device = device or torch.device("cpu")
    env, spec = make(cfg, num_envs, device, SEED), cfg.spec()
    found = [*_of_the_build(env, spec, num_envs)]
    if found:
        return found
    first_state = _through_a_file(env.state())
    before = _global_generators()
    actions = _actions(spec, num_envs, device)
    walked = [_step(env, action) for action in actions[:MIDDLE]]
    middle_state = _through_a_file(env.state())
    walked += [_step(env, action) for action in actions[MIDDLE:]]
    found += _of_the_steps(env, spec, walked)
    found += _of_the_rewards(cfg, walked)
    if _global_generators() != before:
        found.append("it draws from torch's, numpy's or python's generator: use the env's own (self._generator)")
    if _names(first_state) != (now := _names(env.state())):
        changed = ", ".join(sorted(now ^ _names(first_state)))
        found.append(f"its state has other names after some steps than at first: {changed}. Make each in __init__")
        return found
    fresh = make(cfg, num_envs, device, SEED + 1)
    found += _of_the_state(fresh, middle_state, actions[MIDDLE:], walked[MIDDLE:])
    found += _of_time_outs(env, spec)
    return found


class Walked(NamedTuple):
    """A step of the walk."""

    result: StepResult
    """As it was returned."""
    copy: StepResult
    """Made at once."""
    lengths: Tensor
    """(N,) int32. Of the episodes after it."""


def _step(env: Env, actions: Tensor) -> Walked:
    result = env.step(actions)
    copy = StepResult(*(part.clone() for part in result))
    return Walked(result, copy, env.episode_length_buf.clone())


def _actions(spec: EnvSpec, num_envs: int, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    return [2 * torch.randn(num_envs, len(spec.actions), generator=generator).to(device) for _ in range(STEPS)]


def _of_the_build(env: Env, spec: EnvSpec, num_envs: int) -> Iterator[str]:
    observations = env.get_observations()
    widths = {group: tuple(tensor.shape) for group, tensor in observations.items()}
    expected = {group: (num_envs, spec.width(group)) for group in spec.observations}
    if widths != expected:
        yield f"its observations have shapes {widths}; its spec says {expected}"
    if env.spec != spec:
        yield "its attribute spec is not what its Config's spec() gives"
    length = env.episode_length_buf
    if (tuple(length.shape), length.dtype) != ((num_envs,), torch.int32):
        yield f"episode_length_buf is {tuple(length.shape)} {length.dtype}; it must be ({num_envs},) int32"


def _of_the_steps(env: Env, spec: EnvSpec, walked: list[Walked]) -> Iterator[str]:
    count = len(env.episode_length_buf)
    shapes = {
        "rewards": ((count,), torch.float32),
        "dones": ((count,), torch.bool),
        "time_outs": ((count,), torch.bool),
        "episode_sums": ((len(spec.rewards),), torch.float32),
    }
    result = walked[0].result
    for name, (shape, dtype) in shapes.items():
        tensor = getattr(result, name)
        if (tuple(tensor.shape), tensor.dtype) != (shape, dtype):
            yield f"{name} of a step is {tuple(tensor.shape)} {tensor.dtype}; it must be {shape} {dtype}"
    for group, tensor in result.observations.items():
        if (tuple(tensor.shape), tensor.dtype) != ((count, spec.width(group)), torch.float32):
            yield f"observations of group {group} are {tuple(tensor.shape)} {tensor.dtype}"
    for name in StepResult._fields:
        if any(not _equal(getattr(was, name), getattr(copy, name)) for was, copy, _ in walked):
            yield f"a later step wrote into the {name} of an earlier one: return a fresh tensor each time"
    newest = walked[-1].result.observations
    if not _equal(newest, env.get_observations()) or not _equal(newest, env.get_observations()):
        yield "get_observations does not give what the last step gave, again and again"
    for was, _, lengths in walked:
        if (was.time_outs & ~was.dones).any():
            yield "an env that timed out is not among the dones"
            break
        if (lengths[was.dones] != 0).any() or (lengths[~was.dones] == 0).any():
            yield "episode_length_buf is not 0 exactly where an episode has just ended"
            break


def _of_the_rewards(cfg: EnvConfig, walked: list[Walked]) -> Iterator[str]:
    """What the ended episodes were rewarded with is what their terms sum up to."""
    sums, ended = torch.zeros_like(walked[0].result.rewards), 0.0
    for result, _, _ in walked:
        sums += result.rewards
        ended += float(sums[result.dones].sum())
        sums[result.dones] = 0.0
    by_term = float(torch.stack([result.episode_sums for result, _, _ in walked]).sum()) * cfg.episode_length_s
    if abs(by_term - ended) > 1e-3 * (1 + abs(ended)):
        yield (
            f"ended episodes were rewarded with {ended:.4g}, and their reward terms sum up to {by_term:.4g}: "
            "a term has no weight, or is in no sum"
        )


def _of_the_state(fresh: Env, state: Any, actions: list[Tensor], walked: list[Walked]) -> Iterator[str]:
    """`fresh`, built with another seed, goes on from `state` as the env did that was in it."""
    fresh.restore(state)
    again = [_step(fresh, action) for action in actions]
    for name in StepResult._fields:
        differing = [
            number
            for number, (was, now_is) in enumerate(zip(walked, again, strict=True))
            if not _equal(getattr(was.copy, name), getattr(now_is.copy, name))
        ]
        if differing:
            yield (
                f"from a restored state, {name} differ from step {differing[0]} on: something that steps depend on is "
                "no tensor, number or generator among its attributes (see ppo_lab.states)"
            )
            break
    for key in sorted(state["own"]) if "own" in state else ():
        lacking = state | {"own": {name: value for name, value in state["own"].items() if name != key}}
        try:
            fresh.restore(lacking)
        except ValueError:
            continue
        yield f"it restores a state that lacks {key}"
    try:
        fresh.restore(state | {"own": state.get("own", {}) | {"not_mine": torch.zeros(1)}})
    except ValueError:
        return
    yield "it restores a state that has more than it has"


def _of_time_outs(env: Env, spec: EnvSpec) -> Iterator[str]:
    """An env that has reached its length times out in the next step, and no other env notices."""
    still = torch.zeros(len(env.episode_length_buf), len(spec.actions), device=env.device)
    state = env.state()
    others = env.step(still)
    env.restore(state)
    lengths = env.episode_length_buf.clone()
    lengths[0] = spec.max_episode_length
    env.episode_length_buf = lengths
    result = env.step(still)
    if not (result.dones[0] and result.time_outs[0]):
        yield f"an env of length spec.max_episode_length={spec.max_episode_length} does not time out in the next step"
    if int(env.episode_length_buf[0]) != 0:
        yield "an env that timed out is not reset in the same step"
    for group, tensor in result.observations.items():
        if not _equal(tensor[1:], others.observations[group][1:]) or not _equal(result.rewards[1:], others.rewards[1:]):
            yield "the reset of one env changes what others observe or are rewarded with: reset by a mask"
            break


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return all(torch.equal(tensor, other[group]) for group, tensor in one.items())


def _names(state: Any, prefix: str = "") -> set[str]:
    if not isinstance(state, dict):
        return {prefix}
    return set().union(*(_names(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in state.items()))


def _through_a_file(state: Any) -> Any:
    """As a checkpoint keeps it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


def _global_generators() -> tuple[Any, ...]:
    _, key, position, *_ = np.random.get_state()
    return bytes(torch.get_rng_state().tolist()), random.getstate(), bytes(np.asarray(key)), position
