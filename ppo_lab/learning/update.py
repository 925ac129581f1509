"""One update of actor and critic: rsl_rl's PPO, with nothing computed twice or thrown away.

The mathematics is that of `rsl_rl.algorithms.PPO.compute_returns` and `update`; losses and weights agree. The rest is
our own: the rollout is gathered into its mini-batches once, and every epoch goes through them again; no action is
sampled; the networks' passes are written out (`perceptron`); gradients lie in one buffer, so that ranks reduce them in
one call; and the host reads nothing before the end (of rmsprop alone, the learning rate, once a mini-batch).
So a mini-batch is a fixed sequence of operations on the same tensors, which a CUDA graph could capture; that is not
built.

In mixed precision the hidden layers are bfloat16; all else is float32. rsl_rl has the last layers and the losses in
bfloat16 too, so that its ratios are less exact.

T = num_steps_per_env, N = num_envs, A = number of actions, B = transitions in a mini-batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from ppo_lab.learning.perceptron import Perceptron

if TYPE_CHECKING:
    from rsl_rl.algorithms import PPO
    from rsl_rl.models import MLPModel
    from tensordict import TensorDict

    from ppo_lab.contracts import Ranks

LOG_SQRT_2_PI = math.log(math.sqrt(2 * math.pi))
LEARNING_RATE_FACTOR = 1.5
MIN_LEARNING_RATE, MAX_LEARNING_RATE = 1e-5, 1e-2
"""Of the adaptive schedule, as rsl_rl has them."""
LOSSES = ("value", "surrogate", "entropy")


class MiniBatch(NamedTuple):
    """B transitions, gathered from the rollout."""

    actor_input: Tensor
    """(B, width). Observations of the actor, normalized where it normalizes; so for the critic."""
    critic_input: Tensor
    actions: Tensor
    """(B, A)."""
    old_mean: Tensor
    """(B, A), of the policy that acted."""
    old_log_prob: Tensor
    """(B,), of the actions."""
    advantages: Tensor
    """(B,), normalized."""
    values: Tensor
    """(B, 1), when the actions were taken."""
    returns: Tensor
    """(B, 1)."""


class LeanUpdate:
    """`ppo_lab.contracts.Update` is the contract."""

    def __init__(self, alg: PPO, ranks: Ranks, num_learning_epochs: int) -> None:
        """Works on the networks, the optimizer and the rollout storage of `alg`."""
        self.num_learning_epochs = num_learning_epochs
        size = alg.storage.num_envs * alg.storage.num_transitions_per_env // alg.num_mini_batches
        self._dtype = torch.bfloat16 if alg.use_mixed_precision else torch.float32
        self._actor = Perceptron(alg.actor.mlp, size, self._dtype)
        self._critic = Perceptron(alg.critic.mlp, size, self._dtype)
        self._alg = alg
        self._ranks = ranks
        self._actor_parameters = list(alg.actor.parameters())
        self._critic_parameters = list(alg.critic.parameters())
        parameters = [*self._actor_parameters, *self._critic_parameters]
        sizes = [parameter.numel() for parameter in parameters]
        device = parameters[0].device
        self._reduced = torch.zeros(sum(sizes) + 1 + len(LOSSES), device=device)  # by all ranks, once a mini-batch
        *flat_gradients, self._kl, self._losses = self._reduced.split([*sizes, 1, len(LOSSES)])
        self._gradients = [flat.view_as(parameter) for flat, parameter in zip(flat_gradients, parameters, strict=True)]
        self._parameters = parameters
        self._no_mean = torch.zeros(1, alg.storage.actions.shape[-1], device=device)

    @property
    def buffers(self) -> list[Tensor]:
        """What the passes through the networks keep from one mini-batch to the next."""
        return [*self._actor.buffers, *self._critic.buffers]

    def __call__(self, last_observations: TensorDict) -> dict[str, float]:
        alg = self._alg
        with torch.no_grad():
            compute_returns(alg, last_observations)
            mini_batches = self._gathered()
            old_std = alg.storage.distribution_params[1][0, 0]  # (A,), the same for every transition
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        self._actor.follow()
        self._critic.follow()
        is_fused = self._begin_steps()
        learning_rate = torch.tensor(alg.learning_rate, dtype=torch.float64, device=self._reduced.device)
        losses = torch.zeros(len(LOSSES), dtype=torch.float64, device=self._reduced.device)
        for _ in range(self.num_learning_epochs):
            for batch in mini_batches:
                self._differentiate(batch, old_std)
                self._ranks.reduce_mean(self._reduced)
                if alg.schedule == "adaptive":
                    learning_rate = adapted(learning_rate, self._kl.squeeze(0), alg.desired_kl)
                    for group in alg.optimizer.param_groups:
                        group["lr"] = learning_rate if is_fused else learning_rate.item()  # rmsprop: one host read
                clip_grad_norm_(self._actor_parameters, alg.max_grad_norm)
                clip_grad_norm_(self._critic_parameters, alg.max_grad_norm)
                alg.optimizer.step()
                self._actor.follow()
                self._critic.follow()
                losses += self._losses
        *sums, alg.learning_rate = torch.cat([losses, learning_rate.unsqueeze(0)]).tolist()
        self._end_steps()
        with torch.no_grad():
            observations = alg.storage.observations.flatten(0, 1)
            alg.actor.update_normalization(observations)
            alg.critic.update_normalization(observations)
        alg.storage.clear()
        steps = self.num_learning_epochs * alg.num_mini_batches
        return {name: total / steps for name, total in zip(LOSSES, sums, strict=True)}

    def _gathered(self) -> list[MiniBatch]:
        """The rollout, shuffled and split. What does not fill a mini-batch is left out, as in rsl_rl."""
        alg, storage = self._alg, self._alg.storage
        advantages = storage.advantages.flatten()
        size = len(advantages) // alg.num_mini_batches
        order = torch.randperm(alg.num_mini_batches * size, device=advantages.device)
        if alg.normalize_advantage_per_mini_batch:
            advantages = advantages[order]
            normalize(advantages.split(size), self._ranks)
        else:
            normalize([advantages], self._ranks)
            advantages = advantages[order]
        actor_input = self._input(alg.actor, order)
        is_shared = alg.actor.obs_groups == alg.critic.obs_groups
        is_shared &= not (alg.actor.obs_normalization or alg.critic.obs_normalization)
        columns = (
            actor_input,
            actor_input if is_shared else self._input(alg.critic, order),
            storage.actions.flatten(0, 1)[order],
            storage.distribution_params[0].flatten(0, 1)[order],
            storage.actions_log_prob.flatten()[order],
            advantages,
            storage.values.flatten(0, 1)[order],
            storage.returns.flatten(0, 1)[order],
        )
        return [MiniBatch(*parts) for parts in zip(*(column.split(size) for column in columns), strict=True)]

    def _input(self, network: MLPModel, order: Tensor) -> Tensor:
        """What the network sees of every transition, in this order."""
        groups = [self._alg.storage.observations[group].flatten(0, 1)[order] for group in network.obs_groups]
        return network.obs_normalizer(groups[0] if len(groups) == 1 else torch.cat(groups, dim=-1)).to(self._dtype)

    def _differentiate(self, batch: MiniBatch, old_std: Tensor) -> None:
        """Fills the buffer that ranks reduce: gradients of the loss, the KL divergence and the losses."""
        alg = self._alg
        self._reduced.zero_()
        mean = self._actor.forward(batch.actor_input).requires_grad_()
        values = self._critic.forward(batch.critic_input).requires_grad_()
        alg.actor.distribution.update(self._no_mean)
        std = alg.actor.distribution.std.squeeze(0)  # (A,)
        ratio = torch.exp(log_prob(batch.actions, mean, std) - batch.old_log_prob)
        surrogate = surrogate_loss(ratio, batch.advantages, alg.clip_param)
        value = value_loss(values, batch, alg.clip_param if alg.use_clipped_value_loss else None)
        entropy = (0.5 + LOG_SQRT_2_PI + std.log()).sum()
        loss = surrogate + alg.value_loss_coef * value - alg.entropy_coef * entropy
        loss.backward()
        assert mean.grad is not None
        assert values.grad is not None
        self._actor.backward(mean.grad)
        self._critic.backward(values.grad)
        with torch.no_grad():
            if alg.schedule == "adaptive":
                self._kl.copy_(kl_divergence(batch.old_mean, old_std, mean, std))
            torch.stack([value, surrogate, entropy], out=self._losses)

    def _begin_steps(self) -> bool:
        """Lets the optimizer step in one fused kernel, which takes the learning rate as a tensor, where it has one."""
        optimizer = self._alg.optimizer
        is_fused = "fused" in optimizer.defaults
        if is_fused:
            for group in optimizer.param_groups:
                group["fused"] = True
            for parameter, state in optimizer.state.items():  # a checkpoint has the number of steps on the CPU
                if "step" in state:
                    state["step"] = state["step"].to(parameter.device)
        return is_fused

    def _end_steps(self) -> None:
        """Leaves the optimizer's settings as rsl_rl has them: so they go into a checkpoint."""
        alg = self._alg
        for group in alg.optimizer.param_groups:
            if "fused" in group:
                group["fused"] = None
            if alg.schedule == "adaptive":
                group["lr"] = alg.learning_rate


