"""The closed forms, against the real tensors and against figures worked by hand."""

from __future__ import annotations

import ast
import copy
import random
import runpy
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from rsl_rl.algorithms import PPO
from tensordict import TensorDict
from torch import Tensor

from ppo_lab.cli.compose import compose
from ppo_lab.config import ACTIVATIONS, EnvConfig, ExperimentConfig, check, layers
from ppo_lab.contracts import EnvSpec
from ppo_lab.learning.episodes import EpisodeStatistics
from ppo_lab.learning.perceptron import Networks
from ppo_lab.learning.ppo import rsl_rl_config
from ppo_lab.learning.ranks import SingleProcess
from ppo_lab.learning.reference import Reference
from ppo_lab.learning.update import LeanUpdate, MiniBatch
from ppo_lab.memory.predict import closed_form
from ppo_lab.memory.predict.closed_form import TensorSpec, total_bytes
from ppo_lab.runs.config import to_experiment
from tests.paths import REPOSITORY

DOC = REPOSITORY / "docs" / "memory.md"
RANDOM_CONFIGS = [*range(16), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(16, 48))]
OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop")

Layout = dict[str, tuple[tuple[int, ...], str]]
"""Tensor's name -> shape and dtype."""


@dataclass
class TwoGroups(EnvConfig):
    """The actor sees 3 numbers, the critic another 5; there are 2 actions and 4 reward terms."""

    def spec(self) -> EnvSpec:
        observations = {"policy": {"position": 2, "height": 1}, "critic": {"position": 2, "friction": 3}}
        return EnvSpec(observations, ("left", "right"), ("a", "b", "c", "d"), self.dt, self.max_episode_length)


TWO_GROUPS = TwoGroups("two_groups", 0.02, 1, 10.0, 1.0, False)


class ZeroEnv:
    """Envs in which nothing ever happens: zeros of the right shapes."""

    def __init__(self, cfg: ExperimentConfig) -> None:
        self.cfg = cfg.env
        self.num_envs = cfg.num_envs
        self.num_actions = cfg.env.num_actions
        self.max_episode_length = cfg.env.max_episode_length
        self.episode_length_buf = torch.zeros(cfg.num_envs, dtype=torch.int32)

    def get_observations(self) -> TensorDict:
        spec = self.cfg.spec()
        observations = {group: torch.zeros(self.num_envs, spec.width(group)) for group in spec.observations}
        return TensorDict(observations, batch_size=[self.num_envs])

    def check(self) -> dict[str, float]:
        return {}

    def step(self, actions: Tensor) -> tuple[TensorDict, Tensor, Tensor, dict[str, Tensor]]:
        extras = {"time_outs": torch.zeros(self.num_envs)}
        return self.get_observations(), torch.zeros(self.num_envs), torch.zeros(self.num_envs).bool(), extras


@dataclass(frozen=True)
class Reality:
    """rsl_rl's PPO and our update after one iteration."""

    cfg: ExperimentConfig
    alg: Any
    update: LeanUpdate

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": parameter
            for name, network in (("actor", self.alg.actor), ("critic", self.alg.critic))
            for key, parameter in network.named_parameters()
        }


def untrained(cfg: ExperimentConfig) -> PPO:
    env = ZeroEnv(cfg)
    groups = {"obs_groups": {"actor": ["policy"], "critic": [cfg.env.spec().critic_group]}}
    return PPO.construct_algorithm(env.get_observations(), env, rsl_rl_config(cfg) | groups, "cpu")


def train_once(cfg: ExperimentConfig) -> Reality:
    env, alg = ZeroEnv(cfg), untrained(cfg)
    obs = env.get_observations()
    alg.train_mode()
    with torch.inference_mode():
        for _ in range(cfg.num_steps_per_env):
            obs, rewards, dones, extras = env.step(alg.act(obs))
            alg.process_env_step(obs, rewards, dones, extras)
    networks = Networks.of(alg)
    reference = Reference(alg, networks, cfg.init.kl_coef) if cfg.init.kl_coef else None
    update = LeanUpdate(alg, networks, SingleProcess(), cfg.algorithm.num_learning_epochs, reference)
    update(obs)
    return Reality(cfg, alg, update)


