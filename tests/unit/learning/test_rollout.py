"""The lean rollout against rsl_rl's own, with the same noise."""

from collections.abc import Callable

import pytest
import torch

from ppo_lab.config import ExperimentConfig
from ppo_lab.learning.perceptron import Networks
from ppo_lab.learning.rollout import Rollout
from tests.unit.learning.test_update import SMALL, fill, learner, observations_of

Experiment = Callable[..., ExperimentConfig]
STORED = ("actions", "rewards", "dones", "values", "actions_log_prob")


@pytest.mark.parametrize(
    "words",
    [
        ["env=hover"],
        ["env=go2", SMALL],
        ["env=hover", SMALL, "network.obs_normalization=true", "network.actor.std_type=log"],
        ["env=hover", SMALL, "network.activation=gelu"],
        ["env=hover", SMALL, "num_steps_per_env=2", "algorithm.num_mini_batches=8"],  # envs > rows of a mini-batch
    ],
)
def test_a_rollout_is_rsl_rls_to_the_last_bit(words: list[str], experiment: Experiment) -> None:
    cfg = experiment("experiment=smoke", *words)
    theirs, ours = learner(cfg), learner(cfg)
    fill(theirs, cfg, seed=3)
    rollout = Rollout(ours, Networks.of(ours))
    torch.manual_seed(3)
    with torch.inference_mode():
        rollout.begin()
        for _ in range(cfg.num_steps_per_env):
            rollout.act(observations_of(cfg))
            rewards = torch.randn(cfg.num_envs)
            dones, late = torch.rand(cfg.num_envs) < 0.1, torch.rand(cfg.num_envs) < 0.5
            observations_of(cfg)
            rollout.enter(rewards, dones, dones & late)
    for name in STORED:
        assert torch.equal(getattr(ours.storage, name), getattr(theirs.storage, name)), name
    for group, stored in theirs.storage.observations.items():
        assert torch.equal(ours.storage.observations[group], stored)
    assert theirs.storage.distribution_params is not None
    assert ours.storage.distribution_params is not None
    for here, there in zip(ours.storage.distribution_params, theirs.storage.distribution_params, strict=True):
        assert torch.equal(here, there)
    assert ours.storage.step == theirs.storage.step == cfg.num_steps_per_env


def test_actions_of_a_step_that_is_not_complete_are_known(experiment: Experiment) -> None:
    """Where the env breaks over them, the guard looks at them."""
    cfg = experiment("experiment=smoke", "env=hover", SMALL)
    alg = learner(cfg)
    rollout = Rollout(alg, Networks.of(alg))
    rollout.begin()
    actions = rollout.act(observations_of(cfg))
    assert alg.transition.actions is actions
    rollout.enter(*(torch.zeros(cfg.num_envs) for _ in range(3)))
    assert alg.transition.actions is None


def test_in_mixed_precision_the_policy_acts_as_the_update_sees_it(experiment: Experiment) -> None:
    """The first mini-batch's means are those that acted: else the KL divergence would begin above 0."""
    cfg = experiment("experiment=smoke", "env=hover", SMALL, "algorithm.use_mixed_precision=true")
    alg = learner(cfg)
    networks = Networks.of(alg)
    rollout = Rollout(alg, networks)
    rollout.begin()
    observations = observations_of(cfg)
    rollout.act(observations)
    acted = alg.storage.distribution_params
    assert acted is not None
    inputs = observations["policy"].to(torch.bfloat16)
    torch.testing.assert_close(networks.actor.forward(inputs), acted[0][0], rtol=1e-6, atol=1e-6)
    assert not torch.equal(acted[0][0], alg.actor(observations)), "in float32 they are others"