def compute_returns(alg: PPO, last_observations: TensorDict) -> None:
    """Writes returns and advantages, (T, N, 1), into the storage: generalized advantage estimation (1506.02438).

    delta_t = r_t + gamma V_t+1 - V_t and A_t = delta_t + gamma lambda A_t+1, cut where an episode ended;
    R_t = A_t + V_t. Advantages are not normalized.
    """
    storage = alg.storage
    next_values = alg.critic(last_observations)
    advantage = torch.zeros_like(next_values)
    for step in reversed(range(storage.num_transitions_per_env)):
        values = storage.values[step]
        discount = (1.0 - storage.dones[step].float()).mul_(alg.gamma)
        delta = (discount * next_values).add_(storage.rewards[step]).sub_(values)
        advantage.mul_(discount.mul_(alg.lam)).add_(delta)
        torch.add(advantage, values, out=storage.returns[step])
        next_values = values
    torch.sub(storage.returns, storage.values, out=storage.advantages)


def normalize(parts: Sequence[Tensor], ranks: Ranks) -> None:
    """Gives each part, together with the same part of all other ranks, a mean of 0 and a deviation of 1, in place.

    The parts are of one size n on every rank. The variance of R ranks' union is
    ((n - 1) mean(s_r^2) + n (mean(m_r^2) - mean(m_r)^2)) / (n - 1/R), of their means m_r and deviations s_r.
    """
    size = len(parts[0])
    means = torch.stack([part.mean() for part in parts]).double()
    variances = torch.stack([part.std() for part in parts]).double().square_()
    moments = torch.stack([means, means.square(), variances])
    ranks.reduce_mean(moments)
    means, mean_squares, variances = moments
    between = mean_squares - means.square()
    variances = ((size - 1) * variances + size * between) / (size - 1 / ranks.world_size)
    deviations = variances.sqrt().float()
    for part, mean, deviation in zip(parts, means.float(), deviations, strict=True):
        part.sub_(mean).div_(deviation + 1e-8)


