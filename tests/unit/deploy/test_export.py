"""An export holds what the policy is, or is not written: on sleds, which need no simulator."""

import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from tensordict import TensorDict
from torch import nn

from ppo_lab.config import EnvConfig, ExperimentConfig
from ppo_lab.contracts import Deployment, EnvSpec, ObservationTerm
from ppo_lab.deploy import evaluation, stage
from ppo_lab.deploy import export as exporting
from ppo_lab.deploy.exported import RunnerPolicy
from ppo_lab.deploy.interface import deployment, interface
from ppo_lab.deploy.runner import ExportError, Runner, difference, replay
from ppo_lab.deploy.script import ScriptPolicy, as_script, load_script
from ppo_lab.deploy.trained import Trained
from ppo_lab.envs.batched import BatchedEnv
from ppo_lab.errors import ConfigError, NotReproducedError
from ppo_lab.learning.checkpoint import save
from ppo_lab.learning.policy import ActorPolicy
from ppo_lab.learning.ppo import build_ppo
from tests.paths import REPOSITORY

CPU = torch.device("cpu")
FILES = {"policy.onnx", "policy.pt", "manifest.json", "example.npz", "run.py"}


@dataclass
class RewardScales:
    near: float = 1.0


@dataclass
class SledConfig(EnvConfig):
    """Two drives, one step late. Observes the actions of this step, and those of the step before as hover does."""

    reward_scales: RewardScales = field(default_factory=RewardScales)

    def spec(self) -> EnvSpec:
        terms = (
            ObservationTerm("pos", "position", "m", "east, north", (0.3, 1.7), (0.1, -0.2), clip=1.5),
            ObservationTerm("goal", "goal", "m", "east, north", (3.0, 3.0)),
            ObservationTerm("actions", "actions", "1", "given last", (1.0, 1.0), actions_ago=1),
            ObservationTerm("earlier", "actions", "1", "given before", (1.0, 1.0), actions_ago=2),
        )
        deployed = Deployment(
            joints=("left", "right"),
            default_pose=(0.3, -0.1),
            kp=5.0,
            kd=0.5,
            action_scale=0.25,
            clip_actions=self.clip_actions,
            latency_steps=1,
            observations=terms,
        )
        widths = {term.name: len(term.scale) for term in terms}
        return EnvSpec(
            {"policy": widths}, deployed.joints, ("near",), self.dt, self.max_episode_length, deployment=deployed
        )


class Sleds(BatchedEnv):
    cfg: SledConfig

    def __init__(self, cfg: SledConfig, num_envs: int, device: torch.device, seed: int) -> None:
        super().__init__(cfg, num_envs, device, seed)
        self._pos, self._goal = torch.zeros(num_envs, 2), torch.zeros(num_envs, 2)
        self._actions, self._earlier = torch.zeros(num_envs, 2), torch.zeros(num_envs, 2)
        self._reset(torch.ones(num_envs, dtype=torch.bool))
        self._look()

    def step(self, actions: torch.Tensor) -> Any:
        late, self._actions = self._actions, actions.clip(-self.cfg.clip_actions, self.cfg.clip_actions)
        targets = late * 0.25 + self._tensor([0.3, -0.1])
        self._pos = self._pos + self.cfg.dt * (targets + self._goal)
        self.episode_length_buf += 1
        rewards = self._weighted_rewards({"near": torch.exp(-self._pos.norm(dim=1))})
        time_outs = self.episode_length_buf > self.spec.max_episode_length
        dones = time_outs | (self._pos.norm(dim=1) > 3.0)
        self._show({"time_out": time_outs}, dict, targets)
        sums = self._end_episodes(dones)
        given = self._actions
        self._reset(dones)
        self._earlier = torch.where(dones.unsqueeze(1), 0.0, self._earlier)
        self._look()
        self._earlier = given  # of an episode that has ended, too
        return self._result(rewards, dones, time_outs, sums)

    def sensors(self) -> dict[str, torch.Tensor]:
        return {"position": self._pos, "goal": self._goal}

    def _reset(self, ended: torch.Tensor) -> None:
        where = ended.unsqueeze(1)
        self._pos = torch.where(where, 0.0, self._pos)
        self._goal = torch.where(where, self._draw(self._tensor([-1.0, -1.0]), self._tensor([1.0, 1.0])), self._goal)
        self._actions = torch.where(where, 0.0, self._actions)

    def _look(self) -> None:
        scaled = (self._pos - self._tensor([0.1, -0.2])) * self._tensor([0.3, 1.7])
        self._observe(
            policy={
                "pos": scaled.clip(-1.5, 1.5),
                "goal": self._goal * 3.0,
                "actions": self._actions,
                "earlier": self._earlier,
            }
        )


