"""NaN and Inf stop training at the right place, with evidence that repeats it; the simulator's errors stop it too."""

import contextlib
import copy
import functools
import json
import math
import os
import re
import subprocess
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ppo_lab.cli import replay
from ppo_lab.config import ExperimentConfig
from ppo_lab.contracts import StepResult
from ppo_lab.envs import make_env
from ppo_lab.errors import ConfigError, SimulatorError
from ppo_lab.learning import checkpoint, guard
from ppo_lab.learning.guard import Fault, NonFiniteError
from ppo_lab.learning.loop import Loop
from ppo_lab.learning.perceptron import Networks
from ppo_lab.learning.ranks import SingleProcess
from ppo_lab.learning.update import LeanUpdate
from ppo_lab.machine import commands
from ppo_lab.memory.measure.monitor import MemoryMonitor
from ppo_lab.probes.learner import ZeroEnv
from tests import forked_runs
from tests.forked_runs import Fault as ForkedFault
from tests.forked_runs import ForkedRun

T, N = 8, 16
"""Steps and envs of experiment=smoke."""
NAN, INF = math.nan, math.inf

Experiment = Callable[..., ExperimentConfig]
Step = StepResult
Train = Callable[..., subprocess.CompletedProcess[str]]
Failed = tuple[Path, int, str]


class FaultyEnv(ZeroEnv):
    """Zeros, but for what `fault` does to a step, given its number in the run."""

    def __init__(self, cfg: ExperimentConfig, fault: Callable[[int, Step], None]) -> None:
        super().__init__(cfg)
        self._fault = fault
        self._steps = 0

    def step(self, actions: Tensor) -> Step:
        stepped = super().step(actions)
        self._fault(self._steps, stepped)
        self._steps += 1
        return stepped


