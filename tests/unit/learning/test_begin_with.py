"""What a new run takes of another one's checkpoint, and what stays its own."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ppo_lab.config import ExperimentConfig
from ppo_lab.learning.checkpoint import NoCheckpoints
from ppo_lab.learning.loop import Loop
from ppo_lab.memory.measure.monitor import MemoryMonitor
from ppo_lab.probes.learner import ZeroEnv

Experiment = Callable[..., ExperimentConfig]
WORDS = ["experiment=smoke", "network.hidden_dims=[8]", "network.obs_normalization=true"]


def looping(cfg: ExperimentConfig) -> Loop:
    return Loop(ZeroEnv(cfg), cfg, MemoryMonitor(torch.device("cpu")), NoCheckpoints(), lambda *_: None)


@pytest.fixture
def model(experiment: Experiment) -> dict[str, Any]:
    """The learner after two iterations."""
    loop = looping(experiment(*WORDS, "algorithm.learning_rate=0.01"))
    loop.learn(2)
    return copy.deepcopy(loop.model())


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def begun(experiment: Experiment, model: dict[str, Any], *words: str) -> Loop:
    cfg = experiment(*WORDS, "algorithm.learning_rate=0.0007", *words)
    loop = looping(cfg)
    loop.begin_with(model, cfg.init)
    return loop


def test_a_run_begins_with_weights_and_normalizers_and_all_else_its_own(
    experiment: Experiment, model: dict[str, Any]
) -> None:
    loop = begun(experiment, model)
    assert equal(loop.alg.actor.state_dict(), model["actor_state_dict"])
    assert equal(loop.alg.critic.state_dict(), model["critic_state_dict"])
    assert loop.alg.actor.state_dict()["obs_normalizer.count"] == 2 * 16 * 8
    assert loop.next_iteration == 0
    assert loop.alg.learning_rate == 0.0007
    assert loop.alg.optimizer.state_dict()["state"] == {}


def test_moments_are_taken_without_the_learning_rate(experiment: Experiment, model: dict[str, Any]) -> None:
    there = copy.deepcopy(model["optimizer_state_dict"])
    loop = begun(experiment, model, "init.optimizer=true")
    own = loop.alg.optimizer.state_dict()
    assert own["state"].keys() == there["state"].keys() != set()
    assert all(equal(own["state"][index], there["state"][index]) for index in own["state"])
    assert [group["lr"] for group in own["param_groups"]] == [0.0007]
    assert loop.alg.learning_rate == 0.0007
    loop.learn(1)
    assert loop.alg.optimizer.state_dict()["state"][0]["step"] == there["state"][0]["step"] + 20


@pytest.mark.parametrize("std_type", ["scalar", "log"])
def test_without_std_the_deviations_begin_as_configured(
    std_type: str, experiment: Experiment, model: dict[str, Any]
) -> None:
    words = ("init.std=false", "network.actor.init_std=0.3", f"network.actor.std_type={std_type}")
    loop = begun(experiment, model, *words)
    std = loop.alg.get_policy()
    std.distribution.update(torch.zeros(1, len(loop.env.spec.actions)))
    assert torch.allclose(std.output_std, torch.tensor(0.3))
    assert torch.equal(loop.alg.actor.mlp[0].weight, model["actor_state_dict"]["mlp.0.weight"])
    assert not torch.allclose(model["actor_state_dict"]["distribution.std_param"], torch.tensor(0.3))


def test_without_critic_it_begins_anew_even_with_another_shape(experiment: Experiment, model: dict[str, Any]) -> None:
    loop = begun(experiment, model, "init.critic=false", "network.critic.hidden_dims=[5]")
    assert loop.alg.critic.mlp[0].weight.shape[0] == 5
    assert loop.alg.critic.state_dict()["obs_normalizer.count"] == 0
    assert equal(loop.alg.actor.state_dict(), model["actor_state_dict"])


DO_NOT_FIT: dict[str, Callable[[dict[str, Any]], Any]] = {
    "mlp.0.bias, which the actor has": lambda m: m["actor_state_dict"].pop("mlp.0.bias"),
    "the critic has no more, which": lambda m: m["critic_state_dict"].update(more=torch.zeros(1)),
    "exp_avg of parameter 1, which the optimizer has": lambda m: m["optimizer_state_dict"]["state"][1].pop("exp_avg"),
}


@pytest.mark.parametrize("message", DO_NOT_FIT)
def test_what_does_not_fit_is_refused_before_anything_is_changed(
    message: str, experiment: Experiment, model: dict[str, Any]
) -> None:
    cfg = experiment(*WORDS, "init.optimizer=true")
    loop = looping(cfg)
    before = copy.deepcopy(loop.model())
    DO_NOT_FIT[message](model)
    with pytest.raises(ValueError, match=message):
        loop.begin_with(model, cfg.init)
    for network in ("actor_state_dict", "critic_state_dict"):
        assert equal(loop.model()[network], before[network])


def test_an_observation_that_the_normalizer_never_saw_vary_is_named(
    experiment: Experiment, model: dict[str, Any]
) -> None:
    normalizer = {name: model["actor_state_dict"][f"obs_normalizer.{name}"] for name in ("_mean", "_std")}
    normalizer["_mean"].zero_()
    normalizer["_std"].fill_(1.0)
    assert begun(experiment, model).unfamiliar_observations() == {}
    loop = begun(experiment, model)
    terms = loop.env.spec.observations["policy"]
    assert [*terms][:3] == ["base_ang_vel", "projected_gravity", "commands"]
    normalizer["_mean"][0, 7] = -0.5  # the second command, here 0
    normalizer["_std"][0, 7] = 0.0
    loop.begin_with(model, experiment(*WORDS).init)
    assert loop.unfamiliar_observations() == {"commands": pytest.approx(50.0)}  # 0.5 / (0 + 0.01)
    plain = looping(experiment("experiment=smoke", "network.hidden_dims=[8]"))
    assert plain.unfamiliar_observations() == {}
