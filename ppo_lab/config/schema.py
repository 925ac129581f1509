"""What an experiment is: the typed schema, and every rule its values must obey.

YAML under `conf/` holds the values, the dataclasses here hold types and ranges, and neither repeats the
other: no field has a default. Standard library only, so that a wrong override is refused
before torch or the simulator are loaded.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from ppo_lab.config.overrides import as_text, did_you_mean
from ppo_lab.config.ranges import INT32_MAX, count, setting
from ppo_lab.contracts import EnvSpec
from ppo_lab.errors import ConfigError

ACTIVATIONS = tuple("elu selu relu crelu lrelu tanh sigmoid softplus gelu swish mish identity".split())


STD_PARAMETERS = {"scalar": "std_param", "log": "log_std_param"}
"""network.actor.std_type -> name of the parameter that holds the deviations."""

ADDRESS_SPACE_BYTES = 2**47
"""What a process can address at all on x86-64 and most others."""


@dataclass
class EnvConfig:
    """Settings of every env. An env's own class adds its own."""

    name: str = setting(pattern=r"[a-z][a-z0-9_]*")
    """The env's file under `conf/env` and its module under `ppo_lab/envs/tasks`."""
    dt: float = setting(above=0)
    """Control step, s."""
    substeps: int = count()
    """Simulator steps in each control step."""
    episode_length_s: float = setting(above=0)
    """An episode that lasts longer ends as a time-out."""
    clip_actions: float = setting(above=0)
    """Actions are clipped to +- this."""
    performance_mode: bool = setting()
    """Compile the simulator for this very scene: slower to start, faster to step."""
    randomization: dict[str, Any] = setting(default_factory=dict)
    """Term -> its settings, of the type that it says: see `ppo_lab.envs.randomization`."""
    can_be_randomized: ClassVar[bool] = False

    @classmethod
    def from_older_version(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings in a run folder's config.yaml, which an older version may have written, as they are now."""
        return settings

    def spec(self) -> EnvSpec:
        """The env's observations, actions and reward terms."""
        raise NotImplementedError(f"{type(self).__module__}.{type(self).__name__} must define spec()")

    @property
    def num_actions(self) -> int:
        return len(self.spec().actions)

    @property
    def command_ranges(self) -> dict[str, list[float]]:
        """Command, with its unit -> the lowest and the highest that is drawn. Empty where there are none."""
        return {}

    @property
    def max_episode_length(self) -> int:
        """Steps in an episode that is not cut short."""
        return math.ceil(self.episode_length_s / self.dt)

    def problems(self) -> Iterator[str]:
        """Combinations of this env's values that cannot work."""
        yield from ()

    def unordered_ranges(self, *names: str) -> Iterator[str]:
        """The settings among `names` whose [low, high] is upside down."""
        for name in names:
            low, high = getattr(self, name)
            if low > high:
                yield f"env.{name}=[{low},{high}] has low above high. Try env.{name}=[{high},{low}]."

    def too_long(self, name: str) -> Iterator[str]:
        """Says so when the time `name` has more steps than can be counted."""
        time_s = getattr(self, name)
        if time_s / self.dt > INT32_MAX:
            yield f"env.{name}={time_s} is too many steps of env.dt={self.dt} s. Allowed: up to {INT32_MAX} steps."


@dataclass
class AlgorithmConfig:
    """The parameters of rsl_rl's PPO, by rsl_rl's names."""

    num_learning_epochs: int = count()
    num_mini_batches: int = count()
    clip_param: float = setting(above=0)
    gamma: float = setting(at_least=0, at_most=1)
    lam: float = setting(at_least=0, at_most=1)
    value_loss_coef: float = setting(at_least=0)
    entropy_coef: float = setting(at_least=0)
    learning_rate: float = setting(above=0)
    max_grad_norm: float = setting(above=0)
    optimizer: str = setting(choices=("adam", "adamw", "sgd", "rmsprop"))
    use_clipped_value_loss: bool = setting()
    schedule: str = setting(choices=("adaptive", "fixed"))
    desired_kl: float = setting(above=0)
    normalize_advantage_per_mini_batch: bool = setting()
    use_mixed_precision: bool = setting()
    """Forward pass and loss of the update in bfloat16."""


@dataclass
class ModelConfig:
    """One multi-layer perceptron."""

    hidden_dims: list[int] = setting(at_least=1)
    activation: str = setting(choices=ACTIVATIONS)
    obs_normalization: bool = setting()


@dataclass
class ActorConfig(ModelConfig):
    """The policy: a perceptron that gives the mean of a Gaussian with a learned deviation."""

    init_std: float = setting(above=0)
    std_type: str = setting(choices=tuple(STD_PARAMETERS))


@dataclass
class NetworkConfig:
    """Actor and critic. The first three values set both; each can be set apart."""

    hidden_dims: list[int] = setting(at_least=1)
    activation: str = setting(choices=ACTIVATIONS)
    obs_normalization: bool = setting()
    actor: ActorConfig = setting()
    critic: ModelConfig = setting()


@dataclass
class MemoryConfig:
    """What the memory log does beyond reading counters."""

    count_tensors: bool = setting()
    """On a CPU, count the live tensors' bytes operation by operation. Exact, and slow."""
    over_budget: str = setting(choices=("stop", "warn"))
    """What to do before a run that is predicted not to fit."""


@dataclass
class CheckpointConfig:
    """What is kept for resuming, beside the weights every `save_interval` iterations."""

    keep_state: int = count()
    """The newest checkpoints from which a run can go on exactly; older ones keep the weights."""
    every_seconds: float | None = setting(above=0)
    """Save also when this much time has passed; null: only every save_interval."""


@dataclass
class InitConfig:
    """What a run that begins with `init_from` takes beside the actor with its normalizer, and what it holds to."""

    critic: bool = setting()
    """The critic, with its normalizer."""
    optimizer: bool = setting()
    """The optimizer's moments; the learning rate is never taken."""
    std: bool = setting()
    """The deviations of the actions; without them they begin with network.actor.init_std."""
    kl_coef: float = setting(at_least=0)
    """The weight in the loss of KL(initial policy || policy), the mean over a mini-batch; 0: no such term."""


@dataclass
class EntropyScheduleConfig:
    """Lets `algorithm.entropy_coef` change in the course of a training: to explore at first, and then to settle."""

    final_coef: float | None = setting(at_least=0)
    """Linear from algorithm.entropy_coef to this; null: it stays."""
    from_iteration: int = setting(at_least=0)
    """Counted from 0."""
    to_iteration: int = setting(at_least=0)


@dataclass
class SweepConfig:
    """How train.py -m runs its jobs. No part of an experiment."""

    jobs_per_device: int = setting(at_least=1)
    """Jobs at a time on each GPU; without one, on the CPU."""
    over_budget: str = setting(choices=("skip", "run", "stop"))
    """What to do with jobs that are predicted not to fit."""
    resume: str | None = setting()
    """The folder of this very sweep: run what is missing."""
    reward_threshold: float | None = setting()
    """The report says when each job reached it."""


@dataclass
class ExperimentConfig:
    """One training run, whole."""

    env: EnvConfig = setting()
    algorithm: AlgorithmConfig = setting()
    entropy_schedule: EntropyScheduleConfig = setting()
    network: NetworkConfig = setting()
    memory: MemoryConfig = setting()
    checkpoint: CheckpointConfig = setting()
    init_from: str | None = setting()
    """The checkpoint whose weights the run begins with: as typed, RUN[:NAME] or a file; of a run, its absolute path."""
    init: InitConfig = setting()
    num_envs: int = count()
    """Of all ranks together."""
    processes: int = setting(at_least=1, at_most=4096)
    """Ranks that train together; each steps num_envs / processes envs and reduces gradients with the others."""
    envs_per_scene: int = count()
    """A rank that has more envs steps several scenes in turn, each with at most so many."""
    num_steps_per_env: int = count()
    """Steps of every env in one rollout."""
    max_iterations: int = count()
    save_interval: int = count()
    """Iterations between checkpoints; see also checkpoint.every_seconds."""
    evaluate_every: int | None = count()
    """Iterations between evaluations, each of which needs a checkpoint; null: none."""
    seed: int = setting(at_least=0, at_most=2**32 - 1)
    device: str = setting(pattern=r"auto|cpu|cuda(:[0-9]{1,2})?", examples=("auto", "cpu", "cuda", "cuda:1"))
    deterministic: bool = setting()
    """On a GPU, use deterministic algorithms alone, so that the same seed gives the same bits."""
    run_name: str = setting(pattern=r"[A-Za-z0-9][A-Za-z0-9._-]*", examples=("wide", "kp-20_v2.1"))
    """The last part of the run folder's name."""
    quiet: bool = setting()
    """Print warnings and errors alone."""

    def of_one_rank(self) -> ExperimentConfig:
        """What one rank trains, as a run of its own."""
        return dataclasses.replace(self, num_envs=self.num_envs // self.processes, processes=1)

    def entropy_coef_at(self, iteration: int) -> float:
        """In that iteration, counted from 0."""
        first, schedule = self.algorithm.entropy_coef, self.entropy_schedule
        if schedule.final_coef is None:
            return first
        length = max(schedule.to_iteration - schedule.from_iteration, 1)
        share = min(max((iteration - schedule.from_iteration) / length, 0.0), 1.0)
        return first + share * (schedule.final_coef - first)

    @property
    def any_ancestor(self) -> str | None:
        """For `init_from`, where it matters whether a run needs weights to begin with, and not which."""
        return "RUN" if self.init.kl_coef else None

    @property
    def scene_sizes(self) -> list[int]:
        """Envs in each scene of one rank, as equal as can be."""
        num_envs = self.num_envs // self.processes
        return split(num_envs, math.ceil(num_envs / self.envs_per_scene))

    @property
    def transitions(self) -> int:
        """Transitions in one rollout."""
        return self.num_envs * self.num_steps_per_env

    @property
    def mini_batch_size(self) -> int:
        """Transitions in one mini-batch."""
        return self.transitions // self.algorithm.num_mini_batches


def split(num_envs: int, scenes: int) -> list[int]:
    """Envs in each of so many scenes, as equal as can be."""
    return [num_envs // scenes + (index < num_envs % scenes) for index in range(scenes)]


def layers(cfg: ExperimentConfig) -> dict[str, list[tuple[int, int]]]:
    """(inputs, outputs) of every linear layer of "actor" and "critic", from the observations on.

    The actor's first layer is as wide as the group "policy", the critic's as wide as the env's critic group.
    """
    spec, network = cfg.env.spec(), cfg.network
    widths = {
        "actor": (spec.width("policy"), *network.actor.hidden_dims, len(spec.actions)),
        "critic": (spec.width(spec.critic_group), *network.critic.hidden_dims, 1),
    }
    return {name: list(itertools.pairwise(of_network)) for name, of_network in widths.items()}


def check(settings: Any) -> None:
    """Raises a ConfigError for the first value out of range, or else the first combination that cannot work.

    `settings`: an ExperimentConfig, or any dataclass of `setting` fields.
    """
    problems = [_out_of_range(settings)]
    if isinstance(settings, ExperimentConfig):
        problems += [_unaddressable(settings), _impossible_combinations(settings)]
    for problem in itertools.chain(*problems):
        raise ConfigError(problem)


def _out_of_range(node: Any, prefix: str = "") -> Iterator[str]:
    for f in dataclasses.fields(node):
        value, allowed = getattr(node, f.name), f.metadata["range"]
        if dataclasses.is_dataclass(value):
            yield from _out_of_range(value, f"{prefix}{f.name}.")
        elif isinstance(value, dict) and any(map(dataclasses.is_dataclass, value.values())):
            for key, item in value.items():
                yield from _out_of_range(item, f"{prefix}{f.name}.{key}.")
        elif value == [] and allowed.items is None:
            yield f"{prefix}{f.name}=[] is empty. Allowed: one value or more, each {allowed}."
        elif not allowed.admits(value):
            hint = did_you_mean(str(value), allowed.choices or allowed.examples)
            yield f"{prefix}{f.name}={as_text(value)} is out of range.{hint} Allowed: {allowed}."


def _unaddressable(cfg: ExperimentConfig) -> Iterator[str]:
    """Tensors that no process can hold, on whatever machine."""
    spec = cfg.env.spec()
    observed = sum(map(spec.width, spec.observations))
    needs_bytes = {("observations", "num_envs or num_steps_per_env"): 4 * cfg.transitions * observed}
    for name, shapes in layers(cfg).items():
        smaller, widest = f"network.{name}.hidden_dims", max(map(max, shapes))
        needs_bytes[f"{name}'s weights", smaller] = 4 * sum(inputs * outputs for inputs, outputs in shapes)
        needs_bytes[f"{name}'s outputs", smaller] = 4 * widest * max(cfg.num_envs, cfg.mini_batch_size)
    for (what, smaller), size in needs_bytes.items():
        if size > ADDRESS_SPACE_BYTES:
            yield f"the {what} would take {size:,} B; a process has {ADDRESS_SPACE_BYTES:,}. Try a smaller {smaller}."


def _impossible_combinations(cfg: ExperimentConfig) -> Iterator[str]:
    if cfg.num_envs % cfg.processes:
        near = " or ".join(f"num_envs={n}" for n in _nearest_multiples(cfg.num_envs, cfg.processes))
        yield f"processes={cfg.processes} does not divide num_envs={cfg.num_envs}. Try {near}."
        return
    if cfg.processes > 1:
        for problem in _impossible_combinations(cfg.of_one_rank()):
            yield f"each of {cfg.processes} ranks: {problem}"
        return
    rollout = f"{cfg.transitions} transitions ({cfg.num_envs} envs x {cfg.num_steps_per_env} steps)"
    if cfg.transitions % cfg.algorithm.num_mini_batches:
        near = " or ".join(f"algorithm.num_mini_batches={n}" for n in nearest_divisors(cfg))
        yield f"algorithm.num_mini_batches={cfg.algorithm.num_mini_batches} does not divide {rollout}. Try {near}."
    elif cfg.transitions < 2:
        yield f"{rollout} have no spread to normalize advantages by. Try num_steps_per_env=2 or more."
    elif cfg.algorithm.normalize_advantage_per_mini_batch and cfg.mini_batch_size < 2:
        yield (
            "algorithm.normalize_advantage_per_mini_batch=true needs mini-batches of at least 2 transitions; "
            f"got {rollout} in {cfg.algorithm.num_mini_batches}. "
            f"Try algorithm.num_mini_batches={cfg.transitions // 2}."
        )
    if cfg.init.optimizer and not cfg.init.critic:
        yield "init.optimizer=true takes the moments of actor and critic. Try init.optimizer=false or init.critic=true."
    schedule = cfg.entropy_schedule
    if schedule.from_iteration > schedule.to_iteration:
        yield (
            f"entropy_schedule.from_iteration={schedule.from_iteration} is after "
            f"entropy_schedule.to_iteration={schedule.to_iteration}. Try "
            f"entropy_schedule.to_iteration={schedule.from_iteration} or more."
        )
    if cfg.init.kl_coef and cfg.init_from is None:
        yield (
            f"init.kl_coef={as_text(cfg.init.kl_coef)} holds the policy near the one that the run begins with, and "
            "init_from=null begins with random weights. Try init_from=RUN or init.kl_coef=0."
        )
    yield from cfg.env.too_long("episode_length_s")
    yield from cfg.env.problems()


def nearest_divisors(cfg: ExperimentConfig) -> list[int]:
    """The numbers of mini-batches nearest to the one asked for, below and above, that divide the rollout."""
    asked = cfg.algorithm.num_mini_batches
    divisors = {n * m for n in _divisors(cfg.num_envs) for m in _divisors(cfg.num_steps_per_env)}
    below = max(n for n in divisors if n <= asked)
    above = min((n for n in divisors if n >= asked), default=below)
    return sorted({below, above})


def _nearest_multiples(number: int, of: int) -> list[int]:
    """The multiples below and above, of which the lower may not be 0."""
    below = number // of * of
    return [n for n in (below, below + of) if n]


def _divisors(number: int) -> set[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return {*small, *(number // n for n in small)}


def to_json(cfg: ExperimentConfig) -> str:
    """The experiment as text, for another process; `runs.config.from_json` reads it."""
    return json.dumps(dataclasses.asdict(cfg))