def sled_config(**changes: Any) -> SledConfig:
    fixed = {"name": "sleds", "dt": 0.1, "substeps": 1, "episode_length_s": 5.0, "clip_actions": 1.0}
    return SledConfig(**{**fixed, "performance_mode": False, **changes})


def sleds(trained: Trained) -> Any:
    return Sleds(trained.cfg.env, exporting.ENVS, CPU, 1)  # type: ignore[arg-type]


def trained_in(folder: Path, cfg: ExperimentConfig, env: EnvConfig) -> tuple[Trained, Path]:
    """A run in `env` with one checkpoint, whose normalizer has seen something."""
    cfg, width = dataclasses.replace(cfg, env=env), env.spec().width()
    torch.manual_seed(3)
    drawn = torch.randn(64, width) * torch.linspace(0.1, 9, width) + 2
    observations = TensorDict({"policy": drawn}, batch_size=[64], device=CPU)
    alg = build_ppo(dataclasses.replace(cfg, num_envs=64), observations)
    alg.actor.update_normalization(observations)
    folder.mkdir()
    save(folder / "model_7.pt", alg.save() | {"iter": 7})
    return Trained(folder, cfg, {}), folder / "model_7.pt"


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Trained, Path]]:
    from ppo_lab.cli.compose import compose
    from ppo_lab.runs.config import to_experiment

    def run(normalizes: bool = True, **changes: Any) -> tuple[Trained, Path]:
        overrides = ["experiment=smoke", "env=hover", f"network.obs_normalization={normalizes}".lower()]
        cfg = to_experiment(compose(overrides))
        return trained_in(tmp_path_factory.mktemp("runs") / "a run", cfg, sled_config(**changes))

    return run


@pytest.fixture(scope="module")
def run(make: Callable[..., tuple[Trained, Path]]) -> tuple[Trained, Path]:
    return make()


@pytest.fixture(scope="module")
def made(run: tuple[Trained, Path]) -> Path:
    """An export whose recorded rollout is of several episodes: 50 steps each at most."""
    trained, checkpoint = run
    exporting.export(trained, checkpoint, sleds(trained), trained.folder / "export")
    return trained.folder / "export"


@pytest.fixture
def exported(made: Path, tmp_path: Path) -> Path:
    """A copy."""
    return Path(shutil.copytree(made, tmp_path / "export"))


