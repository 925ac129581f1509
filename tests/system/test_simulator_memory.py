"""What the simulator and the env hold: the stored counts, their lines, and when there are none."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ppo_lab.cli.compose import compose
from ppo_lab.config import ExperimentConfig
from ppo_lab.contracts import EnvSpec
from ppo_lab.errors import MeasurementError
from ppo_lab.memory.predict import cache, calibration, simulator
from ppo_lab.memory.predict.estimate import Row, Span, estimate
from ppo_lab.memory.predict.hardware import Hardware
from ppo_lab.memory.predict.simulator import (
    SimulatorMemory,
    count_in_subprocess,
    interpolate,
    simulator_memory,
    startup_bytes,
)
from ppo_lab.probes import simulator as counting
from ppo_lab.runs.config import to_experiment

TOY = {
    "num_envs": [2, 4, 3],
    "simulator_bytes": [{"state": 30, "scratch": 100}, {"state": 50, "scratch": 100}, {"state": 40, "scratch": 100}],
    "gpu_simulator_bytes": [112, 114, 113],
    "env_bytes": [20, 40, 30],
    "step_peak_bytes": [17, 27, 22],
    "step_returned_bytes": [6, 8, 7],
    "gpu_thread_bytes": 3,
    "gpu_core_bytes": 1000,
    "gpu_arrays": 5,
    "env_once_bytes": 0,
    "len_constraints": 486,
    "n_dofs": 18,
}
"""A count whose lines are 110 + 10 N, 110 + N, 10 N, 7 + 5 N and 4 + N."""

CPU = Hardware("a CPU", 1024, "cpu", 0)
CARD = Hardware("a card", 8 * 1024, "8.9", 10)
"""Has 1280 cores."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "folder", lambda: tmp_path / "cache")  # not Genesis' cache of kernels


@pytest.fixture
def toy() -> SimulatorMemory:
    return interpolate(TOY, "by hand")


def experiment(*overrides: str) -> ExperimentConfig:
    return to_experiment(compose(list(overrides)))


def known(cfg: ExperimentConfig) -> SimulatorMemory:
    memory = simulator_memory(cfg)
    assert memory is not None
    return memory


def test_a_line_goes_through_the_first_two_sizes(toy: SimulatorMemory) -> None:
    assert toy.bytes(1000, CPU) == 10_110
    assert toy.env_bytes(1000) == 10_000
    assert toy.step_peak_bytes(1000) == 5_007
    assert toy.step_returned_bytes(1000) == 1_004
    assert toy.misfit_bytes == 0


def test_on_a_gpu_the_collider_keeps_scratch_for_every_core(toy: SimulatorMemory) -> None:
    # 1280 cores hold 1280 full states; 300 envs x ceil(1280 / 300) = 1500 threads hold small ones
    assert toy.array_bytes(300, CARD) == (110 + 300) + 1500 * 3 + 1280 * 1000
    # more envs than cores: one thread each
    assert toy.array_bytes(5000, CARD) == (110 + 5000) + 5000 * 3 + 1280 * 1000


@pytest.mark.parametrize(
    ("compute_capability", "multiprocessors", "states_bytes"),
    [
        ("8.6", 28, 18_350_080),  # RTX 3060: 28 x 16 blocks x 2 x 1024 threads x 20 B
        ("8.9", 24, 23_592_960),  # RTX 4060
        ("8.9", 76, 74_711_040),  # RTX 4080
        ("8.9", 128, 125_829_120),  # RTX 4090
        ("8.9", 142, 139_591_680),  # L40S
        ("8.0", 108, 141_557_760),  # A100
        ("9.0", 132, 173_015_040),  # H100, H200
        ("12.0", 170, 167_116_800),  # RTX 5090: 170 x 24
        ("7.5", 40, 26_214_400),  # T4: 40 x 16
        ("99.0", 1, 1_310_720),  # not known yet: 32
    ],
)
def test_on_a_gpu_the_simulator_takes_its_random_states_at_start(
    compute_capability: str, multiprocessors: int, states_bytes: int, toy: SimulatorMemory
) -> None:
    card = Hardware("a card", 1, compute_capability, multiprocessors)
    assert startup_bytes(card) == states_bytes + 2**20
    assert toy.bytes(300, card) == toy.array_bytes(300, card) + states_bytes + 2**20
    assert startup_bytes(CPU) == 0


