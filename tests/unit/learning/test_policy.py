"""A policy that was loaded from a checkpoint acts as the learner did."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from ppo_lab.config import ExperimentConfig
from ppo_lab.errors import CheckpointError
from ppo_lab.learning.checkpoint import save
from ppo_lab.learning.policy import load_policy
from ppo_lab.learning.ppo import build_ppo

CPU = torch.device("cpu")

Experiment = Callable[..., ExperimentConfig]


@pytest.mark.parametrize("more", [[], ["network.obs_normalization=true", "network.actor.std_type=log"]])
def test_the_policy_of_a_checkpoint_gives_the_learners_actions(
    more: list[str], experiment: Experiment, tmp_path: Path
) -> None:
    cfg = experiment("experiment=smoke", "env=hover", *more)
    observations = TensorDict({"policy": torch.randn(cfg.num_envs, 17)}, batch_size=[cfg.num_envs], device=CPU)
    alg = build_ppo(cfg, observations)
    alg.eval_mode()
    save(tmp_path / "model_0.pt", alg.save())
    policy = load_policy(cfg, tmp_path / "model_0.pt", CPU)
    with torch.inference_mode():
        assert torch.equal(policy.mean(observations), alg.actor(observations))
    assert policy.spec.actions == ("rotor_0", "rotor_1", "rotor_2", "rotor_3")


def test_a_checkpoint_of_another_network_is_refused_by_name(experiment: Experiment, tmp_path: Path) -> None:
    cfg = experiment("experiment=smoke", "env=hover")
    observations = TensorDict({"policy": torch.randn(cfg.num_envs, 17)}, batch_size=[cfg.num_envs], device=CPU)
    save(tmp_path / "model_0.pt", build_ppo(cfg, observations).save())
    other = experiment("experiment=smoke", "env=hover", "network.hidden_dims=[8]")
    with pytest.raises(CheckpointError, match=r"model_0\.pt does not fit the experiment of its run: .*the actor"):
        load_policy(other, tmp_path / "model_0.pt", CPU)
