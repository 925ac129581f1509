"""A trained policy, loaded from a checkpoint without the learner: observations in, actions out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rsl_rl.models import MLPModel
from tensordict import TensorDict

from ppo_lab.config import ExperimentConfig
from ppo_lab.errors import CheckpointError
from ppo_lab.learning.checkpoint import load
from ppo_lab.learning.ppo import actor_config, obs_groups
from ppo_lab.states import check_fits

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ppo_lab.contracts import State


class ActorPolicy:
    """The actor of an experiment. `ppo_lab.contracts.Policy` is the contract."""

    def __init__(self, cfg: ExperimentConfig, model: State, device: torch.device) -> None:
        """`model`: what a checkpoint `model_<iteration>.pt` holds. Raises a ValueError where it does not fit `cfg`."""
        self.spec = cfg.env.spec()
        self.iteration: int | None = model.get("iter")
        """The last one that it was trained in, counted from 0; None where the checkpoint does not say."""
        example = {group: torch.zeros(1, self.spec.width(group)) for group in self.spec.observations}
        settings = {key: value for key, value in actor_config(cfg).items() if key != "class_name"}
        groups, actions = obs_groups(self.spec), len(self.spec.actions)
        self._actor = MLPModel(TensorDict(example, batch_size=[1]), groups, "actor", actions, **settings)
        check_fits("the actor", model["actor_state_dict"], self._actor.state_dict())
        self._actor.load_state_dict(model["actor_state_dict"])
        self._actor.to(device).eval()

    @torch.inference_mode()
    def act(self, observations: TensorDict) -> Tensor:
        return self._actor(observations, stochastic_output=True)

    @torch.inference_mode()
    def mean(self, observations: TensorDict) -> Tensor:
        return self._actor(observations)

    def network(self) -> nn.Module:
        """A copy of the actor alone, on the CPU: observations (N, width) in, mean actions (N, A) out.

        Its normalizer is in it, and TorchScript and ONNX can be made of it.
        """
        return self._actor.as_jit().cpu().eval()


def load_policy(cfg: ExperimentConfig, checkpoint: Path, device: torch.device) -> ActorPolicy:
    """The policy that the run of `cfg` saved in `checkpoint`. Raises a CheckpointError."""
    model = load(checkpoint)
    try:
        return ActorPolicy(cfg, model, device)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{checkpoint} does not fit the experiment of its run: {error}") from None
