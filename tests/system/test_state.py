"""The shipped envs keep their contract: see `ppo_lab.envs.conformance`."""

import io
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch

from ppo_lab import envs
from ppo_lab.config import ExperimentConfig
from ppo_lab.contracts import Env
from ppo_lab.envs import make_env, randomization
from ppo_lab.envs.conformance import violations
from ppo_lab.envs.scenes import make_scenes

STEPS, EVERY, AHEAD, N = 150, 15, 8, 16
"""Steps of the uninterrupted run, between the states kept of it, and walked again from each; envs."""


WALK_IS_SLOW = [pytest.param(name, marks=pytest.mark.slow) if name == "go2_walk" else name for name in envs.names()]
"""The walk keeps the contract with every term of randomization in another test."""


@pytest.mark.parametrize("name", WALK_IS_SLOW)
def test_a_shipped_env_keeps_the_contract(
    name: str, simulator: torch.device, experiment: Callable[..., ExperimentConfig]
) -> None:
    make = import_module(f"ppo_lab.envs.tasks.{name}").make
    assert violations(make, experiment(f"env={name}").env) == []


@pytest.mark.parametrize("name", ["go2_walk", "go2_backflip"])
def test_an_env_with_every_term_of_randomization_keeps_the_contract(
    name: str, simulator: torch.device, experiment: Callable[..., ExperimentConfig]
) -> None:
    make = import_module(f"ppo_lab.envs.tasks.{name}").make
    commands = "+env.randomization.commands={when:interval,operation:add,low:{ang_vel_rad_s:-1},high:{ang_vel_rad_s:1}}"
    soon = "env.randomization.push.interval_s=[0.1,0.2]"
    cfg = experiment(f"env={name}", "randomization=full", soon, *([commands] if name == "go2_walk" else [])).env
    assert set(randomization.names()) - set(cfg.randomization) == (set() if name == "go2_walk" else {"commands"})
    assert violations(make, cfg) == []


@pytest.mark.parametrize("name", WALK_IS_SLOW)
def test_three_scenes_of_a_shipped_env_keep_the_contract(
    name: str, simulator: torch.device, experiment: Callable[..., ExperimentConfig]
) -> None:
    cfg = experiment(f"env={name}", "num_envs=7", "envs_per_scene=3", "algorithm.num_mini_batches=1")

    def make(_: Any, num_envs: int, device: torch.device, seed: int) -> Env:
        assert num_envs == cfg.num_envs
        return make_scenes(cfg, device, seed)

    assert violations(make, cfg.env, cfg.num_envs) == []


def step(env: Env, actions: torch.Tensor) -> list[torch.Tensor]:
    observations, *rest = env.step(actions)
    return [*observations.values(), *rest]


def poison(env: Any) -> None:
    """Writes NaN into every array of the simulator that a state leaves out and a step should compute anew."""
    from genesis.utils import array_class  # seconds, of the worker alone that has the simulator
    from genesis.utils.array_class import ArrayItem, DataKind

    from ppo_lab.envs.genesis.state import CARRIED_OVER

    if env._scene is None:  # an env without the simulator
        return
    for item in env._scene._sim.data(frozenset({DataKind.DERIVED, DataKind.SCRATCH})):
        if isinstance(item, ArrayItem) and not (item.kind == DataKind.DERIVED and CARRIED_OVER.search(item.name)):
            view = array_class.data_to_array(item.array, to_torch=True, copy=False)
            if view.is_floating_point():
                view.fill_(float("nan"))


@pytest.mark.parametrize("name", envs.names())
@torch.inference_mode()
def test_from_any_state_the_coming_steps_are_identical_whatever_the_simulator_held(
    name: str, simulator: torch.device, experiment: Callable[..., ExperimentConfig]
) -> None:
    cfg = experiment(f"env={name}", "env.episode_length_s=1.0")
    env = make_env(cfg.env, N, simulator, seed=1)
    actions = torch.randn(STEPS, N, len(env.spec.actions), generator=torch.Generator().manual_seed(0))
    states, walked = {}, []
    for now in range(STEPS):
        if now % EVERY == EVERY - 1:
            states[now] = io.BytesIO()
            torch.save(env.state(), states[now])
        walked.append(step(env, actions[now]))
    assert sum(int(dones.sum()) for *_, dones, _, _ in walked) > N, "without resets it would prove little"

    for start in [104, 14, 134, 59]:  # back and forth
        poison(env)
        env.restore(torch.load(io.BytesIO(states[start].getvalue()), weights_only=True))
        for now in range(start, start + AHEAD):
            for there, here in zip(walked[now], step(env, actions[now]), strict=True):
                assert torch.equal(there, here), f"{now - start} steps after step {start}"


def test_the_simulators_arrays_have_to_fit(
    simulator: torch.device, experiment: Callable[..., ExperimentConfig]
) -> None:
    env = make_env(experiment("env=hover").env, 2, simulator, seed=1)
    state = env.state()
    state["simulator"] = {**state["simulator"], "rigid_solver.wings": torch.zeros(6, 4)}
    with pytest.raises(ValueError, match=r"^the simulator has no rigid_solver\.wings, which the saved state has$"):
        env.restore(state)


def test_a_state_of_a_scene_with_looks_restores_into_one_without(
    simulator: torch.device, experiment: Callable[..., ExperimentConfig]
) -> None:
    env = make_env(experiment("env=go2").env, 2, simulator, seed=1)
    state = env.state()
    ends = next(name for name in state["simulator"] if name.endswith("links.vgeom_end"))
    own = state["simulator"][ends]
    assert not own.eq(34).any()
    env.restore({**state, "simulator": {**state["simulator"], ends: torch.full_like(own, 34)}})
    assert torch.equal(env.state()["simulator"][ends], own), "the scene would look for shapes that it has not"