class Reports:
    """What left the loop."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}
        self.saved: list[int] = []

    def report(self, iteration: int, scalars: dict[str, float]) -> None:
        self.rows[iteration] = scalars

    def is_due(self, iteration: int) -> bool:
        return False

    def maybe_save(self, iteration: int, *_: Any, **__: Any) -> None:
        self.saved.append(iteration)


def looping(cfg: ExperimentConfig, reports: Reports, fault: Callable[[int, Step], None] = lambda *_: None) -> Loop:
    return Loop(FaultyEnv(cfg, fault), cfg, MemoryMonitor(torch.device("cpu")), reports, reports.report)


def stopped(loop: Loop, reports: Reports, iterations: int = 4) -> NonFiniteError:
    """What `learn` raised; nothing of that iteration was reported or saved."""
    with pytest.raises(NonFiniteError) as caught:
        loop.learn(iterations)
    before = list(range(caught.value.fault.iteration))
    assert reports.saved == list(reports.rows) == before
    return caught.value


def test_observations_are_named_by_the_step_that_acts_on_them_and_by_env(experiment: Experiment) -> None:
    def fault(step: int, stepped: Step) -> None:
        if step == 2 * T + 4:  # what the step after, 5, acts on
            stepped.observations["policy"][[3, 11], 2] = NAN

    reports = Reports()
    found = stopped(looping(experiment("experiment=smoke"), reports, fault), reports)
    assert found.fault.env_ids == [3, 11]
    assert str(found) == "observations are not finite in iteration 2: nan first at step 5 in 2 envs: 3, 11"


def test_a_nonfinite_observation_of_the_last_step_stops_the_run(experiment: Experiment) -> None:
    def fault(step: int, stepped: Step) -> None:
        if step == 2 * T - 1:
            stepped.observations["policy"][15, 0] = -INF

    reports = Reports()
    cfg = experiment("experiment=smoke", "network.activation=tanh")  # bounded: the value of that state is finite
    found = stopped(looping(cfg, reports, fault), reports)
    assert found.fault == Fault(1, "observations", -INF, T, [15], [])
    assert found.evidence["observations"][T, 0, 0] == -INF


def test_rewards_are_named_by_the_step_that_earned_them(experiment: Experiment) -> None:
    def fault(step: int, stepped: Step) -> None:
        if step == T + 5:
            stepped.rewards[0] = INF
        if step == T + 6:  # not the first
            stepped.observations["policy"][9] = NAN

    reports = Reports()
    found = stopped(looping(experiment("experiment=smoke"), reports, fault), reports)
    assert found.fault == Fault(1, "rewards", INF, 5, [0], [])
    assert found.evidence["envs"].tolist() == [0, 1, 2, 3, 4], "and a few others to compare with"
    assert found.evidence["rewards"].shape == (T, 5, 1)
    assert found.evidence["rewards"].isinf().nonzero().tolist() == [[5, 0, 0]]


@pytest.mark.parametrize(("network", "group"), [("actor", "actions"), ("critic", "values")])
def test_a_network_that_overflows_is_told_from_the_env(experiment: Experiment, network: str, group: str) -> None:
    def fault(step: int, stepped: Step) -> None:
        stepped.observations["policy"][:] = 10.0

    reports = Reports()
    running = looping(experiment("experiment=smoke", "network.activation=relu"), reports, fault)
    with torch.no_grad():
        for parameter in getattr(running.alg, network).mlp.parameters():
            parameter.fill_(1e30)  # finite, as is 10; their products are not
    found = stopped(running, reports)
    assert found.fault == Fault(0, group, INF, 0, list(range(N)), [])


def test_a_nonfinite_loss_is_named(experiment: Experiment) -> None:
    def fault(step: int, stepped: Step) -> None:
        stepped.rewards[:] = 1e30  # finite, and its square is not

    reports = Reports()
    found = stopped(looping(experiment("experiment=smoke"), reports, fault), reports)
    assert (found.fault.group, found.fault.step, found.fault.env_ids) == ("losses", None, [])
    assert "value" in found.fault.names
    assert found.evidence["losses"]["value"] == INF
    assert str(found).startswith("losses are not finite in iteration 0: value")


def test_nonfinite_weights_are_named(experiment: Experiment) -> None:
    reports = Reports()
    running = looping(experiment("experiment=smoke", "algorithm.num_mini_batches=1"), reports)
    bias = running.alg.critic.mlp[2].bias

    class SpoilingRanks(SingleProcess):
        def reduce_mean(self, values: torch.Tensor) -> None:
            if values.dim() == 1:  # the gradients
                assert bias.grad is not None
                bias.grad /= 0.0

    running.update = LeanUpdate(
        running.alg, Networks.of(running.alg), SpoilingRanks(), num_learning_epochs=1
    )  # the loss comes before the step
    found = stopped(running, reports)
    assert (found.fault.group, found.fault.iteration) == ("weights", 0)
    assert all(name.startswith("critic.mlp.") for name in found.fault.names), "gradients are clipped network by network"
    assert "critic.mlp.2.bias" in found.fault.names


def test_a_nonfinite_normalizer_is_reported_as_weights(experiment: Experiment) -> None:
    reports = Reports()
    running = looping(experiment("experiment=smoke", "network.obs_normalization=true"), reports)
    running.alg.actor.obs_normalizer._var[0, 4] = NAN  # not read in an update, unlike the standard deviation
    found = stopped(running, reports)
    assert found.fault == Fault(0, "weights", found.fault.value, None, [], found.fault.names)
    assert found.fault.names[0].startswith("actor.obs_normalizer._")


def test_an_env_that_raises_after_a_nan_observation_is_reported_as_nan(experiment: Experiment) -> None:
    def fault(step: int, stepped: Step) -> None:
        if step == T + 2:
            stepped.observations["policy"][7] = NAN
        if step == T + 3:
            raise RuntimeError("singular matrix")

    reports = Reports()
    found = stopped(looping(experiment("experiment=smoke"), reports, fault), reports)
    assert found.fault == Fault(1, "observations", found.fault.value, 3, [7], [])
    assert str(found.__context__) == "singular matrix"
    assert found.evidence["actions"].shape[0] == 3


def test_an_env_that_raises_on_finite_values_raises_its_own_error(experiment: Experiment) -> None:
    def fault(step: int, stepped: Step) -> None:
        if step == T + 3:
            raise RuntimeError("singular matrix")

    with pytest.raises(RuntimeError, match=r"^singular matrix$"):
        looping(experiment("experiment=smoke"), Reports(), fault).learn(2)


def test_finite_rewards_whose_sum_overflows_are_accepted(experiment: Experiment) -> None:
    running = looping(experiment("experiment=smoke"), Reports())
    running.learn(1)
    running.alg.storage.rewards.fill_(3e38)
    assert running.alg.storage.rewards.sum() == INF
    guard.check(running.alg, 0, running.env.get_observations(), {"value": 1.0})


def test_the_guard_reads_the_device_once_an_iteration(experiment: Experiment) -> None:
    class HostReads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero", "aten::equal")
            self.count += func.name() in names
            return func(*args, **(kwargs or {}))

    running = looping(experiment("experiment=smoke"), Reports())
    running.learn(1)
    with HostReads() as reads:
        guard.check(running.alg, 0, running.env.get_observations(), {"value": 1.0})
    assert reads.count == 1


def test_a_dump_holds_the_envs_at_fault_first_and_not_all_of_many(experiment: Experiment) -> None:
    def fault(step: int, stepped: Step) -> None:
        if step == 1:
            stepped.rewards[20:] = NAN

    reports = Reports()
    found = stopped(looping(experiment("experiment=smoke", "num_envs=64"), reports, fault), reports)
    assert found.fault.env_ids == list(range(20, 64))
    assert found.evidence["envs"].tolist() == [*range(20, 36), 0, 1, 2, 3]
    assert str(found).endswith("nan first at step 1 in 44 envs: 20, 21, 22, 23, 24, 25, 26, 27, ...")


def test_the_loop_saves_and_loads_through_checkpoints_alone() -> None:
    """rsl_rl's own `save` writes no checksum and no state, and its `load` unpickles."""
    assert not hasattr(Loop, "save")
    assert not hasattr(Loop, "load")