@cache
def composed(*overrides: str) -> ExperimentConfig:
    return to_experiment(compose(list(overrides)))


def random_config(seed: int) -> ExperimentConfig:
    draw = random.Random(seed)
    cfg = copy.deepcopy(composed("env=hover"))
    cfg = replace(cfg, env=draw.choice([composed("env=go2").env, cfg.env, TWO_GROUPS]))
    network = cfg.network
    for model in (network.actor, network.critic):
        model.hidden_dims = [draw.randint(1, 40) for _ in range(draw.randint(1, 4))]
        model.activation = draw.choice(ACTIVATIONS)
        model.obs_normalization = draw.random() < 0.5
    network.actor.std_type = draw.choice(["scalar", "log"])
    mini_batches = draw.randint(1, 5)
    algorithm = replace(
        cfg.algorithm,
        optimizer=draw.choice(OPTIMIZERS),
        schedule=draw.choice(["adaptive", "fixed"]),
        num_learning_epochs=draw.randint(1, 2),
        num_mini_batches=mini_batches,
        normalize_advantage_per_mini_batch=draw.random() < 0.5,
        use_clipped_value_loss=draw.random() < 0.5,
    )
    cfg = replace(
        cfg, algorithm=algorithm, num_envs=mini_batches * draw.randint(2, 9), num_steps_per_env=draw.randint(1, 7)
    )
    if draw.random() < 0.4:
        cfg = replace(cfg, init_from="RUN", init=replace(cfg.init, kl_coef=0.5))
    check(cfg)
    return cfg


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small spend their time waiting for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=RANDOM_CONFIGS)
def reality(request: pytest.FixtureRequest) -> Reality:
    return train_once(random_config(request.param))


def layout(tensors: dict[str, Tensor]) -> Layout:
    return {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()}


def predicted(specs: tuple[TensorSpec, ...]) -> Layout:
    return {spec.name: (spec.shape, spec.dtype) for spec in specs}


def agree(specs: tuple[TensorSpec, ...], tensors: dict[str, Tensor]) -> bool:
    """Whether names, shapes and dtypes are the same, and so is the memory behind them."""
    return predicted(specs) == layout(tensors) and total_bytes(specs) == storage_bytes(tensors.values())


def kept_alike(specs: tuple[TensorSpec, ...], tensors: list[Tensor]) -> bool:
    """Whether shapes, dtypes and bytes are the same, in any order."""
    real = sorted(layout({str(i): tensor for i, tensor in enumerate(tensors)}).values())
    return real == sorted(predicted(specs).values()) and total_bytes(specs) == storage_bytes(tensors)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def held_by(holder: Any) -> dict[str, Tensor]:
    """The tensors in an object's attributes, tuples and TensorDicts among them opened."""
    found: dict[str, Tensor] = {}
    for name, value in vars(holder).items():
        if isinstance(value, Tensor):
            found[name.lstrip("_")] = value
        elif isinstance(value, TensorDict):
            found |= {f"{name}.{key}": value[key] for key in value.keys()}  # noqa: SIM118
        elif isinstance(value, tuple):
            found |= {f"{name}.{i}": item for i, item in enumerate(value) if isinstance(item, Tensor)}
    return found


def held_between_passes(alg: PPO, update: LeanUpdate, observations: TensorDict) -> list[Tensor]:
    """One tensor for each storage that the networks' passes hold after the forward one."""
    held = list(update._networks.buffers)
    for network, perceptron in zip((alg.actor, alg.critic), update._networks, strict=True):
        perceptron.forward(network.get_latent(observations).to(perceptron._dtype))
        held += perceptron._inputs[1:]
    return list({tensor.untyped_storage()._cdata: tensor for tensor in reversed(held)}.values())


def test_the_rollout_is_rsl_rls_storage(reality: Reality) -> None:
    assert agree(closed_form.rollout_storage(reality.cfg), held_by(reality.alg.storage))


def test_the_mini_batches_are_what_the_update_gathers(reality: Reality) -> None:
    with torch.no_grad():
        columns = MiniBatch(*reality.update._gathered())._asdict()
    gathered = {name: column for name, column in columns.items() if column is not None}
    if gathered["critic_input"].data_ptr() == gathered["actor_input"].data_ptr():
        del gathered["critic_input"]
    assert agree(closed_form.mini_batches(reality.cfg), gathered)


