"""What the simulator and the env hold: the stored counts, their lines, and when there are none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ppo_lab import command_line
from ppo_lab.config import ExperimentConfig
from ppo_lab.memory import simulator
from ppo_lab.memory.estimate import Row, estimate
from ppo_lab.memory.hardware import Hardware
from ppo_lab.memory.simulator import MeasurementError, SimulatorMemory, count, fit, simulator_memory

TOY = {
    "num_envs": [2, 4, 3],
    "simulator_bytes": [{"state": 30, "scratch": 100}, {"state": 50, "scratch": 100}, {"state": 40, "scratch": 100}],
    "gpu_simulator_bytes": [112, 114, 113],
    "env_bytes": [20, 40, 30],
    "step_peak_bytes": [17, 27, 22],
    "step_returned_bytes": [6, 8, 7],
    "gpu_thread_bytes": 3,
    "gpu_core_bytes": 1000,
    "len_constraints": 486,
    "n_dofs": 18,
}
"""A count whose lines are 110 + 10 N, 110 + N, 10 N, 7 + 5 N and 4 + N."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator, "cache_folder", lambda: tmp_path / "cache")  # not Genesis' cache of kernels


@pytest.fixture
def toy() -> SimulatorMemory:
    return fit(TOY, "by hand")


def experiment(*words: str) -> ExperimentConfig:
    return command_line.to_experiment(command_line.compose(list(words)))


def known(cfg: ExperimentConfig) -> SimulatorMemory:
    memory = simulator_memory(cfg)
    assert memory is not None
    return memory


def test_a_line_goes_through_the_first_two_sizes(toy: SimulatorMemory) -> None:
    assert toy.bytes(1000) == 10_110
    assert toy.env_bytes(1000) == 10_000
    assert toy.step_peak_bytes(1000) == 5_007
    assert toy.step_returned_bytes(1000) == 1_004
    assert toy.misfit_bytes == 0


def test_on_a_gpu_the_collider_keeps_scratch_for_every_core(toy: SimulatorMemory) -> None:
    # 1000 cores hold 1000 full states; 300 envs x ceil(1000 / 300) = 1200 threads hold small ones
    assert toy.bytes(300, gpu_cores=1000) == (110 + 300) + 1200 * 3 + 1000 * 1000
    # more envs than cores: one thread each
    assert toy.bytes(5000, gpu_cores=1000) == (110 + 5000) + 5000 * 3 + 1000 * 1000


def test_a_count_off_its_line_is_told() -> None:
    assert fit(TOY | {"step_peak_bytes": [17, 27, 29]}, "by hand").misfit_bytes == 7


def test_the_jacobian_of_go2_caps_the_envs_at_245_482() -> None:
    # 486 rows x 18 dofs = 8748 elements per env; 245,482 x 8748 = 2,147,476,536 <= 2^31 - 1 < 245,483 x 8748
    assert known(experiment("env=go2")).max_num_envs() == 245_482


def test_the_jacobian_of_hover_caps_the_envs_at_4_364_804() -> None:
    # 82 rows x 6 dofs = 492 elements per env; 4,364,804 x 492 = 2,147,483,568 <= 2^31 - 1 < 4,364,805 x 492
    assert known(experiment("env=hover")).max_num_envs() == 4_364_804


@pytest.mark.parametrize("env", ["go2", "hover"])
def test_the_stored_counts_are_exactly_straight(env: str) -> None:
    assert known(experiment(f"env={env}")).misfit_bytes == 0


def test_the_stored_line_gives_what_a_fresh_go2_of_another_size_holds() -> None:
    cfg = experiment("env=go2", "env.substeps=3", "env.dt=0.03", "env.clip_actions=0.5", "env.episode_length_s=9")
    memory, fresh = known(cfg), count(cfg, [33])
    assert memory.bytes(33) == sum(fresh["simulator_bytes"][0].values())
    assert memory.env_bytes(33) == fresh["env_bytes"][0]
    assert memory.step_peak_bytes(33) == fresh["step_peak_bytes"][0]
    assert memory.step_returned_bytes(33) == fresh["step_returned_bytes"][0]
    assert memory.gpu_constant_bytes + 33 * memory.gpu_per_env_bytes == fresh["gpu_simulator_bytes"][0]
    assert (memory.gpu_thread_bytes, memory.gpu_core_bytes) == (fresh["gpu_thread_bytes"], fresh["gpu_core_bytes"])
    assert (memory.len_constraints, memory.n_dofs) == (fresh["len_constraints"], fresh["n_dofs"])


