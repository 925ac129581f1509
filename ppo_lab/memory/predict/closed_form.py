"""What a run's tensors hold, tensor by tensor, worked out from the configuration alone.

Each function names the tensors that rsl_rl, torch and our update really allocate, with their shapes and dtypes; the
tests build the real ones and compare. Standard library only: it answers before torch could be loaded.

N = num_envs, T = num_steps_per_env, A = number of actions, B = mini_batch_size. The storage holds every observation
group of the env; the actor sees the group "policy", the critic the env's critic group.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ppo_lab.config import STD_PARAMETERS, ExperimentConfig, ModelConfig, layers

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "int64": 8, "uint8": 1, "bool": 1}

KEEPS_INPUT = frozenset("selu crelu lrelu softplus gelu swish mish".split())
"""Activations whose slope does not follow from their output alone: their input is kept beside it.

The others work in place (`ppo_lab.learning.perceptron`).
"""
REDUCED_BESIDE_GRADIENTS = 4
"""The KL divergence and three losses, which ranks reduce in one tensor with the gradients; init.kl_coef adds a loss."""

MOMENTS = {"adam": ("exp_avg", "exp_avg_sq"), "adamw": ("exp_avg", "exp_avg_sq"), "rmsprop": ("square_avg",), "sgd": ()}
"""What each optimizer keeps for a parameter, in the parameter's own shape, with torch's default settings."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor, without its values."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """As requested; an allocator rounds up."""
        return self.elements * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Formula:
    """A closed form to read: what the term means, the formula, and the formula with the numbers put in."""

    term: str
    meaning: str
    formula: str
    numbers: str
    """An expression and its value: "2 x 3 = 6"."""
    bytes: int | None
    """None where something other than bytes is counted."""


def total_bytes(specs: Iterable[TensorSpec]) -> int:
    return sum(spec.bytes for spec in specs)


def rollout_storage(cfg: ExperimentConfig) -> tuple[TensorSpec, ...]:
    """rsl_rl's RolloutStorage once a transition has been added, which is when `distribution_params` appear."""
    steps = (cfg.num_steps_per_env, cfg.num_envs)
    return (
        *_observations(cfg, steps),
        TensorSpec("rewards", (*steps, 1)),
        TensorSpec("actions", (*steps, cfg.env.num_actions)),
        TensorSpec("dones", (*steps, 1), "uint8"),
        TensorSpec("values", (*steps, 1)),
        TensorSpec("actions_log_prob", (*steps, 1)),
        TensorSpec("distribution_params.0", (*steps, cfg.env.num_actions)),  # mean
        TensorSpec("distribution_params.1", (*steps, cfg.env.num_actions)),  # standard deviation
        TensorSpec("returns", (*steps, 1)),
        TensorSpec("advantages", (*steps, 1)),
    )


def mini_batches(cfg: ExperimentConfig) -> tuple[TensorSpec, ...]:
    """The rollout's transitions, gathered for all mini-batches of an update, and what the networks see of them.

    Rewards, dones and the deviation are not gathered. The permutation, (T * N,) int64, goes before the first
    mini-batch and is not here.
    """
    size, actions, dtype = cfg.transitions, cfg.env.num_actions, _hidden_dtype(cfg)
    spec, network = cfg.env.spec(), cfg.network
    inputs = [TensorSpec("actor_input", (size, spec.width("policy")), dtype)]
    if spec.critic_group != "policy" or network.actor.obs_normalization or network.critic.obs_normalization:
        inputs.append(TensorSpec("critic_input", (size, spec.width(spec.critic_group)), dtype))
    return (
        *inputs,
        TensorSpec("actions", (size, actions)),
        TensorSpec("old_mean", (size, actions)),
        TensorSpec("old_log_prob", (size,)),
        TensorSpec("advantages", (size,)),
        TensorSpec("values", (size, 1)),
        TensorSpec("returns", (size, 1)),
        *([TensorSpec("reference_mean", (size, actions))] if cfg.init.kl_coef else []),
    )