def test_the_parameters_are_those_that_the_optimizer_steps(reality: Reality) -> None:
    assert agree(closed_form.parameters(reality.cfg), reality.parameters)
    stepped = [parameter for group in reality.alg.optimizer.param_groups for parameter in group["params"]]
    assert [spec.shape for spec in closed_form.parameters(reality.cfg)] == [tuple(p.shape) for p in stepped]


def test_the_normalizers_hold_nothing_else(reality: Reality) -> None:
    buffers = {
        f"{name}.{key}": buffer
        for name, network in (("actor", reality.alg.actor), ("critic", reality.alg.critic))
        for key, buffer in network.named_buffers()
    }
    assert agree(closed_form.normalizer_buffers(reality.cfg), buffers)


def test_the_gradients_are_one_tensor_with_what_else_is_reduced(reality: Reality) -> None:
    reduced = reality.update._reduced
    assert agree(closed_form.gradients(reality.cfg), {"reduced": reduced})
    found = [parameter.grad for parameter in reality.parameters.values() if parameter.grad is not None]
    storages = {gradient.untyped_storage()._cdata for gradient in found}
    assert len(found) == len(reality.parameters)
    assert storages == {reduced.untyped_storage()._cdata}


def test_the_optimizer_keeps_its_moments_and_counters(reality: Reality) -> None:
    real = {
        f"{name}.{key}": value
        for name, parameter in reality.parameters.items()
        for key, value in reality.alg.optimizer.state[parameter].items()
        if value is not None
    }
    assert agree(closed_form.optimizer_state(reality.cfg) + closed_form.optimizer_steps(reality.cfg), real)


def test_the_passes_hold_the_saved_activations(reality: Reality) -> None:
    observations = reality.alg.storage.observations.flatten(0, 1)[: reality.cfg.mini_batch_size]
    real = held_between_passes(reality.alg, reality.update, observations)
    assert kept_alike(closed_form.saved_activations(reality.cfg), real)


@pytest.mark.parametrize("overrides", [[], ["algorithm.use_mixed_precision=true", "network.obs_normalization=true"]])
def test_the_reference_holds_one_more_actor_and_no_buffers(overrides: list[str]) -> None:
    cfg = composed("experiment=smoke", "init_from=RUN", "init.kl_coef=0.5", *overrides)
    alg = untrained(cfg)
    networks = Networks.of(alg)
    reference = Reference(alg, networks, cfg.init.kl_coef)
    real = {
        f"actor.{name}": tensor
        for name, tensor in (*reference.actor.named_parameters(), *reference.actor.named_buffers())
    }
    own = {tensor.data_ptr() for tensor in reference.perceptron.buffers} - {t.data_ptr() for t in networks.buffers}
    copies = [tensor for tensor in reference.perceptron.buffers if tensor.data_ptr() in own]
    assert kept_alike(closed_form.reference(cfg), [*real.values(), reference.std, *copies])
    assert len(copies) == (6 if overrides else 0)
    *_, term = closed_form.formulas(cfg)
    expression, _, result = term.numbers.rpartition(" = ")
    assert evaluate(expression) == evaluate(result) == term.bytes


def test_the_episode_statistics_are_the_runners(reality: Reality) -> None:
    cfg = reality.cfg
    real = EpisodeStatistics(cfg.num_envs, cfg.num_steps_per_env, cfg.env.spec().rewards, torch.device("cpu"))
    assert agree(closed_form.episode_statistics(cfg), held_by(real))


def test_the_numbers_in_a_formula_work_out_to_its_bytes(reality: Reality) -> None:
    terms = closed_form.formulas(reality.cfg)
    for term in terms:
        expression, _, result = term.numbers.rpartition(" = ")
        assert evaluate(expression) == evaluate(result) == (term.bytes if term.bytes is not None else evaluate(result))
    assert [term.bytes for term in terms] == [None] + [
        total_bytes(specs(reality.cfg))
        for specs in (
            closed_form.rollout_storage,
            closed_form.mini_batches,
            closed_form.parameters,
            closed_form.gradients,
            closed_form.optimizer_state,
            closed_form.saved_activations,
            *([closed_form.reference] if reality.cfg.init.kl_coef else []),
        )
    ]