def adapted(learning_rate: Tensor, kl: Tensor, desired_kl: float) -> Tensor:
    """The learning rate () float64 for a step that begins with this KL divergence from the policy that acted."""
    lower = (learning_rate / LEARNING_RATE_FACTOR).clamp(min=MIN_LEARNING_RATE)
    higher = (learning_rate * LEARNING_RATE_FACTOR).clamp(max=MAX_LEARNING_RATE)
    is_small = (kl < desired_kl / 2.0) & (kl > 0.0)
    return torch.where(kl > desired_kl * 2.0, lower, torch.where(is_small, higher, learning_rate))


def log_prob(actions: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(B,) of a Gaussian. actions, mean: (B, A), std: (A,)."""
    return (-((actions - mean) ** 2) / (2 * std**2) - std.log() - LOG_SQRT_2_PI).sum(dim=-1)


def kl_divergence(old_mean: Tensor, old_std: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(), KL(old || new) of Gaussians, summed over actions, mean over the batch. Means: (B, A), deviations: (A,)."""
    variance_ratio = (old_std / std).square()
    distance = ((old_mean - mean) / std).square().mean(dim=0)
    return (0.5 * (variance_ratio + distance - 1 - variance_ratio.log())).sum()


def surrogate_loss(ratio: Tensor, advantages: Tensor, clip_param: float) -> Tensor:
    """PPO's clipped objective (1707.06347), negated. Both (B,)."""
    clipped = ratio.clamp(1.0 - clip_param, 1.0 + clip_param)
    return torch.max(-advantages * ratio, -advantages * clipped).mean()


def value_loss(values: Tensor, batch: MiniBatch, clip_param: float | None) -> Tensor:
    """Mean squared error to the returns; clipped: not less than that of values at most `clip_param` from the old."""
    losses = (values - batch.returns).square()
    if clip_param is None:
        return losses.mean()
    clipped = batch.values + (values - batch.values).clamp(-clip_param, clip_param)
    return torch.max(losses, (clipped - batch.returns).square()).mean()