def parameters(cfg: ExperimentConfig) -> tuple[TensorSpec, ...]:
    """Actor and critic, in the optimizer's order. What a normalizer learns is not among them: `normalizer_buffers`."""
    std = STD_PARAMETERS[cfg.network.actor.std_type]
    specs = [TensorSpec(f"actor.distribution.{std}", (cfg.env.num_actions,))]
    for name, shapes in layers(cfg).items():
        for i, (inputs, outputs) in enumerate(shapes):
            specs.append(TensorSpec(f"{name}.mlp.{2 * i}.weight", (outputs, inputs)))
            specs.append(TensorSpec(f"{name}.mlp.{2 * i}.bias", (outputs,)))
    return tuple(specs)


def normalizer_buffers(cfg: ExperimentConfig) -> tuple[TensorSpec, ...]:
    """The running moments of each network that normalizes its observations."""
    specs = []
    for name, model, [(width, _), *_] in _networks(cfg):
        if model.obs_normalization:
            for moment in ("_mean", "_var", "_std"):
                specs.append(TensorSpec(f"{name}.obs_normalizer.{moment}", (1, width)))
            specs.append(TensorSpec(f"{name}.obs_normalizer.count", (), "int64"))
    return tuple(specs)


def reference(cfg: ExperimentConfig) -> tuple[TensorSpec, ...]:
    """The actor that `init.kl_coef` holds the policy near (`ppo_lab.learning.reference`), with its normalizer.

    Its deviations are there once more, and the hidden layers' parameters in mixed precision. Its passes go through the
    policy's buffers.
    """
    if not cfg.init.kl_coef:
        return ()
    held = [spec for spec in (*parameters(cfg), *normalizer_buffers(cfg)) if spec.name.startswith("actor.")]
    copies = [
        spec for spec in saved_activations(cfg) if spec.name.startswith("actor.") and spec.name.endswith(".bfloat16")
    ]
    return (*held, TensorSpec("std", (cfg.env.num_actions,)), *copies)


def reduced_beside_gradients(cfg: ExperimentConfig) -> int:
    """Numbers that ranks reduce in one tensor with the gradients."""
    return REDUCED_BESIDE_GRADIENTS + bool(cfg.init.kl_coef)


def gradients(cfg: ExperimentConfig) -> tuple[TensorSpec, ...]:
    """One tensor with those of all parameters, and what ranks reduce with them; kept from the start on."""
    count = sum(spec.elements for spec in parameters(cfg))
    return (TensorSpec("reduced", (count + reduced_beside_gradients(cfg),)),)


def optimizer_state(cfg: ExperimentConfig) -> tuple[TensorSpec, ...]:
    """The moments that the optimizer keeps on the device from its first step on."""
    return tuple(
        dataclasses.replace(spec, name=f"{spec.name}.{moment}")
        for spec in parameters(cfg)
        for moment in MOMENTS[cfg.algorithm.optimizer]
    )


def optimizer_steps(cfg: ExperimentConfig) -> tuple[TensorSpec, ...]:
    """The step counters of adam, adamw and rmsprop. Those of rmsprop are in host memory whatever the device."""
    if cfg.algorithm.optimizer == "sgd":
        return ()
    return tuple(TensorSpec(f"{spec.name}.step", ()) for spec in parameters(cfg))


def saved_activations(cfg: ExperimentConfig) -> tuple[TensorSpec, ...]:
    """What the passes of a mini-batch through both perceptrons hold (`ppo_lab.learning.perceptron`).

    Each hidden layer's output; for an activation in KEEPS_INPUT its input too; the gradient of each hidden layer but
    the last, which is gone before the others come. In mixed precision all of it is bfloat16, and so are copies of the
    hidden layers' parameters.

    Not covered: the graph of the loss behind the networks' outputs, (B, A) and (B,) tensors, and temporary memory.
    """
    size, dtype = cfg.mini_batch_size, _hidden_dtype(cfg)
    specs = []
    for name, model, [*hidden, _] in _networks(cfg):
        for i, (inputs, outputs) in enumerate(hidden):
            layer = f"{name}.mlp.{2 * i}"
            specs.append(TensorSpec(f"{layer}.output", (size, outputs), dtype))
            if model.activation in KEEPS_INPUT:
                specs.append(TensorSpec(f"{name}.mlp.{2 * i + 1}.output", (size, outputs), dtype))
            if i < len(hidden) - 1:
                specs.append(TensorSpec(f"{layer}.output.grad", (size, outputs), dtype))
            if cfg.algorithm.use_mixed_precision:
                specs.append(TensorSpec(f"{layer}.weight.bfloat16", (outputs, inputs), dtype))
                specs.append(TensorSpec(f"{layer}.bias.bfloat16", (outputs,), dtype))
    return tuple(specs)


