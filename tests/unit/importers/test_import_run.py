"""Old runs, made by the real rsl-rl-lib 2.2.4 (tests/fixtures/old_runs), and what must never get in with them."""

import copyreg
import dataclasses
import hashlib
import io
import json
import math
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from rsl_rl.algorithms import PPO
from tensordict import TensorDict

from ppo_lab.cli.compose import compose
from ppo_lab.cli.exits import exit_codes
from ppo_lab.cli.import_run import main
from ppo_lab.config import ExperimentConfig
from ppo_lab.errors import ConfigError
from ppo_lab.importers.rsl_rl_2_2 import old_checkpoint, old_settings, plain_pickle
from ppo_lab.learning.checkpoint import load
from ppo_lab.learning.ppo import rsl_rl_config
from ppo_lab.runs.config import read_experiment
from tests.paths import REPOSITORY

OLD_RUNS = REPOSITORY / "tests" / "fixtures" / "old_runs"
NAMES = sorted(path.name for path in OLD_RUNS.iterdir() if (path / "cfgs.pkl").exists())
LAST = "model_2.pt"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """An old Go2 run that a test may spoil."""
    return Path(shutil.copytree(OLD_RUNS / "go2_scalar", tmp_path / "old"))


@pytest.fixture(scope="module", params=NAMES)
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An old run, and the run folder that became of it."""
    into = tmp_path_factory.mktemp("runs") / request.param
    main([str(OLD_RUNS / request.param), "--into", str(into)])
    return OLD_RUNS / request.param, into


Refusal = Callable[..., str]


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refusal:
    """The one line with which the command refuses `arguments`, having ended with exit code 2."""

    def answer(*arguments: object) -> str:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended, exit_codes():
            main(list(map(str, arguments)))
        assert ended.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        return captured.err

    return answer


def message_of(call: Callable[[], object]) -> str:
    """What `call` is refused with; nothing where it is not."""
    try:
        call()
    except ConfigError as error:
        return str(error)
    return ""


def translate(cfgs: Any) -> old_settings.Translation:
    return old_settings.translate(cfgs, None, lambda env: compose([f"env={env}"]))


def cfgs_of(old: Path) -> list[dict[str, Any]]:
    return plain_pickle.load((old / "cfgs.pkl").read_bytes())


def experiment_of(run: Path) -> ExperimentConfig:
    return read_experiment(run / "config.yaml")


def learner(run: Path, checkpoint: str) -> PPO:
    """Today's learner, as a run with the folder's config builds it, with the checkpoint loaded."""
    cfg = experiment_of(run)
    seen = TensorDict({"policy": torch.zeros(2, cfg.env.spec().width())}, batch_size=[2])
    env: Any = SimpleNamespace(num_envs=2, num_actions=cfg.env.num_actions)
    alg = PPO.construct_algorithm(seen, env, rsl_rl_config(cfg), "cpu")
    state = load(run / "checkpoints" / checkpoint)
    assert set(state) == {*alg.save(), "iter", "infos", "learning_rate"}
    alg.load(state, None, strict=True)
    return alg


def assert_recorded(found: torch.Tensor, recorded: torch.Tensor) -> None:
    """Equal but for the order in which processors of other kinds add: matrix products differ in the last bits."""
    torch.testing.assert_close(found, recorded, rtol=0, atol=1e-6)


def test_the_imported_policy_gives_equal_actions_and_values_and_learns_on_equally(imported: tuple[Path, Path]) -> None:
    old, run = imported
    expected = torch.load(old / "expected.pt", weights_only=True)
    alg = learner(run, LAST)
    seen = TensorDict({"policy": expected["observations"]}, batch_size=[9])
    for when in ("", "_after_a_step"):
        alg.actor.eval()
        with torch.no_grad():
            assert_recorded(alg.actor(seen), expected[f"actions{when}"])
            assert_recorded(alg.critic(seen), expected[f"values{when}"])
            alg.actor(seen, stochastic_output=True)
            assert_recorded(alg.actor.output_std.expand(9, -1), expected[f"stds{when}"])
        for parameter in [*alg.actor.parameters(), *alg.critic.parameters()]:
            parameter.grad = 0.1 * torch.ones_like(parameter)
        alg.optimizer.step()
    assert not torch.equal(expected["actions"], expected["actions_after_a_step"]), "the step was one"


def test_the_learning_rate_is_the_one_that_the_old_run_had_come_to(imported: tuple[Path, Path]) -> None:
    old, run = imported
    rate = torch.load(old / LAST, weights_only=True)["optimizer_state_dict"]["param_groups"][0]["lr"]
    state = load(run / "checkpoints" / LAST)
    assert state["learning_rate"] == rate == learner(run, LAST).learning_rate
    assert state["iter"] == 2


def test_the_imported_folder_holds_the_files_of_a_run_and_names_its_source(imported: tuple[Path, Path]) -> None:
    old, run = imported
    assert {path.name for path in run.iterdir()} == {"checkpoints", "config.yaml", "manifest.json", "summary.json"}
    files = {path.name for path in old.iterdir()} - {"expected.pt"}
    assert {path.name for path in (run / "checkpoints").iterdir()} == files - {"cfgs.pkl"}
    manifest = json.loads((run / "manifest.json").read_text())
    origin = manifest["imported"]
    assert origin["sha256"] == {name: hashlib.sha256((old / name).read_bytes()).hexdigest() for name in files}
    assert (origin["from"], origin["folder"]) == ("rsl-rl-lib 2.2.4", old.name)
    assert origin["not_recorded"]["num_envs"] == experiment_of(run).num_envs
    assert manifest["repeat"].startswith("python -m ppo_lab import")
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["iterations"]) == ("imported", 3)
    assert "no state" in summary["message"]


def test_an_old_run_is_not_resumed_since_it_kept_no_state(
    tmp_path: Path, train: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    main([str(OLD_RUNS / "hover_log"), "--into", str(tmp_path / "run")])
    answer = train(f"resume={tmp_path}/run")
    assert (answer.returncode, answer.stderr.count("\n")) == (2, 1)
    assert "no state to go on from. The weights alone cannot go on exactly." in answer.stderr


def every_setting(part: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values in nested dicts and the outer list."""
    items = part.items() if isinstance(part, dict) else enumerate(part) if path == () else ()
    return [place for key, value in items for place in every_setting(value, (*path, key))] or [path]