def evaluate(expression: str) -> int:
    """The value of sums and products in whole numbers, written as a person would."""

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.BinOp(left, ast.Add(), right):
                return value(left) + value(right)
            case ast.BinOp(left, ast.Mult(), right):
                return value(left) * value(right)
        raise ValueError(ast.dump(node))

    return value(ast.parse(expression.replace(",", "").replace("x", "*"), mode="eval").body)


def test_two_groups_by_hand() -> None:
    cfg = two_groups()
    rollout = {spec.name: spec.bytes for spec in closed_form.rollout_storage(cfg)}
    assert rollout["observations.policy"] == 12 * 3 * 4  # 12 transitions, float32
    assert rollout["observations.critic"] == 12 * 5 * 4
    assert sum(rollout.values()) == 12 * (4 * (3 + 5 + 3 * 2 + 5) + 1)
    assert total_bytes(closed_form.mini_batches(cfg)) == 12 * 4 * (3 + 5 + 2 * 2 + 4)
    assert layers(cfg) == {"actor": [(3, 6), (6, 7), (7, 2)], "critic": [(5, 6), (6, 7), (7, 1)]}
    learned = 2 + (3 + 1) * 6 + (6 + 1) * 7 + (7 + 1) * 2 + (5 + 1) * 6 + (6 + 1) * 7 + (7 + 1) * 1
    assert sum(spec.elements for spec in closed_form.parameters(cfg)) == learned
    assert total_bytes(closed_form.normalizer_buffers(cfg)) == 4 * 3 * (3 + 5) + 2 * 8
    assert total_bytes(closed_form.saved_activations(cfg)) == 12 * 4 * 2 * (13 + 6)  # the first layer's gradients too
    assert total_bytes(closed_form.episode_statistics(cfg)) == 4 * (2 * 4 + 2 * 12 + 4) + 12  # 4 reward terms


def test_the_formulas_of_two_groups_name_both_widths() -> None:
    numbers = {term.term: term.numbers for term in closed_form.formulas(two_groups())}
    assert numbers["rollout"] == "12 x (4 x (3 + 5 + 3 x 2 + 5) + 1) = 924"
    assert numbers["mini-batches"] == "12 x (4 x (3 + 5) + 4 x (2 x 2 + 4)) = 768"
    assert numbers["saved activations"] == "12 x 4 x (1 x (6 + 7) + (6) + 1 x (6 + 7) + (6)) = 1,824"


def two_groups() -> ExperimentConfig:
    """4 envs x 3 steps, one mini-batch, networks 3-6-7-2 and 5-6-7-1, observations normalized."""
    overrides = ["num_envs=4", "num_steps_per_env=3", "algorithm.num_mini_batches=1", "network.hidden_dims=[6,7]"]
    cfg = composed("env=hover", *overrides, "network.obs_normalization=true", "network.activation=elu")
    return replace(cfg, env=TWO_GROUPS)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_holds_each_hidden_layer_once_or_twice(activation: str) -> None:
    cfg = two_hidden_layers(activation)
    once = activation in ("elu", "tanh", "relu", "sigmoid", "identity")
    by_hand = 12 * 4 * 2 * ((5 + 7) * (1 if once else 2) + 5)  # 12 transitions, float32, two networks; 5: gradients
    assert held_bytes(cfg) == by_hand
    assert total_bytes(closed_form.saved_activations(cfg)) == by_hand


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mixed_precision_halves_the_activations_and_copies_the_hidden_layers_parameters(activation: str) -> None:
    cfg = two_hidden_layers(activation, "algorithm.use_mixed_precision=true")
    whole = total_bytes(closed_form.saved_activations(two_hidden_layers(activation)))
    by_hand = whole // 2 + 2 * 2 * (18 * 5 + 6 * 7)
    assert held_bytes(cfg) == by_hand == closed_form.formulas(cfg)[-1].bytes
    assert evaluate(closed_form.formulas(cfg)[-1].numbers.partition(" = ")[0]) == by_hand