def test_the_driver_may_add_a_page_to_each_array_and_grow_its_pool(toy: SimulatorMemory) -> None:
    assert toy.rounding_bytes(CARD) == 5 * 4096 + 32 * 2**20
    assert toy.rounding_bytes(CPU) == 0
    assert interpolate(BALL, "by hand").rounding_bytes(CARD) == 0  # no array, no page


def test_what_the_driver_may_add_is_a_row_and_in_high_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = experiment("experiment=smoke", "env=hover")
    unknown = estimate(cfg, CARD)
    counted = known(cfg)
    [row] = [row for row in unknown.rows if row.name == "simulator's rounding, up to"]
    assert (row.bytes, row.known) == (counted.rounding_bytes(CARD), "derived")
    assert unknown.device_bytes.low == (unknown.reserved_peak_bytes or 0) + counted.bytes(cfg.num_envs, CARD)
    calibrated = SimpleNamespace(overhead_bytes=lambda *_: calibration.Range(1, 2, 3), host_bytes=lambda *_: None)
    calibrated.wall_s = lambda *_: None
    calibrated.versions = SimpleNamespace(driver="580.00")
    monkeypatch.setattr(calibration, "find", lambda device: (calibrated, []))
    low = unknown.device_bytes.low
    assert estimate(cfg, CARD).device_bytes == Span(low + 1, low + 2, low + 3 + counted.rounding_bytes(CARD))
    on_cpu = estimate(cfg, CPU)
    assert [row for row in on_cpu.rows if "rounding" in row.name] == []
    assert on_cpu.device_bytes.high == on_cpu.device_bytes.low + 2


def test_a_gpu_keeps_the_contacts_and_work_lists_of_go2s_islands() -> None:
    # contact_id: 100 contacts x 4 B; two work lists of 4 B for 4 classes of sizes, of the one tree
    # without Go2's looks: 33 shapes less, each with a position and an orientation of 28 B
    assert known(experiment("env=go2")).gpu_per_env_bytes == 153_534 - 33 * 28 + 100 * 4 + 2 * 4 * 4


def test_a_count_off_its_line_is_told() -> None:
    assert interpolate(TOY | {"step_peak_bytes": [17, 27, 29]}, "by hand").misfit_bytes == 7


def test_the_jacobian_of_go2_caps_the_envs_at_245_482() -> None:
    # 486 rows x 18 dofs = 8748 elements per env; 245,482 x 8748 = 2,147,476,536 <= 2^31 - 1 < 245,483 x 8748
    assert known(experiment("env=go2")).max_num_envs() == 245_482


def test_the_jacobian_of_hover_caps_the_envs_at_4_364_804() -> None:
    # 82 rows x 6 dofs = 492 elements per env; 4,364,804 x 492 = 2,147,483,568 <= 2^31 - 1 < 4,364,805 x 492
    assert known(experiment("env=hover")).max_num_envs() == 4_364_804


@pytest.mark.parametrize("env", ["go2", "go2_backflip", "hover"])
def test_the_stored_counts_are_exactly_straight(env: str) -> None:
    assert known(experiment(f"env={env}")).misfit_bytes == 0


@pytest.mark.slow
def test_the_stored_line_gives_what_a_fresh_go2_of_another_size_holds() -> None:
    cfg = experiment("env=go2", "env.substeps=3", "env.dt=0.03", "env.clip_actions=0.5", "env.episode_length_s=9")
    memory, fresh = known(cfg), count_in_subprocess(cfg, [33])
    assert memory.bytes(33, CPU) == sum(fresh["simulator_bytes"][0].values())
    assert memory.env_bytes(33) == fresh["env_bytes"][0]
    assert memory.step_peak_bytes(33) == fresh["step_peak_bytes"][0]
    assert memory.step_returned_bytes(33) == fresh["step_returned_bytes"][0]
    assert memory.gpu_constant_bytes + 33 * memory.gpu_per_env_bytes == fresh["gpu_simulator_bytes"][0]
    assert (memory.gpu_thread_bytes, memory.gpu_core_bytes) == (fresh["gpu_thread_bytes"], fresh["gpu_core_bytes"])
    assert memory.gpu_arrays == fresh["gpu_arrays"]
    assert (memory.len_constraints, memory.n_dofs) == (fresh["len_constraints"], fresh["n_dofs"])


@pytest.mark.slow
def test_a_fresh_hover_gives_the_stored_lines_and_is_remembered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cfg, other = experiment("env=hover"), experiment("env=hover", "env.clip_actions=0.5")
    stored = known(cfg)
    monkeypatch.setattr(simulator, "STORED", tmp_path / "nothing.json")
    simulator.STORED.write_text("[]")
    monkeypatch.setattr(simulator, "SIZES", (7, 2))
    assert simulator_memory(cfg) is None
    assert simulator.measure(cfg) == stored
    assert simulator_memory(cfg) == stored
    assert simulator_memory(other) is None  # of an env that is not stored, any setting might matter