def episode_statistics(cfg: ExperimentConfig) -> tuple[TensorSpec, ...]:
    """The buffers of `ppo_lab.learning.episodes.EpisodeStatistics`, one sum for each of the env's reward terms."""
    steps = (cfg.num_steps_per_env, cfg.num_envs)
    return (
        TensorSpec("return", (cfg.num_envs,)),
        TensorSpec("length", (cfg.num_envs,)),
        TensorSpec("returns", steps),
        TensorSpec("lengths", steps),
        TensorSpec("ended", steps, "bool"),
        TensorSpec("sums", (len(cfg.env.spec().rewards),)),
    )


def formulas(cfg: ExperimentConfig) -> tuple[Formula, ...]:
    """The closed forms of the learner's memory, in the order in which an iteration meets them."""
    spec, actions = cfg.env.spec(), cfg.env.num_actions
    observed = " + ".join(str(spec.width(group)) for group in spec.observations)
    count = sum(spec.elements for spec in parameters(cfg))
    item_bytes = ITEM_BYTES[_hidden_dtype(cfg)]
    beside = reduced_beside_gradients(cfg)
    of_actions, of_losses = (3, "four") if cfg.init.kl_coef else (2, "three")
    seen = [spec.shape[1] for spec in mini_batches(cfg) if spec.name.endswith("_input")]
    shapes = [shape for of_network in layers(cfg).values() for shape in of_network]
    optimizer, moments = cfg.algorithm.optimizer, MOMENTS[cfg.algorithm.optimizer]

    def of_bytes(term: str, meaning: str, formula: str, numbers: str, specs: Iterable[TensorSpec]) -> Formula:
        size_bytes = total_bytes(specs)
        return Formula(term, meaning, formula, f"{numbers} = {size_bytes:,}", size_bytes)

    return (
        Formula(
            "transitions",
            "one step of one env: what it saw, did and got. A rollout is num_steps_per_env steps of every env",
            "num_envs x num_steps_per_env",
            f"{cfg.num_envs:,} x {cfg.num_steps_per_env:,} = {cfg.transitions:,}",
            None,
        ),
        of_bytes(
            "rollout",
            "all transitions of an iteration. Each holds the observations; the action, with the mean and deviation it "
            "was drawn from; reward, value, log probability, return and advantage; and done, in one byte",
            "transitions x (4 x (observed + 3 x num_actions + 5) + 1), observed: the widths of all observation groups",
            f"{cfg.transitions:,} x (4 x ({observed} + 3 x {actions} + 5) + 1)",
            rollout_storage(cfg),
        ),
        of_bytes(
            "mini-batches",
            "all transitions once more, in the order in which the optimizer's steps take them: what the networks see, "
            "the action and the mean it was drawn from, log probability, advantage, value and return"
            + ("; and the mean of the policy that the run began with" if cfg.init.kl_coef else ""),
            f"transitions x ({item_bytes} x seen + 4 x ({of_actions} x num_actions + 4)), "
            "seen: widths of the networks' inputs",
            f"{cfg.transitions:,} x ({item_bytes} x {_sum(seen)} + 4 x ({of_actions} x {actions} + 4))",
            mini_batches(cfg),
        ),
        of_bytes(
            "parameters",
            "what is learned: the weights and biases of actor and critic, and a deviation for each action",
            "4 x (num_actions + sum over the layers of both networks of (inputs + 1) x outputs)",
            f"4 x ({actions} + {' + '.join(f'({inputs} + 1) x {outputs}' for inputs, outputs in shapes)})",
            parameters(cfg),
        ),
        of_bytes(
            "gradients",
            f"the slope of the loss in each parameter, in one tensor with the KL divergence and {of_losses} losses",
            f"4 x (parameters + {beside})",
            f"4 x ({count:,} + {beside})",
            gradients(cfg),
        ),
        of_bytes(
            "optimizer state",
            f"what {optimizer} remembers of earlier gradients: {', '.join(moments) or 'nothing'}",
            f"{len(moments)} x 4 x parameters",
            f"{len(moments)} x 4 x {count:,}",
            optimizer_state(cfg),
        ),
        _saved_activations_formula(cfg),
        *([_reference_formula(cfg)] if cfg.init.kl_coef else []),
    )