def held_bytes(cfg: ExperimentConfig) -> int:
    alg = untrained(cfg)
    update = LeanUpdate(alg, Networks.of(alg), SingleProcess(), num_learning_epochs=1)
    return storage_bytes(held_between_passes(alg, update, alg.storage.observations.flatten(0, 1)))


def two_hidden_layers(activation: str, *overrides: str) -> ExperimentConfig:
    """The drone with one mini-batch of 12 transitions and networks 17-5-7-."""
    return composed(
        "env=hover",
        "num_envs=4",
        "num_steps_per_env=3",
        "algorithm.num_mini_batches=1",
        "network.hidden_dims=[5,7]",
        f"network.activation={activation}",
        *overrides,
    )


def test_go2_at_4096_envs_by_hand() -> None:
    cfg = composed("env=go2")
    rollout = {spec.name: spec.bytes for spec in closed_form.rollout_storage(cfg)}
    assert rollout["distribution_params.0"] == rollout["distribution_params.1"] == 4_718_592  # 98,304 x 12 x 4
    assert rollout["dones"] == 98_304
    assert sum(rollout.values()) == 33_914_880  # 98,304 x 345
    assert total_bytes(closed_form.mini_batches(cfg)) == 28_704_768  # 98,304 x 292
    learned = closed_form.parameters(cfg)
    assert sum(spec.elements for spec in learned if spec.name.startswith("actor.mlp")) == 189_324
    assert sum(spec.elements for spec in learned if spec.name.startswith("critic.mlp")) == 187_905
    assert total_bytes(learned) == 1_508_964  # 377,241 x 4
    assert total_bytes(closed_form.gradients(cfg)) == 1_508_964 + 16
    assert total_bytes(closed_form.optimizer_state(cfg)) == 3_017_928
    assert total_bytes(closed_form.optimizer_steps(cfg)) == 68  # 17 parameters, in host memory
    # per transition and network 512 + 256 + 128 and gradients 512 + 256 = 1,664 floats; 24,576 x 2 x 1,664 x 4
    assert total_bytes(closed_form.saved_activations(cfg)) == 327_155_712
    assert closed_form.normalizer_buffers(cfg) == ()


def test_hover_at_8192_envs_by_hand() -> None:
    cfg = composed("env=hover")
    rollout = {spec.name: spec.bytes for spec in closed_form.rollout_storage(cfg)}
    assert rollout["observations.policy"] == 55_705_600
    assert rollout["actions"] == 13_107_200
    assert rollout["rewards"] == 3_276_800
    assert rollout["dones"] == 819_200
    assert sum(rollout.values()) == 112_230_400  # 819,200 x 137
    learned = closed_form.parameters(cfg)
    assert sum(spec.elements for spec in learned) == 38_281
    trained = learned + closed_form.gradients(cfg) + closed_form.optimizer_state(cfg)
    assert total_bytes(trained) == 612_496 + 16
    # per transition and network 128 + 128 and gradients 128 = 384 floats; 204,800 x 2 x 384 x 4
    assert total_bytes(closed_form.saved_activations(cfg)) == 629_145_600


def test_the_formulas_of_go2_can_be_read() -> None:
    lines = {term.term: term.numbers for term in closed_form.formulas(composed("env=go2"))}
    assert lines["transitions"] == "4,096 x 24 = 98,304"
    assert lines["rollout"] == "98,304 x (4 x (45 + 3 x 12 + 5) + 1) = 33,914,880"
    assert lines["mini-batches"] == "98,304 x (4 x (45) + 4 x (2 x 12 + 4)) = 28,704,768"
    assert lines["gradients"] == "4 x (377,241 + 4) = 1,508,980"
    assert lines["optimizer state"] == "2 x 4 x 377,241 = 3,017,928"


def test_the_documented_comparison_is_what_the_program_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = DOC.read_text().split("<!-- source_comparison -->")[1].split("<!-- /source_comparison -->")[0]
    runpy.run_path(str(DOC.parent.parent / "benchmarks" / "source_figures.py"), run_name="__main__")
    assert page.strip() == capsys.readouterr().out.strip()


def test_the_closed_forms_need_the_standard_library_alone() -> None:
    code = (
        "import sys; before = set(sys.modules); import ppo_lab.memory.predict.closed_form; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.split() == ["ppo_lab"]