def test_a_fresh_hover_gives_the_stored_lines_and_is_remembered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cfg, other = experiment("env=hover"), experiment("env=hover", "env.clip_actions=0.5")
    stored = known(cfg)
    monkeypatch.setattr(simulator, "STORED", tmp_path / "nothing.json")
    simulator.STORED.write_text("[]")
    monkeypatch.setattr(simulator, "SIZES", (33, 7, 2))
    assert simulator_memory(cfg) is None
    assert simulator.measure(cfg) == stored
    assert simulator_memory(cfg) == stored
    assert simulator_memory(other) is None  # of an env that is not stored, any setting might matter


@pytest.mark.parametrize("words", [["env.max_collision_pairs=21"], ["env.performance_mode=true"]])
def test_an_env_that_was_never_counted_is_unknown(words: list[str]) -> None:
    assert simulator_memory(experiment("env=go2", *words)) is None


def test_a_count_of_another_genesis_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator, "_genesis_version", lambda: "1.4.6")
    assert simulator_memory(experiment("env=go2")) is None


def test_an_env_that_cannot_be_built_says_why() -> None:
    cfg = experiment("env=go2")
    cfg.env.name = "gone"
    with pytest.raises(MeasurementError, match=r"env.name=gone: .*env.name=gone is not an env"):
        count(cfg, [2])


class Ball:
    """An env without a scene. Its one tensor is a height for each of N envs, 4 N bytes."""

    num_actions = 1

    def __init__(self, num_envs: int) -> None:
        self.height = torch.zeros(num_envs)

    def get_observations(self) -> dict[str, torch.Tensor]:
        return {"policy": self.height.unsqueeze(1)}

    def step(self, actions: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
        self.height = self.height + actions[:, 0]
        return self.get_observations(), self.height.clone(), self.height > 1, torch.zeros_like(self.height)


BALL = {
    "num_envs": [100, 10, 30],
    "simulator_bytes": [{}, {}, {}],
    "gpu_simulator_bytes": [0, 0, 0],
    "env_bytes": [400, 40, 120],
    "step_returned_bytes": [900, 90, 270],
    "step_peak_bytes": [1300, 130, 390],
    "gpu_thread_bytes": 0,
    "gpu_core_bytes": 0,
    "len_constraints": 0,
    "n_dofs": 0,
}
"""A step returns reward and time-out, 4 N each, and N for done. Within it the height before is alive, another 4 N."""


def test_an_env_without_a_scene_holds_its_own_tensors_and_no_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    from ppo_lab.envs import footprint
    from ppo_lab.memory.live_tensors import LiveTensors

    monkeypatch.setattr(footprint, "start_simulator", lambda *_, **__: None)
    monkeypatch.setattr(LiveTensors, "see_what_is_alive", lambda _: None)  # of other tests
    monkeypatch.setattr(footprint, "make_env", lambda cfg, num_envs, device: Ball(num_envs))
    assert footprint.count(experiment("env=hover").env, [100, 10, 30]) == BALL


def test_an_env_without_a_scene_can_be_estimated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(simulator, "STORED", tmp_path / "nothing.json")
    simulator.STORED.write_text("[]")
    monkeypatch.setattr(simulator, "count", lambda *_: BALL)
    cfg = experiment("experiment=smoke", "env=hover")
    found = estimate(cfg, Hardware("a card", 40, "8.9", 1))
    assert found.simulator_bytes == 0
    assert [row for row in found.rows if row.name == "simulator"] == [Row("simulator", "no scene", 0, "measured")]
    assert found.device_bytes.low == found.reserved_peak_bytes
    assert known(cfg).max_num_envs() == 2**31 - 1


def test_the_lookup_imports_neither_torch_nor_the_simulator() -> None:
    program = """
import json, sys
from ppo_lab import command_line
from ppo_lab.memory.simulator import simulator_memory
memory = simulator_memory(command_line.to_experiment(command_line.compose(["env=hover"])))
print(json.dumps([memory.n_dofs, sorted({"torch", "genesis", "numpy"} & set(sys.modules))]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [6, []]
