"""One update of actor and critic: rsl_rl's PPO, with nothing computed twice or thrown away.

The mathematics is that of `rsl_rl.algorithms.PPO.compute_returns` and `update`; losses and weights agree. The rest is
our own: the rollout is gathered into its mini-batches once, and every epoch goes through them again; no action is
sampled; the gradients of the losses and the networks' passes (`perceptron`) are written out; gradients lie in one
buffer, so that ranks reduce them in one call; and the host reads nothing before the end (of rmsprop alone, the learning
rate, once a mini-batch). So `_take_steps` is a fixed sequence of operations on the same tensors, which a CUDA graph
could capture; that is not built.

In mixed precision the hidden layers are bfloat16; all else is float32. rsl_rl has the last layers and the losses in
bfloat16 too, so that its ratios are less exact.

In a run with `init.kl_coef` the loss has one more term, which rsl_rl does not know: `init.kl_coef` times the KL
divergence of the policy that the run began with from the learned one.

T = num_steps_per_env, N = num_envs, A = number of actions, B = transitions in a mini-batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ppo_lab.learning.perceptron import Networks

if TYPE_CHECKING:
    from rsl_rl.algorithms import PPO
    from rsl_rl.models import MLPModel
    from rsl_rl.modules.distribution import GaussianDistribution
    from tensordict import TensorDict

    from ppo_lab.contracts import Ranks
    from ppo_lab.learning.reference import Reference

LOG_SQRT_2_PI = math.log(math.sqrt(2 * math.pi))
LEARNING_RATE_FACTOR = 1.5
MIN_LEARNING_RATE, MAX_LEARNING_RATE = 1e-5, 1e-2
"""Of the adaptive schedule, as rsl_rl has them."""
LOSSES = ("value", "surrogate", "entropy")
INITIAL_KL = "initial_kl"
"""One more of a run with `init.kl_coef`: KL(initial policy || policy), not weighted."""


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
    reference_mean: Tensor | None = None
    """(B, A), of the policy that the run began with; None in a run that does not hold to it."""


class LeanUpdate:
    """`ppo_lab.contracts.Update` is the contract."""

    def __init__(
        self, alg: PPO, networks: Networks, ranks: Ranks, num_learning_epochs: int, reference: Reference | None = None
    ) -> None:
        """Works on the networks, the optimizer and the rollout storage of `alg`.

        `reference`: the policy that the loss holds the learned one near.
        """
        self.num_learning_epochs = num_learning_epochs
        self._alg, self._networks, self._ranks, self._reference = alg, networks, ranks, reference
        self._names = (*LOSSES, INITIAL_KL) if reference else LOSSES
        self._is_fused = "fused" in alg.optimizer.defaults
        of_actor, of_critic = list(alg.actor.parameters()), list(alg.critic.parameters())
        self._parameters = [*of_actor, *of_critic]
        sizes = [parameter.numel() for parameter in self._parameters]
        device = self._parameters[0].device
        self._reduced = torch.zeros(sum(sizes) + 1 + len(self._names), device=device)  # by all ranks, once a mini-batch
        *flat, self._kl, self._losses = self._reduced.split([*sizes, 1, len(self._names)])
        self._gradients = [part.view_as(parameter) for part, parameter in zip(flat, self._parameters, strict=True)]
        by_network = [sum(sizes[: len(of_actor)]), sum(sizes[len(of_actor) :])]
        self._gradients_by_network = self._reduced[: sum(sizes)].split(by_network)
        self._learning_rate = torch.zeros((), dtype=torch.float64, device=device)
        # As the optimizer's fused kernels take it: those of GPUs take float32 alone.
        self._step_size = self._learning_rate.to(torch.float32 if device.type == "cuda" else torch.float64, copy=True)
        self._loss_sums = torch.zeros(len(self._names), dtype=torch.float64, device=device)
        self._no_mean = torch.zeros(1, alg.storage.actions.shape[-1], device=device)

    @torch.no_grad()
    def __call__(self, last_observations: TensorDict) -> dict[str, float]:
        alg = self._alg
        self._networks.follow()
        last = network_input(alg.critic, [last_observations[group] for group in alg.critic.obs_groups])
        compute_returns(alg, self._networks.critic.predict(last))
        columns = self._gathered()
        old_std = alg.storage.distribution_params[1][0, 0]  # (A,), the same for every transition
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        self._begin_steps()
        self._take_steps(old_std, *columns)
        *sums, alg.learning_rate = torch.cat([self._loss_sums, self._learning_rate.unsqueeze(0)]).tolist()
        self._end_steps()
        observations = alg.storage.observations.flatten(0, 1)
        alg.actor.update_normalization(observations)
        alg.critic.update_normalization(observations)
        alg.storage.clear()
        steps = self.num_learning_epochs * alg.num_mini_batches
        return {name: total / steps for name, total in zip(self._names, sums, strict=True)}

    def _take_steps(self, old_std: Tensor, *columns: Tensor) -> None:
        """All steps of the optimizer: always the same operations on tensors, none of which the host reads.

        `columns`: as in MiniBatch, of all mini-batches one after the other.
        """
        alg, is_fused = self._alg, self._is_fused
        size = len(columns[0]) // alg.num_mini_batches
        mini_batches = [MiniBatch(*parts) for parts in zip(*(column.split(size) for column in columns), strict=True)]
        self._loss_sums.zero_()
        for batch in mini_batches * self.num_learning_epochs:
            self._differentiate(batch, old_std)
            self._ranks.reduce_mean(self._reduced)
            if alg.schedule == "adaptive":
                self._learning_rate.copy_(adapted(self._learning_rate, self._kl.squeeze(0), alg.desired_kl))
                self._step_size.copy_(self._learning_rate)
                for group in alg.optimizer.param_groups:
                    group["lr"] = self._step_size if is_fused else self._learning_rate.item()
            for gradient in self._gradients_by_network:
                clip_norm(gradient, alg.max_grad_norm)
            alg.optimizer.step()
            self._networks.follow()
            self._loss_sums += self._losses

    def _gathered(self) -> list[Tensor]:
        """The rollout, shuffled, column by column of MiniBatch. What does not fill a mini-batch is left out."""
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
        return [
            actor_input,
            actor_input if is_shared else self._input(alg.critic, order),
            storage.actions.flatten(0, 1)[order],
            storage.distribution_params[0].flatten(0, 1)[order],
            storage.actions_log_prob.flatten()[order],
            advantages,
            storage.values.flatten(0, 1)[order],
            storage.returns.flatten(0, 1)[order],
            *([self._reference_mean(order.split(size))] if self._reference else []),
        ]

    def _reference_mean(self, orders: Sequence[Tensor]) -> Tensor:
        """The reference's mean actions for the transitions of `orders`, (transitions, A), one order at a time."""
        assert self._reference
        perceptron, actor = self._reference.perceptron, self._reference.actor
        return torch.cat([perceptron.predict(self._input(actor, order)) for order in orders])

    def _input(self, network: MLPModel, order: Tensor) -> Tensor:
        """What the network sees of every transition, in this order."""
        observations = self._alg.storage.observations
        groups = [observations[group].flatten(0, 1)[order] for group in network.obs_groups]
        return network_input(network, groups).to(self._networks.dtype)

    def _differentiate(self, batch: MiniBatch, old_std: Tensor) -> None:
        """Fills the buffer that ranks reduce: gradients of the loss, the KL divergence and the losses."""
        alg, (actor, critic) = self._alg, self._networks
        mean, values = actor.forward(batch.actor_input), critic.forward(batch.critic_input)
        alg.actor.distribution.update(self._no_mean)
        std = alg.actor.distribution.std.squeeze(0)  # (A,)
        surrogate, mean_gradient, std_gradient = surrogate_loss(batch, mean, std, alg.clip_param)
        value, value_gradient = value_loss(batch, values, alg.clip_param if alg.use_clipped_value_loss else None)
        entropy = (0.5 + LOG_SQRT_2_PI + std.log()).sum()
        std_gradient -= alg.entropy_coef / std
        losses = [value, surrogate, entropy]
        if self._reference and batch.reference_mean is not None:
            then = batch.reference_mean, self._reference.std
            losses.append(kl_divergence(*then, mean, std))
            for gradient, more in zip((mean_gradient, std_gradient), kl_gradients(*then, mean, std), strict=True):
                gradient.add_(more, alpha=self._reference.coef)
        actor.backward(mean_gradient)
        critic.backward(value_gradient.mul_(alg.value_loss_coef))
        write_std_gradient(alg.actor.distribution, std, std_gradient)
        torch.stack(losses, out=self._losses)
        if alg.schedule == "adaptive":
            self._kl.copy_(kl_divergence(batch.old_mean, old_std, mean, std))

    def _begin_steps(self) -> None:
        """Lets the optimizer step in one fused kernel, which takes the learning rate as a tensor, where it has one."""
        optimizer = self._alg.optimizer
        self._learning_rate.fill_(self._alg.learning_rate)
        if self._is_fused:
            for group in optimizer.param_groups:
                group["fused"] = True
            for parameter, state in optimizer.state.items():  # a checkpoint has the number of steps on the CPU
                if "step" in state:
                    state["step"] = state["step"].to(parameter.device)

    def _end_steps(self) -> None:
        """Leaves the optimizer's settings as rsl_rl has them: so they go into a checkpoint."""
        alg = self._alg
        for group in alg.optimizer.param_groups:
            if "fused" in group:
                group["fused"] = None
            if alg.schedule == "adaptive":
                group["lr"] = alg.learning_rate