def test_the_networks_are_printed_to_the_log(
    experiment: Experiment, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        looping(experiment("experiment=smoke"), Reports())
    assert capsys.readouterr().out == ""
    assert any(message.startswith("Actor Model: MLPModel") for message in caplog.messages)


class Memory:
    """Keeps what a checkpoint would hold."""

    def is_due(self, iteration: int) -> bool:
        return True

    def maybe_save(self, iteration: int, model: Callable[[], Any], state: Any, *_: Any, **__: Any) -> None:
        self.model, self.state = copy.deepcopy((model(), state))


class StatefulEnv(ZeroEnv):
    """Has one number as its state."""

    value = 0

    def state(self) -> dict[str, Any]:
        return {"value": self.value}

    def restore(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def saving(cfg: ExperimentConfig, memory: Memory) -> Loop:
    return Loop(StatefulEnv(cfg), cfg, MemoryMonitor(torch.device("cpu")), memory, lambda *_: None)


def another_shape(tensors: dict[str, Any], name: str) -> None:
    tensors[name] = torch.zeros(1)  # would broadcast


DO_NOT_FIT: dict[str, Callable[[Any, Any], Any]] = {
    r"the saved state has no mlp\.0\.bias, which the actor has": lambda m, s: m["actor_state_dict"].pop("mlp.0.bias"),
    r"mlp\.0\.bias of the critic is \(512,\) float32, and \(1,\)": lambda m, s: another_shape(
        m["critic_state_dict"], "mlp.0.bias"
    ),
    "the saved state has no exp_avg of parameter 3, which the optimizer has": lambda m, s: m["optimizer_state_dict"][
        "state"
    ][3].pop("exp_avg"),
    r"exp_avg of parameter 0 of the optimizer is .*, and \(1,\)": lambda m, s: another_shape(
        m["optimizer_state_dict"]["state"][0], "exp_avg"
    ),
    "the saved state has no length, which the episode statistics has": lambda m, s: s["episodes"].pop("length"),
    r"return of the episode statistics is \(16,\) float32, and \(1,\)": lambda m, s: another_shape(
        s["episodes"], "return"
    ),
    "the saved state has no numpy, which a run on cpu has": lambda m, s: s["random"].pop("numpy"),
}


@pytest.mark.parametrize("message", DO_NOT_FIT)
def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_is_changed(
    experiment: Experiment, message: str
) -> None:
    cfg = experiment("experiment=smoke", "env=go2")
    memory, untouched = Memory(), Memory()
    saved = saving(cfg, memory)
    saved.env.value = 5  # type: ignore[attr-defined]
    saved.learn(1)
    fresh = saving(cfg, untouched)
    before = copy.deepcopy((fresh.model(), fresh.episodes.state(), torch.get_rng_state()))
    DO_NOT_FIT[message](memory.model, memory.state)
    with pytest.raises(ValueError, match=f"^{message}"):
        fresh.restore(memory.model, memory.state)
    after = fresh.model(), fresh.episodes.state(), torch.get_rng_state()
    assert all(map(torch.equal, *[[x for x in tree_leaves(of) if isinstance(x, Tensor)] for of in (before, after)]))
    assert fresh.env.value == 0  # type: ignore[attr-defined]


def test_a_checkpoint_that_fits_is_restored(experiment: Experiment) -> None:
    cfg = experiment("experiment=smoke", "env=go2")
    memory = Memory()
    saved = saving(cfg, memory)
    saved.env.value = 5  # type: ignore[attr-defined]
    saved.learn(1)
    saved.episodes.last_returns.append(3.0)
    memory.state["episodes"] = copy.deepcopy(saved.episodes.state())
    memory.state["random"]["cuda"] = torch.zeros(16, dtype=torch.uint8)  # saved on a GPU
    fresh = saving(cfg, Memory())
    fresh.episodes.last_returns.append(9.0)  # is replaced, not added to
    fresh.restore(memory.model, memory.state)
    assert fresh.env.value == 5  # type: ignore[attr-defined]
    assert list(fresh.episodes.last_returns) == [3.0]
    assert torch.equal(fresh.alg.actor.mlp[0].weight, saved.alg.actor.mlp[0].weight)
    assert fresh.next_iteration == 1


ON_CUDA = {"cuda": torch.full((16,), 7, dtype=torch.uint8)}
"""What the random state of a run on a GPU has besides."""


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is set of the random numbers of a GPU that is not there."""
    done: dict[str, Any] = {}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.zeros(16, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: done.update(state=state))
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: done.update(seed=seed))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    return done


@pytest.mark.parametrize(("there", "here"), [("cuda", "cpu"), ("cpu", "cuda"), ("cpu", "cpu"), ("cuda", "cuda")])
def test_on_another_kind_of_device_only_the_random_numbers_begin_anew(
    there: str, here: str, experiment: Experiment, a_gpu: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    cfg = experiment("experiment=smoke", "env=go2")
    memory = Memory()
    saved = saving(cfg, memory)
    saved.env.value = 5  # type: ignore[attr-defined]
    saved.learn(1)
    of_the_cpu = memory.state["random"]["torch"]
    memory.state["random"] |= ON_CUDA if there == "cuda" else {}
    fresh = saving(cfg, Memory())
    fresh.env.device = torch.device(here)  # where the tensors would be
    fresh.restore(memory.model, memory.state)
    assert (fresh.env.value, fresh.next_iteration) == (5, 1)  # type: ignore[attr-defined]
    assert torch.equal(fresh.alg.actor.mlp[0].weight, saved.alg.actor.mlp[0].weight)
    assert torch.equal(fresh.episodes._return, saved.episodes._return)
    assert list(fresh.alg.optimizer.state_dict()["state"]) == list(memory.model["optimizer_state_dict"]["state"])
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    if there == here:
        assert said == []
        assert torch.equal(torch.get_rng_state(), of_the_cpu)
        assert "seed" not in a_gpu
        assert ("state" in a_gpu) == (here == "cuda")
        return
    assert said == [
        f"saved on {there}, the run goes on on {here}, whose random numbers begin anew from seed and iteration: "
        f"it will not come out as on {there} alone"
    ]
    assert "state" not in a_gpu
    assert ("seed" in a_gpu) == (here == "cuda")
    assert torch.equal(torch.get_rng_state(), of_the_cpu) == (here == "cuda")


@pytest.mark.parametrize(("there", "here"), [("cuda", "cpu"), ("cpu", "cuda"), ("cpu", "cpu")])
def test_a_simulator_that_does_not_fit_says_on_which_kind_of_device_it_does(
    there: str, here: str, experiment: Experiment, a_gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise ValueError("the simulator has no solver.jac, which the saved state has")

    cfg = experiment("experiment=smoke", "env=go2")
    memory = Memory()
    saving(cfg, memory).learn(1)
    memory.state["random"] |= ON_CUDA if there == "cuda" else {}
    fresh = saving(cfg, Memory())
    fresh.env.device = torch.device(here)
    monkeypatch.setattr(StatefulEnv, "restore", refuse)
    before = copy.deepcopy((fresh.model(), torch.get_rng_state()))
    with pytest.raises(ValueError, match=r"^the simulator has no solver\.jac, which the saved state has") as refused:
        fresh.restore(memory.model, memory.state)
    where = f"It was saved on {there}, and on {here} the simulator keeps something else"
    assert (where in str(refused.value)) == (there != here)
    assert str(refused.value).endswith(f"it can go on with device={there} alone") == (there != here)
    after = fresh.model(), torch.get_rng_state()
    assert all(map(torch.equal, *[[x for x in tree_leaves(of) if isinstance(x, Tensor)] for of in (before, after)]))


FAULT_AT = 2 * T + 5


def rewards_turn(value: float) -> ForkedFault:
    """The rewards of hover's envs 3 and 11 become `value` in step FAULT_AT."""
    return functools.partial(_spoil_rewards, value)


def _spoil_rewards(value: float) -> None:
    os.environ["COLUMNS"] = "200"  # of the tables that replay prints
    _, env, _ = next(built for built in forked_runs.BUILT if built[0].name == "hover")
    step, env.steps = env.step, torch.zeros((), dtype=torch.int64)  # saved and restored with the env's other tensors

    def step_with_a_fault(actions: Tensor) -> Any:
        result = step(actions)
        if env.steps == FAULT_AT:
            result.rewards[[3, 11]] = value
        env.steps = env.steps + 1
        return result

    env.step = step_with_a_fault


def replayed(dump: Path, tmp_path: Path, fault: ForkedFault | None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `python -m ppo_lab replay`."""
    out, errors = tmp_path / "out", tmp_path / "errors"
    forked = ForkedRun(["replay", str(dump)], out, fault, errors=errors, program="ppo_lab")
    return *forked.ends(), errors.read_text()


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Failed:
    """The folder of a run of train.py whose rewards turned NaN, its exit code, and what it printed to stderr."""
    folder = tmp_path_factory.mktemp("runs")
    run, errors = folder / "a run", folder / "errors"
    overrides = ["experiment=smoke", "env=hover", "max_iterations=5", f"hydra.run.dir={run}"]
    code = ForkedRun(overrides, folder / "out", rewards_turn(NAN), errors=errors).join()
    return run, code, errors.read_text()


def test_a_nan_reward_ends_the_run_with_one_line_that_names_step_envs_replay_and_remedy(failed: Failed) -> None:
    folder, code, printed = failed
    assert code == 1
    message = (
        "rewards are not finite in iteration 2: nan first at step 5 in 2 envs: 3, 11; "
        f"{commands.module('replay', f'{folder}/nan_2.pt')} shows and repeats it; last good checkpoint: iteration 1; "
        "look at the env's reward terms; a larger env.substeps steadies a simulation; "
        "to begin a new run with that checkpoint and other settings: "
        + commands.train("experiment=smoke", "env=hover", "max_iterations=5", f"init_from={folder}:1")
    )
    assert printed == f"error: {message}\n"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["message"], summary["iterations"]) == ("failed", message, 2)


def test_nan_reaches_neither_checkpoint_nor_metrics(failed: Failed) -> None:
    folder, *_ = failed

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not JSON")

    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [row["iteration"] for row in rows] == [0, 1]
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert [name for name in names if name != "best.pt"] == ["model_0.pt", "model_1.pt", "state_0.pt", "state_1.pt"]
    for name in names:
        state = checkpoint.load(folder / "checkpoints" / name)
        if name.startswith("state"):
            state = {"env": state["env"]["own"], "episodes": state["episodes"]}  # the simulator's limits are inf
        tensors = [value for value in tree_leaves(state) if isinstance(value, Tensor)]
        assert len(tensors) > 5
        assert all(tensor.isfinite().all() for tensor in tensors), name


def test_replay_repeats_the_dump_and_writes_nothing(failed: Failed, tmp_path: Path) -> None:
    folder, *_ = failed
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code, printed, errors = replayed(folder / "nan_2.pt", tmp_path, rewards_turn(NAN))
    assert code == 0, errors
    *_, last = printed.splitlines()
    assert last == (
        "repeated from the checkpoint of iteration 1, identically: "
        "rewards are not finite in iteration 2: nan first at step 5 in 2 envs: 3, 11"
    )
    steps = re.findall(r"^ +(\d) .* (\S+) +(\S+) *$", printed, re.MULTILINE)
    assert [int(step) for step, *_ in steps] == [0, 1, 2, 3, 4, 5] * 2, "env 3 and env 11"
    assert [reward for _, reward, _ in steps].count("nan") == 2
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_replay_of_a_run_that_no_longer_fails_in_the_same_way_says_what_differs(failed: Failed, tmp_path: Path) -> None:
    dump = failed[0] / "nan_2.pt"
    code, _, errors = replayed(dump, tmp_path, rewards_turn(0.5))
    assert code == 1
    assert errors == "error: from the checkpoint of iteration 1 on, all was finite up to iteration 2\n"
    code, _, errors = replayed(dump, tmp_path, rewards_turn(INF))
    assert code == 1
    assert re.fullmatch(
        r"error: .* rewards are not finite in iteration 2: inf .*; not identical: fault, rewards.*\n", errors
    )
    code, _, errors = replayed(dump, tmp_path, None)
    assert code == 1
    assert errors == "error: not repeated: HoverEnv has no steps, which the saved state has\n"


def test_replay_reports_a_difference_of_one_bit(failed: Failed) -> None:
    folder, *_ = failed
    _, dump = replay.read(folder / "nan_2.pt")
    _, again = replay.read(folder / "nan_2.pt")
    assert replay.differences(dump, again) == []
    again["rewards"].view(torch.int32)[5, 0] ^= 1  # another NaN
    again["actor_state_dict"]["mlp.0.bias"].view(torch.int32)[0] ^= 1
    assert replay.differences(dump, again) == ["rewards", "actor_state_dict"]


def test_replay_of_a_dump_without_a_checkpoint_shows_the_table_alone(
    failed: Failed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = tmp_path / "nan_2.pt"
    dump.write_bytes((failed[0] / "nan_2.pt").read_bytes())
    replay.main([str(dump)])
    printed = capsys.readouterr().out
    assert "env 3" in printed
    assert "not repeated, as there is no full state to go on from:" in printed


@pytest.mark.parametrize("name", ["nan_9.pt", "config.yaml", "checkpoints/model_1.pt"])
def test_replay_refuses_a_file_that_is_no_dump(failed: Failed, name: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(name)):
        replay.main([str(failed[0] / name)])


COLLAPSE = [
    "env=go2",
    "env.max_collision_pairs=1",
    "env.robot.kp=0",
    "env.termination_if_roll_greater_than=180",
    "env.termination_if_pitch_greater_than=180",
]
"""Limp, it lies on its belly after a second, with more than the five contacts of one pair."""
TOO_MANY = r"the simulator met more contacts than it has room for, in \d+ steps of single envs in one iteration; "


@torch.inference_mode()
def test_an_env_that_ends_the_episodes_in_which_the_simulator_errs_counts_them(
    experiment: Experiment, simulator: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = experiment(*COLLAPSE)
    env: Any = make_env(cfg.env, 4, simulator, seed=1)
    still = torch.zeros(4, 12)
    env.step(still)
    assert env.check() == {}

    env._robot.entity.set_dofs_velocity(torch.full((2, 18), NAN), envs_idx=[0, 2])
    _, _, dones, *_ = env.step(still)
    assert dones.tolist() == [True, False, True, False]
    assert env.check() == {"Simulator/lost_envs": 2}
    assert caplog.messages == ["the simulator lost an env 2 times in one iteration; try env.substeps=4"]
    assert env.check() == {}

    for _ in range(60):  # Genesis says nothing: the reset clears the error before the next step looks for it
        env.step(still)
    with pytest.raises(SimulatorError, match=TOO_MANY + r"try env\.max_collision_pairs=2$"):
        env.check()


@torch.inference_mode()
def test_an_error_of_the_simulator_names_the_setting_to_change(experiment: Experiment, simulator: torch.device) -> None:
    cfg = experiment("env=hover")
    env: Any = make_env(cfg.env, 2, simulator, seed=1)
    env._drone.set_dofs_velocity(torch.full((1, 6), NAN), envs_idx=[1])
    steps = [env.step] * 10  # it looks for errors at every tenth substep
    with pytest.raises(SimulatorError, match=r"the simulator stopped: Invalid .*; try env\.substeps=4$"):
        deque(step(torch.zeros(2, 4)) for step in steps)


@pytest.mark.slow
def test_more_contacts_than_the_simulator_has_room_for_stop_the_run(train: Train, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    overrides = ["experiment=smoke", *COLLAPSE, "num_steps_per_env=64", f"hydra.run.dir={folder}"]
    done = train(*overrides)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert re.search(TOO_MANY + r"try env\.max_collision_pairs=2 ", done.stderr)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert re.search(TOO_MANY, summary["message"])
    assert list((folder / "checkpoints").iterdir()) == []
