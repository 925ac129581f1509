"""The penalty toward the policy that a run began with: its gradient, what it does, and what a checkpoint has of it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ppo_lab.config import ExperimentConfig
from ppo_lab.learning.checkpoint import NoCheckpoints
from ppo_lab.learning.loop import REFERENCE, Loop
from ppo_lab.learning.update import LeanUpdate, MiniBatch, kl_divergence, kl_gradients
from ppo_lab.memory.measure.monitor import MemoryMonitor
from ppo_lab.probes.learner import ZeroEnv

Experiment = Callable[..., ExperimentConfig]
WORDS = ["experiment=smoke", "env=hover", "network.hidden_dims=[8,4]", "network.obs_normalization=true"]
HELD = ["init_from=RUN", "init.kl_coef=0.7"]
STILL = ["algorithm.schedule=fixed", "algorithm.learning_rate=1e-30"]


class NoisyEnv(ZeroEnv):
    """Its observations and rewards are drawn anew in every step."""

    def _new_observations(self) -> dict[str, Tensor]:
        return {group: 2 * torch.randn_like(zeros) + 1 for group, zeros in super()._new_observations().items()}

    def step(self, actions: Tensor) -> Any:
        return super().step(actions)._replace(rewards=torch.randn(self.num_envs))


def looping(cfg: ExperimentConfig) -> Loop:
    torch.manual_seed(7)
    return Loop(NoisyEnv(cfg), cfg, MemoryMonitor(torch.device("cpu")), NoCheckpoints(), lambda *_: None)


def initial_kl(loop: Loop) -> float:
    """Of the next iteration, the mean over its mini-batches."""
    kl = loop.iterate(8, loop.update).scalars["Loss/initial_kl"]
    loop.next_iteration += 1
    return kl


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def model(experiment: Experiment) -> dict[str, Any]:
    """The learner after two iterations."""
    loop = looping(experiment(*WORDS, "network.actor.init_std=0.4"))
    loop.learn(2)
    return copy.deepcopy(loop.model())


def begun(experiment: Experiment, model: dict[str, Any], *words: str) -> Loop:
    cfg = experiment(*WORDS, *words)
    loop = looping(cfg)
    loop.begin_with(model, cfg.init)
    loop.alg.train_mode()
    return loop


def test_the_gradients_of_the_kl_divergence_are_autograds() -> None:
    torch.manual_seed(3)
    old_mean, mean = torch.randn(2, 5, 3, dtype=torch.float64)
    old_std, std = torch.rand(2, 3, dtype=torch.float64) + 0.2
    mean, std = mean.requires_grad_(), std.requires_grad_()
    expected = torch.autograd.grad(kl_divergence(old_mean, old_std, mean, std), (mean, std))
    torch.testing.assert_close(kl_gradients(old_mean, old_std, mean.detach(), std.detach()), expected)


@pytest.mark.parametrize("std_type", ["scalar", "log"])
def test_a_step_has_the_weighted_gradient_of_the_kl_divergence_beside_the_others(
    std_type: str, experiment: Experiment
) -> None:
    loop = looping(experiment(*WORDS, *HELD, f"network.actor.std_type={std_type}"))
    actor, update, reference = loop.alg.actor, loop.update, loop.reference
    assert isinstance(update, LeanUpdate)
    assert reference
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for parameter, gradient in zip(update._parameters, update._gradients, strict=True):
        parameter.grad = gradient
    size, actions = loop.networks.actor._rows, reference.std.shape[0]
    seen, done, mean_then, mean_first = (torch.randn(size, n) for n in (actor.obs_dim, actions, actions, actions))
    rest = (torch.randn(size), torch.randn(size), torch.randn(size, 1), torch.randn(size, 1))
    batch = MiniBatch(seen, seen, done, mean_then, *rest)
    update._reference = None
    update._losses = update._losses[:3]
    with torch.no_grad():
        update._differentiate(batch, reference.std)
    without = [parameter.grad.clone() for parameter in actor.parameters() if parameter.grad is not None]

    update._reference, update._losses = reference, torch.zeros(4)
    with torch.no_grad():
        update._differentiate(batch._replace(reference_mean=mean_first), reference.std)
    added = [p.grad - before for p, before in zip(actor.parameters(), without, strict=True) if p.grad is not None]

    mean = actor.mlp(seen)
    actor.distribution.update(mean)
    kl = kl_divergence(mean_first, reference.std, mean, actor.distribution.std[0])
    expected = torch.autograd.grad(0.7 * kl, [*actor.parameters()])
    torch.testing.assert_close(added, [*expected], rtol=1e-4, atol=1e-5)
    assert all(gradient.abs().max() > 1e-3 for gradient in expected)
    torch.testing.assert_close(update._losses[3], kl.detach())


@pytest.mark.parametrize("mixed", ["false", "true"])
def test_it_is_0_as_long_as_the_policy_is_the_one_that_the_run_began_with(
    mixed: str, experiment: Experiment, model: dict[str, Any]
) -> None:
    loop = begun(experiment, model, *HELD, *STILL, f"algorithm.use_mixed_precision={mixed}")
    assert initial_kl(loop) == 0.0
    assert initial_kl(loop) > 0.0, "the policy's normalizer goes on, the other stays"
    assert loop.reference
    assert equal(loop.reference.actor.state_dict(), model["actor_state_dict"])


def test_the_larger_its_weight_the_nearer_the_policy_stays(experiment: Experiment, model: dict[str, Any]) -> None:
    found = []
    for coef in (1e-30, 1.0, 100.0):
        loop = begun(experiment, model, "init_from=RUN", f"init.kl_coef={coef}", "algorithm.schedule=fixed")
        found.append([initial_kl(loop) for _ in range(6)][-1])
    assert found[0] > 1.5 * found[1] > 1.5**2 * found[2] > 0


def test_it_holds_to_the_whole_of_the_old_policy_whatever_else_is_taken(
    experiment: Experiment, model: dict[str, Any]
) -> None:
    loop = begun(experiment, model, *HELD, "init.std=false", "network.actor.init_std=0.9")
    assert loop.reference
    assert equal(loop.reference.actor.state_dict(), model["actor_state_dict"])
    assert torch.equal(loop.reference.std, model["actor_state_dict"]["distribution.std_param"])
    assert loop.alg.actor.state_dict()["distribution.std_param"].unique().item() == pytest.approx(0.9)
    with pytest.raises(ValueError, match=r"no distribution\.log_std_param, which the initial policy has"):
        begun(experiment, model, *HELD, "init.std=false", "network.actor.std_type=log")


def test_a_run_begins_with_the_policy_of_one_that_held_to_another(
    experiment: Experiment, model: dict[str, Any]
) -> None:
    second = begun(experiment, model, *HELD)
    second.learn(1)
    found = copy.deepcopy(second.model())
    assert equal(found[REFERENCE], model["actor_state_dict"])
    third = begun(experiment, found, *HELD)
    assert third.reference
    assert equal(third.reference.actor.state_dict(), found["actor_state_dict"])
    plain = begun(experiment, found)
    assert REFERENCE not in plain.model()
    assert equal(plain.alg.actor.state_dict(), found["actor_state_dict"])


def test_it_goes_on_identically(experiment: Experiment, model: dict[str, Any]) -> None:
    whole = begun(experiment, model, *HELD)
    whole.learn(2)
    saved = copy.deepcopy((whole.model(), whole.state()))
    whole.learn(2)
    resumed = looping(experiment(*WORDS, *HELD))
    resumed.restore(*saved)
    resumed.learn(2)
    for name in ("actor_state_dict", "critic_state_dict", REFERENCE):
        assert equal(resumed.model()[name], whole.model()[name])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m.pop(REFERENCE), f"the saved state has no {REFERENCE}, which a run with init.kl_coef has"),
        (lambda m: m[REFERENCE].pop("mlp.0.bias"), f"the saved state has no {REFERENCE}.mlp.0.bias, which a run with"),
    ],
)
def test_a_checkpoint_without_it_is_refused_before_anything_is_changed(
    spoil: Callable[[dict[str, Any]], Any], message: str, experiment: Experiment, model: dict[str, Any]
) -> None:
    whole = begun(experiment, model, *HELD)
    whole.learn(1)
    saved, state = copy.deepcopy((whole.model(), whole.state()))
    spoil(saved)
    resumed = looping(experiment(*WORDS, *HELD))
    before = copy.deepcopy(resumed.model())
    with pytest.raises(ValueError, match=message):
        resumed.restore(saved, state)
    for name in ("actor_state_dict", "critic_state_dict", REFERENCE):
        assert equal(resumed.model()[name], before[name])


def test_without_a_weight_there_is_nothing_of_it(experiment: Experiment, model: dict[str, Any]) -> None:
    loop = begun(experiment, model, "init_from=RUN")
    assert loop.reference is None
    assert REFERENCE not in loop.model()
    assert "Loss/initial_kl" not in loop.iterate(8, loop.update).scalars
