"""The lean update against rsl_rl's own, on the same rollouts with the same seeds."""

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from rsl_rl.algorithms import PPO
from tensordict import TensorDict
from torch import Tensor

from ppo_lab.config import ExperimentConfig
from ppo_lab.learning.perceptron import Networks
from ppo_lab.learning.ppo import build_ppo
from ppo_lab.learning.ranks import SingleProcess
from ppo_lab.learning.update import LeanUpdate, adapted, compute_returns, normalize

CPU = torch.device("cpu")
UPDATES = 20
SMALL = "network.hidden_dims=[32,16]"

Experiment = Callable[..., ExperimentConfig]


def observations_of(cfg: ExperimentConfig) -> TensorDict:
    """Drawn from the default generator."""
    spec = cfg.env.spec()
    drawn = {group: 2 * torch.randn(cfg.num_envs, spec.width(group)) + 0.5 for group in spec.observations}
    return TensorDict(drawn, batch_size=[cfg.num_envs], device=CPU)


def learner(cfg: ExperimentConfig, device: torch.device = CPU) -> PPO:
    example = observations_of(cfg).to(device)
    torch.manual_seed(1)
    alg = build_ppo(cfg, example)
    alg.train_mode()
    return alg


def fill(alg: PPO, cfg: ExperimentConfig, seed: int) -> TensorDict:
    """A rollout of random observations: a tenth of the steps ends an episode, half of those by time. Gives the last."""
    torch.manual_seed(seed)
    with torch.inference_mode():
        for _ in range(cfg.num_steps_per_env):
            alg.act(observations_of(cfg))
            rewards = torch.randn(cfg.num_envs)
            dones, late = torch.rand(cfg.num_envs) < 0.1, torch.rand(cfg.num_envs) < 0.5
            alg.process_env_step(observations_of(cfg), rewards, dones, {"time_outs": dones & late})
        return observations_of(cfg)


def copy_rollout(source: PPO, target: PPO, envs: slice = slice(None)) -> None:
    """Every transition of the envs, as `source` stored them."""
    there, here = source.storage, target.storage
    here.observations.copy_(there.observations[:, envs])
    for name in ("actions", "rewards", "dones", "values", "actions_log_prob"):
        getattr(here, name).copy_(getattr(there, name)[:, envs])
    assert there.distribution_params is not None
    here.distribution_params = tuple(tensor[:, envs].to(here.device, copy=True) for tensor in there.distribution_params)
    here.step = there.step


def weights(alg: PPO) -> dict[str, Tensor]:
    networks = (("actor", alg.actor), ("critic", alg.critic))
    return {f"{name}.{key}": value for name, network in networks for key, value in network.state_dict().items()}


def rsl_rls_update(alg: PPO, last: TensorDict) -> dict[str, float]:
    with torch.inference_mode():
        alg.compute_returns(last)
    return alg.update()


@pytest.mark.parametrize(
    "words",
    [
        ["env=hover"],
        ["env=go2", "algorithm.learning_rate=3e-4"],
        ["env=hover", SMALL, "algorithm.schedule=fixed", "algorithm.learning_rate=3e-4"],
        ["env=go2", SMALL, "algorithm.use_clipped_value_loss=false"],
        ["env=hover", SMALL, "algorithm.normalize_advantage_per_mini_batch=true"],
        ["env=go2", SMALL, "algorithm.normalize_advantage_per_mini_batch=true", "algorithm.num_mini_batches=1"],
        ["env=hover", SMALL, "network.obs_normalization=true", "network.actor.std_type=log"],
        ["env=go2", SMALL, "algorithm.optimizer=adamw", "network.critic.obs_normalization=true"],
        ["env=hover", SMALL, "algorithm.optimizer=sgd"],
        ["env=hover", SMALL, "algorithm.optimizer=rmsprop"],
    ],
)
def test_losses_and_weights_agree_with_rsl_rls_to_1e_6_over_20_updates(
    words: list[str], experiment: Experiment
) -> None:
    """The order of sums differs, in the entropy, the deviation's gradient and the fused optimizer step: no more.

    Each learner acts for itself, with the same noise: rsl_rl raises the learning rate where the KL divergence is above
    0, and that of a policy's own rollout is exactly 0 at the first mini-batch.
    """
    cfg = experiment("experiment=smoke", *words)
    theirs, ours = learner(cfg), learner(cfg)
    update = LeanUpdate(ours, Networks.of(ours), SingleProcess(), cfg.algorithm.num_learning_epochs)
    for seed in range(UPDATES):
        their_losses = rsl_rls_update(theirs, fill(theirs, cfg, seed))
        assert update(fill(ours, cfg, seed)) == pytest.approx(their_losses, abs=1e-6, rel=1e-6)
        assert ours.learning_rate == theirs.learning_rate
        assert ours.storage.step == 0
        torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-6, atol=1e-6)


def test_returns_and_normalized_advantages_are_exactly_rsl_rls(experiment: Experiment) -> None:
    cfg = experiment("experiment=smoke", "env=hover", SMALL)
    theirs, ours = learner(cfg), learner(cfg)
    last = fill(theirs, cfg, seed=3)
    copy_rollout(theirs, ours)
    with torch.no_grad():
        theirs.compute_returns(last)
        compute_returns(ours, ours.critic(last))
        normalize([ours.storage.advantages.flatten()], SingleProcess())
    assert torch.equal(ours.storage.returns, theirs.storage.returns)
    assert torch.equal(ours.storage.advantages, theirs.storage.advantages)