def _reference_formula(cfg: ExperimentConfig) -> Formula:
    size_bytes = total_bytes(reference(cfg))
    shapes = [f"({inputs} + 1) x {outputs}" for inputs, outputs in layers(cfg)["actor"]]
    actions, mixed = cfg.env.num_actions, cfg.algorithm.use_mixed_precision
    formula = "4 x (2 x num_actions + sum over the actor's layers of (inputs + 1) x outputs)"
    numbers = f"4 x (2 x {actions} + {' + '.join(shapes)})"
    if cfg.network.actor.obs_normalization:
        width = layers(cfg)["actor"][0][0]
        formula, numbers = f"{formula} + 12 x inputs of the first + 8", f"{numbers} + 12 x {width} + 8"
    if mixed:
        formula, numbers = (
            f"{formula} + 2 x parameters of the hidden layers",
            f"{numbers} + 2 x ({' + '.join(shapes[:-1])})",
        )
    return Formula(
        "reference actor",
        "the actor that the run began with, its normalizer and its deviations (init.kl_coef); its passes go through "
        "the policy's buffers",
        formula,
        f"{numbers} = {size_bytes:,}",
        size_bytes,
    )


def _saved_activations_formula(cfg: ExperimentConfig) -> Formula:
    mixed = cfg.algorithm.use_mixed_precision
    item_bytes = ITEM_BYTES[_hidden_dtype(cfg)]
    formula = (
        f"mini-batch size x {item_bytes} x sum over both networks of (copies x hidden units + those with gradients)"
    )
    units = []
    for _, model, _ in _networks(cfg):
        copies = 2 if model.activation in KEEPS_INPUT else 1
        units.append(f"{copies} x {_sum(model.hidden_dims)}")
        if model.hidden_dims[1:]:
            units.append(_sum(model.hidden_dims[:-1]))
    numbers = f"{cfg.mini_batch_size:,} x {item_bytes} x ({' + '.join(units)})"
    if mixed:
        formula += f" + {item_bytes} x parameters of the hidden layers"
        hidden = [f"({inputs} + 1) x {outputs}" for shapes in layers(cfg).values() for inputs, outputs in shapes[:-1]]
        numbers += f" + {item_bytes} x ({' + '.join(hidden)})"
    size_bytes = total_bytes(saved_activations(cfg))
    return Formula(
        "saved activations",
        "what the backward pass needs of the forward pass: each hidden unit's output, and for gelu and its like the "
        "activation's input too, which makes two copies, while elu, tanh, sigmoid and relu work in place; and the "
        "gradients of all hidden layers but the last",
        formula,
        f"{numbers} = {size_bytes:,}",
        size_bytes,
    )


def _sum(numbers: Iterable[int]) -> str:
    """To read, within brackets."""
    return f"({' + '.join(map(str, numbers))})"


def _hidden_dtype(cfg: ExperimentConfig) -> str:
    return "bfloat16" if cfg.algorithm.use_mixed_precision else "float32"


def _observations(cfg: ExperimentConfig, leading: tuple[int, ...]) -> Iterator[TensorSpec]:
    """Every observation group, of shape (*leading, width)."""
    spec = cfg.env.spec()
    for group in spec.observations:
        yield TensorSpec(f"observations.{group}", (*leading, spec.width(group)))


def _networks(cfg: ExperimentConfig) -> Iterator[tuple[str, ModelConfig, list[tuple[int, int]]]]:
    """Name, settings and the (inputs, outputs) of every linear layer."""
    models: dict[str, ModelConfig] = {"actor": cfg.network.actor, "critic": cfg.network.critic}
    for name, shapes in layers(cfg).items():
        yield name, models[name], shapes