def compute_returns(alg: PPO, last_values: Tensor) -> None:
    """Writes returns and advantages, (T, N, 1), into the storage: generalized advantage estimation (1506.02438).

    `last_values`, (N, 1), are of the observations after the rollout.
    delta_t = r_t + gamma V_t+1 - V_t and A_t = delta_t + gamma lambda A_t+1, cut where an episode ended;
    R_t = A_t + V_t. Advantages are not normalized.
    """
    storage, next_values = alg.storage, last_values
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


def network_input(network: MLPModel, groups: Sequence[Tensor]) -> Tensor:
    """(B, width) of its observation groups, normalized where it normalizes."""
    return network.obs_normalizer(groups[0] if len(groups) == 1 else torch.cat(list(groups), dim=-1))


def clip_norm(gradient: Tensor, max_norm: float) -> None:
    """Scales a network's gradients, in place, to a norm of at most `max_norm`, as torch's `clip_grad_norm_` does."""
    gradient.mul_((max_norm / (torch.linalg.vector_norm(gradient) + 1e-6)).clamp_(max=1.0))


def log_prob(actions: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(B,) of a Gaussian, to the last bit as torch's. actions, mean: (B, A), std: (A,)."""
    return (-((actions - mean) ** 2) / (2 * std**2) - std.log() - LOG_SQRT_2_PI).sum(dim=-1)


def kl_divergence(old_mean: Tensor, old_std: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(), KL(old || new) of Gaussians, summed over actions, mean over the batch. Means: (B, A), deviations: (A,)."""
    variance_ratio = (old_std / std).square()
    distance = ((old_mean - mean) / std).square().mean(dim=0)
    return (0.5 * (variance_ratio + distance - 1 - variance_ratio.log())).sum()


def kl_gradients(old_mean: Tensor, old_std: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Those of `kl_divergence` in `mean`, (B, A), and in `std`, (A,)."""
    moves = mean - old_mean
    variance = old_std.square() + moves.square().mean(dim=0)
    return moves / (len(moves) * std.square()), 1 / std - variance / std**3


def surrogate_loss(batch: MiniBatch, mean: Tensor, std: Tensor, clip_param: float) -> tuple[Tensor, Tensor, Tensor]:
    """PPO's clipped objective (1707.06347), negated: (), and its gradients in `mean`, (B, A), and `std`, (A,)."""
    ratio = torch.exp(log_prob(batch.actions, mean, std) - batch.old_log_prob)
    of_ratio = -batch.advantages * ratio
    of_clipped = -batch.advantages * ratio.clamp(1.0 - clip_param, 1.0 + clip_param)
    loss = torch.max(of_ratio, of_clipped).mean()
    gradient = of_ratio.masked_fill_(of_ratio < of_clipped, 0.0).div_(len(ratio))  # in the logarithm of the ratio
    deviations = (batch.actions - mean).div_(std)
    std_gradient = (deviations.square().t() @ gradient - gradient.sum()) / std
    return loss, deviations.mul_(gradient.unsqueeze(-1)).div_(std), std_gradient


def value_loss(batch: MiniBatch, values: Tensor, clip_param: float | None) -> tuple[Tensor, Tensor]:
    """Mean squared error to the returns, and its gradient in `values`, (B, 1).

    Clipped: an error is no less than that of a value at most `clip_param` from the old one.
    """
    errors = values - batch.returns
    losses, gradient = errors.square(), errors * (2 / len(values))
    if clip_param is None:
        return losses.mean(), gradient
    moves = values - batch.values
    clipped = (batch.values + moves.clamp(-clip_param, clip_param) - batch.returns).square()
    return torch.max(losses, clipped).mean(), gradient.masked_fill_((losses < clipped) & (moves.abs() > clip_param), 0)


def write_std_gradient(distribution: GaussianDistribution, std: Tensor, gradient: Tensor) -> None:
    """From the gradient in `std`, (A,): that of the parameter it comes from, clamped, and maybe of its logarithm."""
    is_log = distribution.std_type == "log"
    parameter = distribution.log_std_param if is_log else distribution.std_param
    low, high = distribution.log_std_range if is_log else distribution.std_range
    own = gradient * std if is_log else gradient
    parameter.grad.copy_(own.masked_fill((parameter < low) | (parameter > high), 0.0))
