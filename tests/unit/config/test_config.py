"""Every config on disk is an experiment; the defaults are the source's; whatever is wrong is refused by name."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from ppo_lab import envs
from ppo_lab.cli.argv import as_overrides, parse
from ppo_lab.cli.compose import CONF
from ppo_lab.config import ExperimentConfig
from ppo_lab.errors import ConfigError
from ppo_lab.memory.predict import calibration
from ppo_lab.training import budget

Compose = Callable[..., ExperimentConfig]


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


GROUPS = ("env", "algorithm", "network")


@pytest.mark.parametrize(GROUPS, list(product(*map(choices, GROUPS))))
def test_every_choice_on_disk_composes_with_every_other(
    experiment: Compose, env: str, algorithm: str, network: str
) -> None:
    assert experiment(f"env={env}", f"algorithm={algorithm}", f"network={network}").env.name == env


@pytest.mark.parametrize("name", choices("experiment"))
def test_every_experiment_on_disk_composes_under_a_run_name_of_its_own(experiment: Compose, name: str) -> None:
    assert experiment(f"experiment={name}").run_name != experiment().run_name


def test_every_env_on_disk_is_a_module_and_the_other_way_round() -> None:
    assert choices("env") == envs.names()


def test_without_overrides_the_experiment_is_the_sources_go2_run(experiment: Compose) -> None:
    cfg = experiment()
    assert (cfg.env.name, cfg.num_envs, cfg.num_steps_per_env, cfg.max_iterations) == ("go2", 4096, 24, 101)
    assert cfg.transitions == 98_304
    assert cfg.mini_batch_size == 24_576
    assert cfg.env.max_episode_length == 1000
    assert cfg.network.actor.hidden_dims == cfg.network.critic.hidden_dims == [512, 256, 128]
    assert cfg.network.actor.activation == cfg.network.critic.activation == "elu"
    assert dataclasses.asdict(cfg.algorithm) == {
        "num_learning_epochs": 5,
        "num_mini_batches": 4,
        "clip_param": 0.2,
        "gamma": 0.99,
        "lam": 0.95,
        "value_loss_coef": 1.0,
        "entropy_coef": 0.01,
        "learning_rate": 0.001,
        "max_grad_norm": 1.0,
        "optimizer": "adam",
        "use_clipped_value_loss": True,
        "schedule": "adaptive",
        "desired_kl": 0.01,
        "normalize_advantage_per_mini_batch": False,
        "use_mixed_precision": False,
    }


def test_choosing_the_drone_brings_its_sizes_network_and_learning_rate(experiment: Compose) -> None:
    cfg = experiment("env=hover")
    assert (cfg.num_envs, cfg.num_steps_per_env, cfg.max_iterations) == (8192, 100, 301)
    assert cfg.network.actor.hidden_dims == cfg.network.critic.hidden_dims == [128, 128]
    assert cfg.network.actor.activation == "tanh"
    assert (cfg.algorithm.learning_rate, cfg.algorithm.entropy_coef) == (0.0003, 0.004)
    assert cfg.env.max_episode_length == 1500


def test_what_the_env_brings_can_be_overridden(experiment: Compose) -> None:
    cfg = experiment("env=hover", "num_envs=64", "algorithm.learning_rate=1e-4", "network.activation=elu")
    assert (cfg.num_envs, cfg.algorithm.learning_rate) == (64, 1e-4)
    assert cfg.network.critic.activation == "elu"


def test_the_entropy_coefficient_goes_linearly_to_its_last_value(experiment: Compose) -> None:
    assert experiment().entropy_coef_at(1000) == 0.01
    schedule = "entropy_schedule={final_coef: 0.002, from_iteration: 10, to_iteration: 20}".replace(" ", "")
    cfg = experiment(schedule)
    assert [cfg.entropy_coef_at(at) for at in (0, 10, 15, 20, 99)] == pytest.approx([0.01, 0.01, 0.006, 0.002, 0.002])


def test_actor_and_critic_are_set_alike_or_apart(experiment: Compose) -> None:
    alike = experiment("network.hidden_dims=[64]").network
    assert alike.actor.hidden_dims == alike.critic.hidden_dims == [64]
    apart = experiment("network.hidden_dims=[64]", "network.critic.hidden_dims=[32,32]").network
    assert (apart.actor.hidden_dims, apart.critic.hidden_dims) == ([64], [32, 32])


ENVS = ", ".join(envs.names())
WRONG = {
    "entropy_schedule.from_iteration=3": "Try entropy_schedule.to_iteration=3 or more",
    "entropy_schedule.final_coef=-1": "entropy_schedule.final_coef=-1.0 is out of range",
    # unknown keys and choices
    "num_env=3": "unknown key num_env. Did you mean num_envs?",
    "mini_batches=3": "Did you mean algorithm.num_mini_batches?",
    "algorithm.gama=0.9": "Did you mean algorithm.gamma?",
    "env.reward_scales.tracking_lin_vell=1": "Did you mean env.reward_scales.tracking_lin_vel?",
    "+surprise=1": "unknown key surprise.",
    "envs=hover": "Did you mean env?",
    "env=hovr": f"env=hovr: there is no such env. Did you mean hover? Allowed: {ENVS}.",
    "experiment=go2smal": "Did you mean go2_small?",
    "network=null": "network=null: there is no such network. Allowed: mlp.",
    "env.name=base": f"env.name=base is not an env. Allowed: {ENVS}.",
    "network.activation=eluu": "network.activation=eluu is out of range. Did you mean elu?",
    "hydra.surprise=1": "hydra.surprise=1 cannot be set. Allowed of Hydra's own settings: hydra.run.dir,",
    # wrong kinds
    "num_envs=many": "num_envs=many is of the wrong kind. Allowed: a whole number.",
    "num_envs=1.5": "num_envs=1.5 is of the wrong kind.",
    "num_envs=true": "num_envs=true is of the wrong kind.",
    "num_envs=null": "num_envs=null is of the wrong kind.",
    "num_envs=": "num_envs= is of the wrong kind.",
    "num_envs=${x}": "num_envs=${x} is of the wrong kind.",
    "quiet=maybe": "quiet=maybe is of the wrong kind. Allowed: true or false.",
    "checkpoint.every_seconds=soon": "checkpoint.every_seconds=soon is of the wrong kind. Allowed: a number or null.",
    "network.hidden_dims=256": "Allowed: a list of whole numbers, as in [1,2,3].",
    "network.hidden_dims=[a]": "network.hidden_dims=[a] is of the wrong kind.",
    "memory=3": "Allowed: a group of settings: count_tensors, over_budget.",
    "env.robot.kp=stiff": "env.robot.kp=stiff is of the wrong kind. Allowed: a number.",
    # out of range
    "num_envs=0": "num_envs=0 is out of range. Allowed: >= 1, <= 2147483647.",
    "network.hidden_dims=[64,0]": "network.hidden_dims=[64,0] is out of range.",
    "network.hidden_dims=[]": "network.hidden_dims=[] is empty. Allowed: one value or more, each >= 1.",
    "algorithm.gamma=1.01": "algorithm.gamma=1.01 is out of range. Allowed: >= 0, <= 1.",
    "algorithm.learning_rate=nan": "algorithm.learning_rate=nan is out of range.",
    "algorithm.max_grad_norm=inf": "algorithm.max_grad_norm=inf is out of range.",
    "seed=-1": "seed=-1 is out of range.",
    "device=gpu": "device=gpu is out of range. Did you mean cuda? Allowed: text like auto, cpu, cuda, cuda:1.",
    "run_name=../elsewhere": "run_name=../elsewhere is out of range.",
    "env.robot.base_init_pos=[0,0]": "Allowed: a list of 3.",
    "env.dt=0": "env.dt=0.0 is out of range. Allowed: > 0.",
    # combinations
    "algorithm.num_mini_batches=7": (
        "algorithm.num_mini_batches=7 does not divide 98304 transitions (4096 envs x 24 steps). "
        "Try algorithm.num_mini_batches=6 or algorithm.num_mini_batches=8."
    ),
    "env.lin_vel_x_range=[1,0]": "Try env.lin_vel_x_range=[0.0,1.0].",
    "env.robot.base_init_quat=[0,0,0,0]": "a quaternion has length 1.",
    "env.resampling_time_s=0.001": "is shorter than one step",
    "~env.robot.default_joint_angles.FR_hip_joint": "missing or unknown: FR_hip_joint.",
    # not settings at all
    "num_envs": "cannot read 'num_envs'. Allowed: settings of the form key=value. Try num_envs=...",
    "lr=0.1": "unknown key lr. Did you mean algorithm.learning_rate?",
    "environment=go2": "unknown key environment. Did you mean env?",
    "gpu=0": "unknown key gpu. Did you mean device?",
    "hardware=h100": "hardware is for estimate.py",
    "--num_envs=3": "unknown option --num_envs=3.",
    "num_envs=1,2": "gives num_envs several values.",
    "-m": "-m is for sweeps, which train.py alone runs.",
    "~algorithm.gamma": "algorithm.gamma has no value.",
}


@pytest.mark.parametrize(("override", "message"), WRONG.items(), ids=WRONG)
def test_a_wrong_override_is_refused_with_what_was_got_and_what_is_allowed(
    experiment: Compose, override: str, message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        experiment(override)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "mend"),
    [
        (["num_envs", "512"], "num_envs 512: a setting and its value have no space between them. Try num_envs=512."),
        (["resume=a", "run"], "resume=a run: a path with spaces needs quotes around it."),
        (["-m", "seed=1,", "2,", "3"], "seed=1, 2, 3 came in pieces, as it has spaces. Try seed=1,2,3."),
        (["seed=2", "network.hidden_dims=[256,", "256]"], "Try network.hidden_dims=[256,256]."),
        (["env.obs_scales={a:", "[1,", "2]}", "seed=2"], "Try env.obs_scales={a:[1,2]}."),
    ],
)
def test_a_setting_that_the_shell_took_apart_is_shown_in_one_piece(overrides: list[str], mend: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(mend)):
        as_overrides(overrides)


@pytest.mark.parametrize("path", ["a b", "a=1,b=2", "it's", "a'", "[1", "größer", '"x', "a\\\\'b", "(x)$", "~x"])
def test_a_path_is_what_the_shell_gave(path: str) -> None:
    for key in ("resume", "reproduce", "hydra.run.dir"):
        (override,) = as_overrides([f"{key}={path}"])
        assert parse(override).value() == path
        assert as_overrides([override]) == [override], "quoted for Hydra by hand, it is left alone"


def test_no_path_is_none_and_the_home_is_meant_by_a_tilde() -> None:
    overrides = as_overrides(["resume=null", "sweep.resume=~/runs", "resume=auto"])
    assert overrides == ["resume=null", f"sweep.resume='{Path.home()}/runs'", "resume=auto"]


def test_a_rollout_of_one_transition_is_refused(experiment: Compose) -> None:
    with pytest.raises(ConfigError, match="no spread to normalize advantages by"):
        experiment("num_envs=1", "num_steps_per_env=1", "algorithm.num_mini_batches=1")


def test_mini_batches_of_one_transition_cannot_be_normalized_each(experiment: Compose) -> None:
    overrides = ["num_envs=2", "num_steps_per_env=2", "algorithm.num_mini_batches=4"]
    assert experiment(*overrides).mini_batch_size == 1
    with pytest.raises(ConfigError, match=r"Try algorithm\.num_mini_batches=2\."):
        experiment(*overrides, "algorithm.normalize_advantage_per_mini_batch=true")


def test_overrides_are_checked_before_torch_or_the_simulator_is_loaded() -> None:
    code = (
        "import sys; from ppo_lab.cli.compose import compose; from ppo_lab.runs.config import to_experiment\n"
        "to_experiment(compose(['env=hover', 'num_envs=8']))\n"
        "print([m for m in ('torch', 'genesis', 'rsl_rl', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


REFUSED_BEFORE_THERE_IS_A_FOLDER = {
    "num_envs=0": "num_envs=0 is out of range",
    "env=hovr": "Did you mean hover?",
    "--iterations": "unknown option --iterations",
    "device=cuda:99": "device=cuda:99: this machine has",
}


@pytest.mark.parametrize(
    ("override", "message"), REFUSED_BEFORE_THERE_IS_A_FOLDER.items(), ids=REFUSED_BEFORE_THERE_IS_A_FOLDER
)
def test_the_command_ends_with_code_2_one_line_and_no_folder(
    train: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, override: str, message: str
) -> None:
    folder = tmp_path / "run"
    done = train("experiment=smoke", override, f"hydra.run.dir={folder}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert not folder.exists()


def test_a_long_run_on_a_cpu_is_announced_with_the_experiment_that_is_made_for_one(
    experiment: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(calibration, "SHIPPED", tmp_path)  # where nobody has measured how long it takes
    hint = budget.hint_at_long_run(experiment("device=cpu")) or ""
    # 4096 envs x 24 steps x 101 iterations = 9,928,704 steps, at 7,200 a second 1379 s
    assert "no GPU: 9.9 million steps take about 23 min on two cores of a CPU" in hint
    small = hint.partition("train.py ")[2]
    assert experiment(small).env.name == "go2"
    assert budget.hint_at_long_run(experiment(small, "device=cpu")) is None
    assert budget.hint_at_long_run(experiment("env=hover", "device=cpu", "max_iterations=30")) is None


@pytest.mark.parametrize("env", budget.CPU_STEPS_PER_S)
def test_every_env_whose_speed_is_known_has_a_small_experiment(env: str) -> None:
    assert f"{env}_small" in choices("experiment")


def test_a_run_is_never_written_over(train: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("results")
    done = train("experiment=smoke", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 2
    assert "a run never writes over another" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_help_names_the_choices_of_every_group_and_no_hardware(
    train: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = train("--help")
    assert done.returncode == 0
    assert f"env: {ENVS}" in done.stdout
    assert "hardware:" not in done.stdout