def change(folder: Path, spoil: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    spoil(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_the_folder_holds_its_files_and_the_manifest_says_what_they_are(made: Path) -> None:
    assert {path.name for path in made.iterdir()} == FILES
    assert [path.name for path in made.parent.iterdir() if path.name[0] == "."] == []
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["files"].keys() == FILES - {"manifest.json"}
    assert (manifest["format"], manifest["iteration"], manifest["checkpoint"]) == (1, 7, "model_7.pt")
    assert manifest["dt_s"] == 0.1
    assert manifest["packages"]["onnxruntime"] == onnxruntime.__version__
    assert manifest["observations"][0] == {
        **{"name": "pos", "source": "position", "unit": "m", "meaning": "east, north"},
        **{"scale": [0.3, 1.7], "offset": [0.1, -0.2], "clip": 1.5, "actions_ago": 0},
    }
    assert manifest["actions"] == {
        **{"joints": ["left", "right"], "default_pose": [0.3, -0.1], "unit": "rad", "action_scale": 0.25},
        **{"clip_actions": 1.0, "kp": 5.0, "kd": 0.5, "latency_steps": 1},
    }
    assert manifest["agreement"]["observations"] == 4000
    assert manifest["agreement"]["largest"] > 100


def test_every_engine_gives_the_checkpoints_actions_for_any_number_of_observations(
    make: Callable[..., tuple[Trained, Path]],
) -> None:
    trained, checkpoint = make(normalizes=False)
    exporting.export(trained, checkpoint, sleds(trained), trained.folder / "export")
    folder, policy = trained.folder / "export", trained.policy(checkpoint, CPU)
    session = onnxruntime.InferenceSession(folder / "policy.onnx")
    for count in (1, 5):
        observations = torch.randn(count, 8) * 20
        expected = policy.mean(TensorDict({"policy": observations}, batch_size=[count]))
        (found,) = session.run(None, {"observations": observations.numpy()})
        assert difference(found, expected) < 1e-5
        assert difference(load_script(folder / "policy.pt", CPU)(observations), expected) < 1e-5
    assert b"site-packages" not in (folder / "policy.onnx").read_bytes()


def test_the_rollout_is_of_first_episodes_each_from_its_start(made: Path) -> None:
    with np.load(made / "example.npz") as rollout:
        starts = np.flatnonzero(rollout["starts"])
        assert len(rollout["actions"]) == 200
        assert len(starts) >= 4
        assert not rollout["observations"][starts, 4:].any()
        assert np.abs(rollout["actions"]).max() > 0.1
        ran_on = np.setdiff1d(np.arange(200), [*starts, *(starts + 1)])
        assert np.array_equal(rollout["observations"][ran_on, 6:], rollout["actions"][ran_on - 2])


def test_observations_made_of_sensors_are_the_envs_to_the_last_bit(made: Path) -> None:
    runner = Runner(made)
    with np.load(made / "example.npz") as rollout:
        sensors = {"position": rollout["sensors/position"], "goal": rollout["sensors/goal"]}
        assert np.array_equal(runner.observe(sensors)[:, :4], rollout["observations"][:, :4])


DESCRIBED_WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a scale": lambda manifest: manifest["observations"][0].update(scale=[0.3, 1.701]),
    "an offset": lambda manifest: manifest["observations"][0].update(offset=[0.1, 0.2]),
    "a clip": lambda manifest: manifest["observations"][0].update(clip=1.0),
    "no clip": lambda manifest: manifest["observations"][0].update(clip=None),
    "the order": lambda manifest: manifest["observations"].reverse(),
    "the age of the actions": lambda manifest: manifest["observations"][3].update(actions_ago=1),
    "the pose": lambda manifest: manifest["actions"].update(default_pose=[0.3, 0.1]),
    "the action scale": lambda manifest: manifest["actions"].update(action_scale=0.2501),
    "the clip of the actions": lambda manifest: manifest["actions"].update(clip_actions=0.1),
}


@pytest.mark.parametrize("what", DESCRIBED_WRONG)
def test_a_manifest_that_describes_the_env_wrong_does_not_repeat_the_recorded_rollout(
    what: str, exported: Path
) -> None:
    assert replay(exported).agree
    change(exported, DESCRIBED_WRONG[what])
    assert not replay(exported).agree


def test_an_env_whose_actions_take_effect_later_than_it_says_is_refused(
    make: Callable[..., tuple[Trained, Path]],
) -> None:
    trained, checkpoint = make()
    spec = trained.cfg.env.spec()
    assert spec.deployment is not None
    env = sleds(trained)
    env.spec = spec._replace(deployment=spec.deployment._replace(latency_steps=0))
    with pytest.raises(NotReproducedError, match=r"the runner does not act as the env does: .*Nothing was written"):
        exporting.export(trained, checkpoint, env, trained.folder / "export")
    assert {path.name for path in trained.folder.iterdir()} == {"model_7.pt"}


def test_a_lost_normalizer_is_found_and_the_export_before_stays(
    make: Callable[..., tuple[Trained, Path]], made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_normalizer(self: ActorPolicy) -> nn.Module:
        network = whole(self)
        network.obs_normalizer = nn.Identity()
        return network

    whole = ActorPolicy.network
    monkeypatch.setattr(ActorPolicy, "network", without_normalizer)
    trained, checkpoint = make()
    into = trained.folder / "export"
    shutil.copytree(made, into)
    before = {path.name: path.read_bytes() for path in into.iterdir()}
    said = r"on 4000 observations it differs by [\d.e+]+ in onnxruntime and by [\d.e+]+ in TorchScript, .*: 1e-05\."
    with pytest.raises(NotReproducedError, match=said):
        exporting.export(trained, checkpoint, sleds(trained), into)
    assert {path.name: path.read_bytes() for path in into.iterdir()} == before
    assert {path.name for path in trained.folder.iterdir()} == {"model_7.pt", "export"}


def run_py(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(folder / "run.py")]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True)


def test_the_program_repeats_the_rollout_with_numpy_and_onnxruntime_alone(exported: Path) -> None:
    done = run_py(exported)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("200 recorded steps replayed: observations differ by ")
    assert done.stdout.endswith(": agrees\n")
    code = "import run, sys; print([name for name in ('torch', 'ppo_lab', 'genesis') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=exported, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_program_says_that_it_does_not_agree_or_cannot_be_used(exported: Path) -> None:
    change(exported, DESCRIBED_WRONG["a scale"])
    done = run_py(exported)
    assert (done.returncode, done.stdout[-10:]) == (1, ": DIFFERS\n")
    (exported / "policy.onnx").write_bytes(b"")
    done = run_py(exported)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {exported}: policy.onnx is not the file that manifest.json describes;")


def cut(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:100])