@pytest.mark.parametrize(
    ("learning_rate", "kl", "expected"),
    [
        (1e-3, 0.021, 1e-3 / 1.5),
        (1e-3, 0.020, 1e-3),
        (1e-3, 0.005, 1e-3),
        (1e-3, 0.004, 1e-3 * 1.5),
        (1e-3, 0.0, 1e-3),
        (1.2e-5, 1.0, 1e-5),
        (9e-3, 0.001, 1e-2),
        (1e-3, math.nan, 1e-3),
    ],
)
def test_the_learning_rate_falls_where_the_kl_is_large_and_rises_where_it_is_small(
    learning_rate: float, kl: float, expected: float
) -> None:
    found = adapted(torch.tensor(learning_rate, dtype=torch.float64), torch.tensor(kl), desired_kl=0.01)
    assert found.item() == expected


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
def test_the_optimizers_state_is_saved_as_rsl_rl_saves_it(optimizer: str, experiment: Experiment) -> None:
    cfg = experiment("experiment=smoke", "env=hover", SMALL, f"algorithm.optimizer={optimizer}")
    theirs, ours = learner(cfg), learner(cfg)
    last = fill(theirs, cfg, seed=3)
    copy_rollout(theirs, ours)
    LeanUpdate(ours, Networks.of(ours), SingleProcess(), cfg.algorithm.num_learning_epochs)(last)
    rsl_rls_update(theirs, last)
    saved, expected = ours.optimizer.state_dict(), theirs.optimizer.state_dict()
    assert saved["param_groups"] == expected["param_groups"], "lr is a number, and nothing is fused"
    assert form_of(saved["state"]) == form_of(expected["state"])
    theirs.load(ours.save(), load_cfg=None, strict=True)
    assert theirs.learning_rate == ours.learning_rate


def form_of(state: dict[int, dict[str, Any]]) -> dict[int, dict[str, tuple[torch.Size, torch.dtype]]]:
    return {index: {name: (value.shape, value.dtype) for name, value in of.items()} for index, of in state.items()}


class TwoThreads:
    """Ranks of two threads of one process."""

    world_size = 2

    def __init__(self, rank: int, meeting: threading.Barrier, given: list[Tensor]) -> None:
        self.rank = rank
        self._meeting, self._given = meeting, given
        self.calls = 0

    def reduce_mean(self, values: Tensor) -> None:
        self.calls += 1
        self._given[self.rank] = values.clone()
        self._meeting.wait()
        values.copy_((self._given[0] + self._given[1]) / 2)
        self._meeting.wait()

    def broadcast(self, values: Tensor) -> None:
        raise AssertionError("an update broadcasts nothing")

    def exchange(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        raise AssertionError("an update exchanges nothing")

    def gather(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        raise AssertionError("an update gathers nothing")

    def scatter(self, values: Sequence[dict[str, Any]]) -> dict[str, Any]:
        raise AssertionError("an update scatters nothing")


@pytest.mark.parametrize("per_mini_batch", ["true", "false"])
def test_two_ranks_get_the_gradient_and_losses_of_the_whole_batch(per_mini_batch: str, experiment: Experiment) -> None:
    """With one mini-batch, since ranks shuffle apart; SGD's step is the gradient, clipped and scaled."""
    words = [
        *("experiment=smoke", "env=hover", SMALL, "algorithm.optimizer=sgd", "algorithm.num_mini_batches=1"),
        *("algorithm.num_learning_epochs=3", f"algorithm.normalize_advantage_per_mini_batch={per_mini_batch}"),
    ]
    whole_cfg, half_cfg = experiment(*words), experiment(*words, "num_envs=8")
    whole, halves = learner(whole_cfg), [learner(half_cfg), learner(half_cfg)]
    last = fill(whole, whole_cfg, seed=3)
    meeting, given = threading.Barrier(2, timeout=60), [torch.zeros(0)] * 2
    ranks = [TwoThreads(rank, meeting, given) for rank in range(2)]
    losses: list[dict[str, float]] = [{}, {}]

    def update_half(rank: int) -> None:
        half = halves[rank]
        losses[rank] = LeanUpdate(half, Networks.of(half), ranks[rank], num_learning_epochs=3)(
            last[8 * rank : 8 * rank + 8]
        )

    for rank in range(2):
        copy_rollout(whole, halves[rank], slice(8 * rank, 8 * rank + 8))
    threads = [threading.Thread(target=update_half, args=(rank,), daemon=True) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    expected = LeanUpdate(whole, Networks.of(whole), SingleProcess(), num_learning_epochs=3)(last)
    assert losses[0] == losses[1] == pytest.approx(expected, rel=1e-6, abs=1e-6)
    for half in halves:
        gradients = [parameter.grad for parameter in half.actor.parameters()]
        torch.testing.assert_close(gradients, [p.grad for p in whole.actor.parameters()], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(weights(half), weights(whole), rtol=1e-6, atol=1e-6)
        assert half.learning_rate == whole.learning_rate
    assert ranks[0].calls == 1 + 3, "once for the advantages, once a mini-batch"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
def test_an_update_on_a_gpu_is_that_of_a_cpu(optimizer: str, experiment: Experiment) -> None:
    cfg = experiment("experiment=smoke", "env=hover", SMALL, f"algorithm.optimizer={optimizer}")
    cpu, gpu = learner(cfg), learner(cfg, torch.device("cuda:0"))
    gpu.load(cpu.save(), load_cfg=None, strict=True)
    last = fill(cpu, cfg, seed=3)
    copy_rollout(cpu, gpu)
    losses = []
    for alg in (cpu, gpu):  # one mini-batch, since a permutation is another one there
        alg.num_mini_batches = 1
        losses.append(LeanUpdate(alg, Networks.of(alg), SingleProcess(), 2)(last.to(alg.device)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4, abs=1e-5)
    torch.testing.assert_close(weights(gpu), weights(cpu), rtol=1e-3, atol=1e-4, check_device=False)