@pytest.mark.parametrize(
    "overrides", [["env.max_collision_pairs=21"], ["env.performance_mode=true"], ["randomization=light"]]
)
def test_an_env_that_was_never_counted_is_unknown(overrides: list[str]) -> None:
    assert simulator_memory(experiment("env=go2", *overrides)) is None


def test_a_count_of_another_genesis_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator, "version_of", lambda package: "1.4.6")
    assert simulator_memory(experiment("env=go2")) is None


def test_an_env_that_cannot_be_built_says_why_before_the_simulator_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "genesis.py").write_text("raise RuntimeError('loaded')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    cfg = experiment("env=go2")
    cfg.env.name = "gone"
    with pytest.raises(MeasurementError, match=r"env.name=gone: .*env.name=gone is not an env"):
        count_in_subprocess(cfg, [2])


class Ball:
    """An env without a scene. Its one tensor is a height for each of N envs, 4 N bytes."""

    spec = EnvSpec({"policy": {"height": 1}}, ("push",), (), dt=0.1, max_episode_length=10)

    def __init__(self, num_envs: int) -> None:
        self.height = torch.zeros(num_envs)

    def get_observations(self) -> dict[str, torch.Tensor]:
        return {"policy": self.height.unsqueeze(1)}

    def step(self, actions: torch.Tensor) -> SimpleNamespace:
        self.height = self.height + actions[:, 0]
        observations, dones = self.get_observations(), self.height > 1
        return SimpleNamespace(
            observations=observations, rewards=self.height.clone(), dones=dones, time_outs=torch.zeros_like(self.height)
        )


BALL = {
    "num_envs": [100, 10, 30],
    "simulator_bytes": [{}, {}, {}],
    "gpu_simulator_bytes": [0, 0, 0],
    "env_bytes": [400, 40, 120],
    "step_returned_bytes": [900, 90, 270],
    "step_peak_bytes": [1300, 130, 390],
    "gpu_thread_bytes": 0,
    "gpu_core_bytes": 0,
    "gpu_arrays": 0,
    "env_once_bytes": 0,
    "len_constraints": 0,
    "n_dofs": 0,
}
"""A step returns reward and time-out, 4 N each, and N for done. Within it the height before is alive, another 4 N."""


def test_an_env_without_a_scene_holds_its_own_tensors_and_no_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    from ppo_lab.memory.measure.live_tensors import LiveTensors

    monkeypatch.setattr(LiveTensors, "see_what_is_alive", lambda _: None)  # of other tests
    monkeypatch.setattr(counting, "make_env", lambda cfg, num_envs, device, seed: Ball(num_envs))
    assert counting.count(experiment("env=hover").env, [100, 10, 30]) == BALL


def test_an_env_without_a_scene_can_be_estimated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(simulator, "STORED", tmp_path / "nothing.json")
    simulator.STORED.write_text("[]")
    monkeypatch.setattr(simulator, "count_in_subprocess", lambda *_: BALL)
    cfg = experiment("experiment=smoke", "env=hover")
    found = estimate(cfg, Hardware("a card", 40, "8.9", 1))
    started = startup_bytes(Hardware("a card", 40, "8.9", 1))
    assert found.simulator_bytes == started == 20 * 24 * 2 * 1024 + 2**20
    rows = [row for row in found.rows if row.name.startswith("simulator")]
    assert rows == [Row("simulator", f"no scene; {started:,} at start", started, "derived")]
    assert found.device_bytes.low == (found.reserved_peak_bytes or 0) + started
    on_cpu = estimate(cfg, CPU)
    assert [row for row in on_cpu.rows if row.name == "simulator"] == [Row("simulator", "no scene", 0, "measured")]
    assert known(cfg).max_num_envs() == 2**31 - 1


def test_the_lookup_imports_neither_torch_nor_the_simulator() -> None:
    program = """
import json, sys
from ppo_lab.cli.compose import compose
from ppo_lab.memory.predict.simulator import simulator_memory
from ppo_lab.runs.config import to_experiment
memory = simulator_memory(to_experiment(compose(["env=hover"])))
print(json.dumps([memory.n_dofs, sorted({"torch", "genesis", "numpy"} & set(sys.modules))]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [6, []]