def changed(spoil: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    return lambda folder: change(folder, spoil)


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (
        lambda folder: shutil.rmtree(folder),
        "is no exported folder: manifest.json: No s",
    ),
    "cut manifest": (cut("manifest.json"), "manifest.json is no JSON: "),
    "of a run": (lambda folder: (folder / "manifest.json").write_text("{}"), "its manifest.json has no format"),
    "later": (changed(lambda m: m.update(format=2)), "is of another version: its format is 2, this program reads 1"),
    "cut policy": (
        cut("policy.onnx"),
        "policy.onnx is not the file that manifest.json describes; export the run again",
    ),
    "no policy": (lambda folder: (folder / "policy.onnx").unlink(), "policy.onnx: No such file or directory"),
    "no joints": (changed(lambda m: m["actions"].pop("joints")), "manifest.json has no actions.joints"),
    "no terms": (changed(lambda m: m.update(observations=[])), "observations is []; needed: a list"),
    "not a term": (changed(lambda m: m["observations"].insert(0, "x")), "manifest.json has no observations.0.scale"),
    "a text": (changed(lambda m: m["actions"].update(kp="5")), "actions.kp is '5'; needed: a finite number"),
    "not finite": (changed(lambda m: m.update(dt_s=float("nan"))), "dt_s is nan; needed: a finite number"),
    "too few": (changed(lambda m: m["observations"][0].update(offset=[0.0])), "offset is [0.0]; needed: 2 numbers"),
    "lacks a term": (changed(lambda m: m["observations"].pop()), "policy.onnx does not take 6 numbers and give 2 acti"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_folder_that_cannot_be_used_is_refused_with_one_message(what: str, exported: Path) -> None:
    spoil, says = SPOILED[what]
    spoil(exported)
    with pytest.raises(ExportError) as refused:
        Runner(exported)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"^policy=.*export: "):
        RunnerPolicy(exported)


def test_numbers_that_are_missing_or_not_finite_are_refused(made: Path) -> None:
    runner = Runner(made)
    with pytest.raises(ValueError, match=r"^sensors lack goal: east, north \(m\); 2 numbers$"):
        runner.act({"position": [0.0, 0.0]})
    with pytest.raises(ValueError, match=r"^goal has the shape \(3,\); 2 numbers are needed$"):
        runner.act({"position": [0.0, 0.0], "goal": [0.0, 0.0, 0.0]})
    with pytest.raises(ValueError, match=r"^not finite: goal$"):
        runner.act({"position": [0.0, 0.0], "goal": [0.0, float("nan")]})
    targets = runner.act({"position": [0.0, 0.0], "goal": [0.0, 0.0]})
    assert targets.shape == (2,)
    assert np.abs(targets - [0.3, -0.1]).max() <= 0.25


def test_many_robots_are_driven_as_each_by_itself_and_start_anew_one_by_one(made: Path) -> None:
    together, alone = Runner(made), Runner(made)
    draws = np.random.default_rng(0).normal(size=(4, 2, 3, 2))
    for position, goal in draws[:3]:
        targets = together.act({"position": position, "goal": goal})
        assert np.allclose(targets[1], alone.act({"position": position[1], "goal": goal[1]}), atol=1e-6)
    together.reset(np.array([False, True, False]))
    position, goal = draws[3]
    alone.reset()
    targets = together.act({"position": position, "goal": goal})
    assert np.allclose(targets[1], alone.act({"position": position[1], "goal": goal[1]}), atol=1e-6)
    alone.reset()
    assert not np.allclose(targets[0], alone.act({"position": position[0], "goal": goal[0]}), atol=1e-6)


def test_an_exported_folder_and_a_script_drive_the_env_as_the_checkpoint_does(
    run: tuple[Trained, Path], exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, checkpoint = run
    (exported / "run.py").write_text("raise SystemExit('executed')")
    spec = trained.cfg.env.spec()
    monkeypatch.setattr(stage, "make_env", lambda *arguments: Sleds(*arguments[:4]))  # without looks
    from_folder, from_file = RunnerPolicy(exported), ScriptPolicy(exported / "policy.pt", spec, CPU)
    policies: list[Any] = [trained.policy(checkpoint, CPU), from_folder, from_file]
    candidates = [evaluation.Candidate("x", policy.iteration, policy) for policy in policies]
    expected, *others = evaluation.evaluate({"as trained": trained}, candidates, evaluation.Plan(9, False, 1), CPU)
    assert (from_folder.name, from_folder.iteration, from_file.name) == ("export", 7, "policy.pt")
    assert expected["return"]["std"] > 0.01
    for found in others:
        assert found["return"]["mean"] == pytest.approx(expected["return"]["mean"], rel=1e-5)
        assert found["episode_length_s"] == expected["episode_length_s"]
    assert others[1]["return"] == expected["return"]


MISFITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "pose": (lambda m: m["actions"].update(default_pose=[0, 0]), "default_pose=[0,0], the env has [0.3,-0.1]."),
    "joints": (lambda m: m["actions"].update(joints=["l", "r"]), "joints=[l,r], the env has [left,right]."),
    "source": (
        lambda m: m["observations"][1].update(source="x"),
        "observations=[position 2,x 2,actions 2 of 1 steps ago,",
    ),
    "age": (
        lambda m: m["observations"][2].update(actions_ago=2),
        "goal 2,actions 2 of 2 steps ago,actions 2 of 2 steps",
    ),
    "order": (lambda m: m.update(quaternion="x y z w"), "quaternion=x y z w, the env has w x y z."),
}


@pytest.mark.parametrize("what", MISFITS)
def test_what_does_not_fit_the_env_is_named(what: str, exported: Path) -> None:
    spoil, says = MISFITS[what]
    change(exported, spoil)
    with pytest.raises(ConfigError, match=r"export does not fit the env sleds: ") as refused:
        RunnerPolicy(exported).check_fits(sled_config())
    assert says in str(refused.value)


def test_gains_and_latency_are_the_robots_own(exported: Path) -> None:
    change(exported, lambda manifest: manifest["actions"].update(kp=7.0, kd=None, latency_steps=3))
    RunnerPolicy(exported).check_fits(sled_config())


def test_a_file_that_is_no_fitting_script_is_refused(run: tuple[Trained, Path], tmp_path: Path) -> None:
    trained, checkpoint = run
    spec = trained.cfg.env.spec()
    with pytest.raises(ConfigError, match=r"model_7\.pt is not TorchScript, .*named with checkpoint="):
        ScriptPolicy(checkpoint, spec, CPU)
    (tmp_path / "narrow.pt").write_bytes(as_script(nn.Linear(3, 2)))
    with pytest.raises(ConfigError, match=r"narrow\.pt does not take observations \(2, 8\): "):
        ScriptPolicy(tmp_path / "narrow.pt", spec, CPU)
    (tmp_path / "wide.pt").write_bytes(as_script(nn.Linear(8, 3)))
    with pytest.raises(ConfigError, match=r"wide\.pt gives actions \(2, 3\) for 2 observations; needed: \(2, 2\)"):
        ScriptPolicy(tmp_path / "wide.pt", spec, CPU)


def test_only_an_export_as_it_was_written_is_replaced(exported: Path) -> None:
    exporting.check_replaceable(exported.parent / "none yet")
    exporting.check_replaceable(exported)
    (exported / "__pycache__").mkdir()
    exporting.check_replaceable(exported)
    program = (exported / "run.py").read_text()
    (exported / "run.py").write_text(program + "\n# my motors\n")
    with pytest.raises(ConfigError, match=r"run\.py was not written by an export, or was changed since\. Move it"):
        exporting.check_replaceable(exported)
    (exported / "run.py").write_text(program)
    (exported / "notes.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.md was not written by an export"):
        exporting.check_replaceable(exported)


def test_an_env_that_does_not_describe_a_robot_is_refused_by_name() -> None:
    @dataclass
    class Undescribed(SledConfig):
        def spec(self) -> EnvSpec:
            return super().spec()._replace(deployment=None)

    @dataclass
    class Misdescribed(SledConfig):
        def spec(self) -> EnvSpec:
            return super().spec()._replace(observations={"policy": {"pos": 3}})

    fields = dataclasses.asdict(sled_config()) | {"reward_scales": RewardScales()}
    with pytest.raises(ConfigError, match=r"a policy of the env sleds cannot be exported: .*does not describe a robot"):
        deployment(Undescribed(**fields))
    with pytest.raises(ConfigError, match="the env sleds describes other observations than it has: "):
        interface(Misdescribed(**fields))


def test_an_env_that_does_not_tell_what_it_measures_is_refused(run: tuple[Trained, Path]) -> None:
    trained, checkpoint = run
    env = sleds(trained)
    env.sensors = lambda: {"goal": torch.zeros(exporting.ENVS, 2)}
    with pytest.raises(ConfigError, match="the env does not tell position: its method sensors gives goal"):
        exporting.record(env, trained.policy(checkpoint, CPU))


def test_the_puck_of_the_docs_can_be_exported_as_they_show(experiment: Any, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "deploy.md").read_text()
    spec, sensors, show = (
        next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if sign in block)
        for sign in ("def spec(self)", "def sensors(self)", "self._show(")
    )
    puck = re.search(
        r"puck\.py`\n\n```python\n(.*?)```", (REPOSITORY / "docs" / "add_an_env.md").read_text(), re.DOTALL
    )
    assert puck
    source = re.sub(r"    def spec\(self\):.*?\n\n", lambda _: spec + "\n\n", puck[1], count=1, flags=re.DOTALL)
    for before, new in (("        def step(self", sensors + "\n"), ("            sums = ", show)):
        assert source.count(before) == 1
        source = source.replace(before, new + before)
    source = source.replace("import EnvSpec", "import Deployment, EnvSpec, ObservationTerm")
    (tmp_path / "described_puck.py").write_text(source)
    found = importlib.util.spec_from_file_location("described_puck", tmp_path / "described_puck.py")
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    sys.modules["described_puck"] = module  # where dataclasses look
    found.loader.exec_module(module)
    values = {"name": "puck", "dt": 0.05, "substeps": 1, "episode_length_s": 5.0, "clip_actions": 1.0, "push": 2.0}
    scales = module.RewardScales(near=1.0, effort=-0.1)
    env = module.Config(**values, performance_mode=False, rink=3.0, reward_scales=scales)
    trained, checkpoint = trained_in(tmp_path / "a run", experiment("experiment=smoke", "env=hover"), env)
    made = exporting.export(trained, checkpoint, module.make(env, exporting.ENVS, CPU, 1), tmp_path / "export")
    assert made.replayed.agree