def with_setting(cfgs: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of `cfgs` with another value at `path`."""
    copy = plain_pickle.load(pickle.dumps(cfgs))
    node = copy
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return copy


def other(value: Any) -> Any:
    match value:
        case bool() | None:
            return not value
        case int() | float():
            return value + 1
        case [*items]:
            return [other(item) for item in items]
    return "another"


@pytest.mark.parametrize("name", ["go2_scalar", "hover_log"])
def test_every_old_setting_changes_the_new_run_unless_it_is_said_to_be_dropped(name: str) -> None:
    cfgs = cfgs_of(OLD_RUNS / name)
    before = translate(cfgs)
    for path in every_setting(cfgs):
        key = ".".join((old_settings.PARTS[path[0]], *path[1:]))
        value = cfgs[path[0]]
        for part in path[1:]:
            value = value[part]
        try:
            after = translate(with_setting(cfgs, path, other(value)))
        except ConfigError:
            continue  # it was read, and is refused
        assert (after.experiment == before.experiment) == (key in before.dropped), key
        assert all(gone["why"] for gone in after.dropped.values())


def test_the_examples_go2_run_is_todays_go2_run(experiment: Callable[..., ExperimentConfig], tmp_path: Path) -> None:
    # conf/env/go2.yaml was written after the same example, apart from this code.
    main([str(OLD_RUNS / "go2_scalar"), "--into", str(tmp_path / "run"), "--num-envs", "512"])
    small = ["network.hidden_dims=[6,4]", "network.critic.hidden_dims=[5,3]", "num_steps_per_env=8", "num_envs=512"]
    today = experiment("env=go2", *small, "max_iterations=3", "save_interval=2", "run_name=imported")
    assert experiment_of(tmp_path / "run") == today


def test_an_imported_hover_run_has_the_settings_of_env_hover(experiment: Callable[..., ExperimentConfig]) -> None:
    old = dataclasses.asdict(translate(cfgs_of(OLD_RUNS / "hover_log")).experiment)
    today = dataclasses.asdict(experiment("env=hover"))
    assert old["env"].pop("obs_scales") == pytest.approx(today["env"].pop("obs_scales"), rel=1e-9)  # 1/3 in ten digits
    assert old["env"] == today["env"]
    assert (old["network"]["actor"]["std_type"], old["network"]["actor"]["init_std"]) == ("log", 0.5)


def test_actions_keep_their_order() -> None:
    cfgs = cfgs_of(OLD_RUNS / "go2_scalar")
    cfgs[0]["joint_names"].reverse()
    cfgs[0]["dof_names"] = cfgs[0].pop("joint_names")  # as it was called until April 2025
    env: Any = translate(cfgs).experiment.env
    first = list(env.robot.default_joint_angles.items())[:2]
    assert first == [("RL_calf_joint", -1.5), ("RL_thigh_joint", 1.0)]


def test_what_the_old_run_left_to_rsl_rl_gets_the_defaults_of_that_version() -> None:
    cfgs = cfgs_of(OLD_RUNS / "go2_scalar")
    cfgs[4]["algorithm"] = {"class_name": "PPO"}
    cfgs[4]["policy"] = {"class_name": "ActorCritic"}
    cfg = translate(cfgs).experiment
    ppo = cfg.algorithm
    assert (ppo.num_learning_epochs, ppo.num_mini_batches, ppo.gamma, ppo.entropy_coef) == (1, 1, 0.998, 0.0)
    assert (ppo.schedule, ppo.optimizer, ppo.normalize_advantage_per_mini_batch) == ("fixed", "adam", False)
    assert cfg.network.actor.hidden_dims == cfg.network.critic.hidden_dims == [256, 256, 256]


def test_a_reward_term_that_the_old_env_did_not_pay_weighs_nothing() -> None:
    cfgs = cfgs_of(OLD_RUNS / "go2_scalar")
    del cfgs[2]["reward_scales"]["lin_vel_z"]
    cfgs[2]["reward_scales"]["feet_air_time"] = 0.0
    found = translate(cfgs)
    env: Any = found.experiment.env
    assert env.reward_scales.lin_vel_z == 0.0
    assert found.dropped["reward_cfg.reward_scales.feet_air_time"]["why"] == "its weight is 0"


def spoil(part: int, **settings: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda cfgs: cfgs[part].update(settings)


def policy(**settings: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda cfgs: cfgs[4]["policy"].update(settings)


REFUSED: dict[str, tuple[Callable[[list[dict[str, Any]]], Any], str]] = {
    "another env": (spoil(1, num_obs=60), "num_obs=60, num_actions=12"),
    "other commands": (spoil(3, heading_range=[0, 1]), "commands ang_vel_range, heading_range"),
    "a term of its own": (
        lambda c: c[2]["reward_scales"].update(jump=20.0),
        "reward_cfg.reward_scales.jump=20.0 has no",
    ),
    "a setting of its own": (spoil(0, push_interval_s=5.0), "env_cfg.push_interval_s=5.0 has no counterpart"),
    "a setting too few": (lambda c: c[0].pop("kp"), "kp is missing"),
    "other joints": (lambda c: c[0]["joint_names"].pop(), "env_cfg.joint_names must name the joints"),
    "a wrong kind": (spoil(0, kp="stiff"), "env.robot.kp=stiff is of the wrong kind"),
    "out of range": (spoil(0, kp=-1.0), "env.robot.kp=-1.0 is out of range"),
    "not a number": (spoil(0, kp=math.nan), "env.robot.kp=nan is out of range"),
    "a number beyond all": (spoil(0, kp=10**400), "env_cfg.kp=1000"),
    "a recurrent policy": (policy(class_name="ActorCriticRecurrent"), "Allowed: ActorCritic"),
    "written after the runner took it apart": (lambda c: c[4]["policy"].pop("class_name"), "class_name=null"),
    "curiosity": (
        lambda c: c[4]["algorithm"].update(rnd_cfg={"weight": 1.0}),
        "train_cfg.algorithm.rnd_cfg.weight=1.0",
    ),
    "a word that would be replaced": (policy(activation="${oc.env:HOME}"), "train_cfg.policy.activation="),
    "two lines": (policy(activation="elu\nerror"), "train_cfg.policy.activation="),
    "a name of two lines": (lambda c: c[0].update({"a\nb": 1}), "is not a setting's name"),
    "a newer kind": (spoil(4, obs_groups={"actor": ["policy"]}), "of a newer rsl-rl-lib"),
    "an older kind": (lambda c: c[4].pop("num_steps_per_env"), "Allowed: runs of that version"),
    "four dicts": (lambda c: c.pop(), "a list of five dicts"),
    "a text among the dicts": (lambda c: c.insert(2, c.pop(2)["tracking_sigma"]), "a list of five dicts"),
    "mini-batches that do not divide": (lambda c: c[4]["algorithm"].update(num_mini_batches=5), "does not divide"),
}


@pytest.mark.parametrize("spoiled", REFUSED)
def test_what_cannot_be_represented_is_refused_by_name(
    old: Path, spoiled: str, tmp_path: Path, refusal: Refusal
) -> None:
    change, message = REFUSED[spoiled]
    cfgs = cfgs_of(old)
    change(cfgs)
    (old / "cfgs.pkl").write_bytes(pickle.dumps(cfgs))
    assert message in refusal(old, "--into", tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_whatever_stands_in_place_of_a_setting_it_is_represented_or_refused_in_one_line() -> None:
    odd = [None, True, -1, 0, 10**30, 1e308, "", "x", [], {}, (), [[1]], {"a": 1}, [None], ["x", 2], -0.5, 1e-300]
    draw = random.Random(1)
    cfgs = cfgs_of(OLD_RUNS / "hover_log")
    for path in every_setting(cfgs):
        spoiled = with_setting(cfgs, path, draw.choice(odd))
        assert "\n" not in message_of(lambda spoiled=spoiled: translate(spoiled))  # type: ignore[misc]


class Reduced:
    """Pickles to a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def calling_system(protocol: int) -> Callable[[str], bytes]:
    return lambda command: pickle.dumps(Reduced(os.system, command), protocol)


NOISE = random.Random(0)
HOSTILE: dict[str, tuple[Callable[[str], bytes], str]] = {
    **{f"os.system, protocol {n}": (calling_system(n), "system'") for n in range(pickle.HIGHEST_PROTOCOL + 1)},
    "eval": (lambda command: pickle.dumps(Reduced(eval, f"__import__('os').system({command!r})")), "'builtins.eval'"),
    "deep in true settings": (
        lambda command: pickle.dumps(
            with_setting(cfgs_of(OLD_RUNS / "go2_scalar"), (0, "kp"), Reduced(os.system, command))
        ),
        "posix.system",
    ),
    "an instance": (lambda command: b"(S'" + command.encode() + b"'\nios\nsystem\n.", "opcode STRING"),
    "an instance of text": (lambda command: b"(V" + command.encode() + b"\nios\nsystem\n.", "'os.system'"),
    "a registered extension": (lambda command: b"\x80\x02\x82\x77X" + text(command) + b"\x85R.", "opcode EXT1"),
    "a persistent name": (lambda command: b"Pos.system\n.", "opcode PERSID"),
    "a persistent value": (lambda command: b"\x80\x04\x8c\x01aQ.", "opcode BINPERSID"),
    "a state": (lambda command: b"\x80\x04}}b.", "opcode BUILD"),
    "an array": (lambda command: pickle.dumps([numpy.zeros(2)]), "numpy"),
    "a numpy number": (lambda command: pickle.dumps({"kp": numpy.float64(20)}), "numpy"),
    "a tensor": (lambda command: pickle.dumps(torch.zeros(2)), "torch"),
    "a set": (lambda command: pickle.dumps({1}), "opcode EMPTY_SET"),
    "bytes": (lambda command: pickle.dumps(b"x"), "opcode SHORT_BINBYTES"),
    "a terabyte": (lambda command: b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".", "not a whole pickle"),
    "a memo of 64 GB": (lambda command: b"\x80\x02Nr\xf0\xff\xff\xff.", "would fill the memory"),
    "a list that holds itself": (lambda command: b"\x80\x02]q\x00h\x00a.", "nested deeper"),
    "a list that unfolds without end": (
        lambda command: (
            b"\x80\x02]q\x00" + b"".join(b"](" + b"h%c" % n * 99 + b"eq%c" % (n + 1) for n in range(9)) + b"."
        ),
        "unfolds to more than",
    ),
    "a very deep list": (lambda command: b"\x80\x02" + b"]" * 9_000 + b"a" * 8_999 + b".", "nested deeper"),
    "a very large one": (lambda command: pickle.dumps("x" * 2**20), "larger than"),
    "half of one": (lambda command: (OLD_RUNS / "go2_scalar" / "cfgs.pkl").read_bytes()[:-700], "not a whole pickle"),
    "nothing": (lambda command: b"", "not a whole pickle"),
    "a dict as a key": (lambda command: b"\x80\x02}}Ns.", "not a whole pickle (TypeError)"),
    "noise": (lambda command: NOISE.randbytes(2_000), ""),
}


def text(command: str) -> bytes:
    return len(command).to_bytes(4, "little") + command.encode()


@pytest.fixture
def extension() -> Iterator[None]:
    """A number that stands for os.system, as any imported library may register."""
    copyreg.add_extension("os", "system", 0x77)
    yield
    copyreg.remove_extension("os", "system", 0x77)
    copyreg._extension_cache.clear()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_is_refused_without_running(old: Path, kind: str, tmp_path: Path, refusal: Refusal) -> None:
    make, why = HOSTILE[kind]
    ran = tmp_path / "ran"
    data = make(f"touch {ran}")
    if str(ran) in repr(data):  # it means to run: it does, where it is let
        pickle.loads(data)
        ran.unlink()
    (old / "cfgs.pkl").write_bytes(data)
    message = refusal(old, "--into", tmp_path / "run")
    assert f"{old}/cfgs.pkl is refused: " in message
    assert why in message
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_the_unpickler_itself_finds_no_names() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(plain_pickle.NotPlainError, match=r"asks for \w+\.system"):
            plain_pickle.PlainUnpickler(io.BytesIO(pickle.dumps(os.system, protocol))).load()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_through_unchanged(protocol: int) -> None:
    numbers = [0, -1, 255, 65_536, 2**40, -(2**80), 1.5, 1 / 3]
    tuples = [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]
    data = {"numbers": numbers, "tuples": tuples, "others": [None, True, False, "", "ä\n", [[]], {1: {}}]}
    assert plain_pickle.load(pickle.dumps(data, protocol)) == data


def test_a_true_pickle_with_any_byte_changed_is_read_or_refused() -> None:
    true = (OLD_RUNS / "hover_log" / "cfgs.pkl").read_bytes()
    draw = random.Random(2)
    for _ in range(1_000):
        data = bytearray(true)
        for _ in range(draw.choice((1, 1, 5))):
            data[draw.randrange(len(data))] = draw.randrange(256)
        assert "\n" not in message_of(lambda data=bytes(data): plain_pickle.load(data))  # type: ignore[misc]


def spoil_checkpoint(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def spoil_file(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)

    return spoil_file


def layer(name: str, tensor: Any) -> Callable[[Path], Any]:
    return spoil_checkpoint(lambda state: state["model_state_dict"].update({name: tensor}))


BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another network": (layer("actor.0.weight", torch.zeros(7, 45)), "actor.0.weight is torch.float32 (7, 45)"),
    "half precision": (layer("std", torch.ones(12).half()), "std is torch.float16 (12,)"),
    "a sparse tensor": (layer("std", torch.ones(12).to_sparse()), "std is missing or no tensor"),
    "a number for a tensor": (layer("std", 1.0), "std is missing or no tensor"),
    "a layer too many": (layer("actor.6.weight", torch.zeros(1)), "'actor.6.weight', which cfgs.pkl does not foresee"),
    "a layer too few": (
        spoil_checkpoint(lambda s: s["model_state_dict"].pop("critic.4.bias")),
        "4.bias is missing",
    ),
    "another deviation": (layer("log_std", torch.zeros(12)), "'log_std', which cfgs.pkl does not foresee"),
    "moments of another network": (
        spoil_checkpoint(lambda s: s["optimizer_state_dict"]["state"][1].update(exp_avg=torch.zeros(3))),
        "exp_avg in the moments of actor.0.weight is torch.float32 (3,)",
    ),
    "no moments": (spoil_checkpoint(lambda s: s["optimizer_state_dict"]["state"].clear()), "has learned"),
    "a list for an optimizer": (spoil_checkpoint(lambda s: s.update(optimizer_state_dict=[])), "is a list"),
    "another optimizer": (spoil_checkpoint(lambda s: s["optimizer_state_dict"].pop("state")), "not one of Adam"),
    "a normalizer": (spoil_checkpoint(lambda s: s.update(obs_norm_state_dict={})), "'obs_norm_state_dict'"),
    "another iteration": (lambda path: path.rename(path.with_name("model_7.pt")), "its iteration is 2, not 7"),
    "a newer kind": (spoil_checkpoint(lambda s: s.update(actor_state_dict={})), "of a newer rsl-rl-lib"),
    "a list": (lambda path: torch.save([1], path), "it holds a list"),
    "a call": (lambda path: torch.save({"model_state_dict": Reduced(os.system, "touch ran")}, path), "no checkpoint"),
    "half a file": (lambda path: path.write_bytes(path.read_bytes()[:5_000]), "no checkpoint"),
    "no bytes": (lambda path: path.write_bytes(b""), "no checkpoint"),
    "noise": (lambda path: path.write_bytes(NOISE.randbytes(3_000)), "no checkpoint"),
}


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_a_checkpoint_that_contradicts_the_settings_or_is_none_is_refused(
    old: Path, kind: str, tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_file, why = BAD_CHECKPOINTS[kind]
    spoil_file(old / LAST)
    monkeypatch.chdir(tmp_path)
    message = refusal(old)
    assert f"{old}/model_" in message
    assert why in message
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_that_is_no_old_run_is_refused(old: Path, tmp_path: Path, refusal: Refusal) -> None:
    assert "the following arguments are required: folder" in refusal()
    assert "argument --num-envs: invalid int value: 'many'" in refusal(old, "--num-envs", "many")
    assert "num_envs=0 is out of range" in refusal(old, "--num-envs", "0")
    assert "is no folder" in refusal(tmp_path / "nowhere")
    assert "is no folder" in refusal(old / "cfgs.pkl")
    (old / "empty").mkdir()
    assert "has no cfgs.pkl and no model_<iteration>.pt" in refusal(old / "empty")
    into = tmp_path / "run"
    into.mkdir()
    assert "exists; a run never writes over another" in refusal(old, "--into", into)
    assert "cannot write" in refusal(old, "--into", old / "cfgs.pkl" / "run")
    into.rmdir()
    main([str(old), "--into", str(into)])
    assert "is a run folder of today already" in refusal(into)
    assert {path.name for path in tmp_path.iterdir()} == {"old", "run"}


def test_the_command_prints_what_became_of_each_setting(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ppo_lab", "import", str(OLD_RUNS / "hover_log")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    folder = Path(lines[0].removeprefix("run folder: "))
    assert folder.parent == Path("outputs/hover")
    assert folder.name.endswith("_imported")
    assert (tmp_path / folder / "checkpoints" / LAST).exists()
    assert lines[1] == "imported: env=hover, 1 checkpoint, the last of iteration 2"
    assert "dropped: env_cfg.resampling_time_s=3.0 (the example's env does not read it)" in lines
    assert "not in the old run, taken as today: num_envs=8192" in lines


def test_the_command_answers_a_hostile_run_in_one_line(old: Path, tmp_path: Path) -> None:
    (old / "cfgs.pkl").write_bytes(pickle.dumps(Reduced(os.system, "touch ran")))
    done = subprocess.run(
        [sys.executable, "-m", "ppo_lab", "import", str(old)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {old}/cfgs.pkl is refused: it asks for 'posix.system', which is no plain data\n"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_the_parameters_stand_in_the_order_of_the_optimizer(imported: tuple[Path, Path]) -> None:
    _, run = imported
    alg = learner(run, LAST)
    ours = [*alg.actor.named_parameters(), *alg.critic.named_parameters()]
    foreseen = old_checkpoint.parameters(experiment_of(run))
    assert [(p.name, p.shape) for p in foreseen] == [(name, tuple(tensor.shape)) for name, tensor in ours]
