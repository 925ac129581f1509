"""Which checkpoint `init_from` means, what fits a new run, and what the manifest keeps of it."""

import dataclasses
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ppo_lab.cli.argv import as_overrides
from ppo_lab.cli.compose import compose
from ppo_lab.config import ExperimentConfig
from ppo_lab.envs.tasks.hover import Config as HoverConfig
from ppo_lab.errors import ConfigError
from ppo_lab.runs import ancestry
from ppo_lab.runs.config import as_yaml, read_experiment, to_experiment
from ppo_lab.runs.files import seal, to_json
from ppo_lab.runs.folder import BEST, RunFolder, checkpoint_name

Experiment = Callable[..., ExperimentConfig]
HOVER = to_experiment(compose(["env=hover"]))
ANCESTOR = {"folder": "/x/first", "checkpoint": "model_7.pt", "iteration": 7, "sha256": "ab"}


def sealed(text: str) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("content", text)
    return seal(archive.getvalue())


def write_run(folder: Path, cfg: ExperimentConfig, iterations: tuple[int, ...] = (0, 5, 11)) -> Path:
    """A run folder with sealed checkpoints, which hold no weights."""
    files = RunFolder(folder)
    files.checkpoints.mkdir(parents=True)
    files.config.write_text(as_yaml(cfg))
    for iteration in iterations:
        (files.checkpoints / checkpoint_name("model", iteration)).write_bytes(sealed(f"{folder.name} {iteration}"))
    if iterations:
        (files.checkpoints / BEST).write_bytes(sealed("best"))
    return folder


@pytest.fixture
def here(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the run `run` of env=hover in it."""
    monkeypatch.chdir(tmp_path)
    write_run(Path("run"), HOVER)
    return tmp_path


NAMES = {
    "run": "model_11.pt",
    "run/": "model_11.pt",
    "run:last": "model_11.pt",
    "run:best": "best.pt",
    "run:5": "model_5.pt",
    "run:0": "model_0.pt",
    "run/checkpoints/model_5.pt": "model_5.pt",
    "run/checkpoints/best.pt": "best.pt",
    "../{parent}/run:5": "model_5.pt",
}


@pytest.mark.parametrize("text", NAMES)
def test_a_name_means_a_checkpoint_whose_absolute_path_is_kept(text: str, here: Path) -> None:
    found = ancestry.find(text.format(parent=here.name))
    assert found.checkpoint == here / "run" / "checkpoints" / NAMES[text]
    assert found.folder == here / "run"


def test_a_path_with_a_colon_is_a_path_where_it_exists(here: Path) -> None:
    for name in ("with:colon", "run:5"):
        shutil.copytree("run", name)
        assert ancestry.find(name).checkpoint == here / name / "checkpoints" / "model_11.pt"
        assert ancestry.find(f"{name}:best").checkpoint == here / name / "checkpoints" / "best.pt"


def test_behind_a_link_the_folder_itself_is_kept(here: Path) -> None:
    Path("newest").symlink_to("run")
    for text in ("newest:5", "newest/checkpoints/model_5.pt"):
        assert ancestry.find(text).checkpoint == here / "run" / "checkpoints" / "model_5.pt"


REFUSED = {
    "run:7": r"run has no checkpoint 7\. Allowed: last, best, 0, 5, 11\.",
    "run:newest": r"run has no checkpoint newest\. Allowed: last, best, 0, 5, 11\.",
    "run:": r"run has no checkpoint \. Allowed: last, best, 0, 5, 11\.",
    "run:" + "9" * 5000: r"has no checkpoint 9+\.\.\.9+\. Allowed: last",
    "unsaved": r"unsaved has no checkpoint: nothing was saved yet\.",
    "no_best:best": r"no_best has no checkpoint best\. Allowed: last, 3\.",
    "empty": r"empty is not a run folder: it has no config\.yaml\. Allowed: RUN, RUN:last,",
    "nothing": r"there is no such folder or file\. Allowed: RUN, RUN:last,",
    "nothing:best": r"there is no such folder or file\.",
    "damaged": r"damaged/checkpoints/model_11\.pt is cut short, .*\. Allowed: another checkpoint, as RUN:ITERATION\.",
    "flipped": r"flipped/checkpoints/model_11\.pt does not match its checksum\.",
    "loose.pt": r"it is no checkpoint with weights in a run folder",
    "run/config.yaml": r"it is no checkpoint with weights in a run folder",
    "run/checkpoints/state_11.pt": r"it is no checkpoint with weights in a run folder",
    "run/checkpoints/model_5.pt:best": r"it names a checkpoint already\. Leave out :best\.",
    "": r"init_from=: '' must be printable",
    "a\nb": r"must be printable",
    "${seed}": r"must be printable, without \$\{",
    "linked": r"\$\{x\}/checkpoints/model_5\.pt' must be printable, without \$\{",
    "a/" + "b" * 300: r"there is no such folder or file|File name too long",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:20])
def test_what_names_no_whole_checkpoint_of_a_run_is_refused(text: str, here: Path, experiment: Experiment) -> None:
    Path("empty").mkdir()
    write_run(Path("${x}"), HOVER, iterations=(5,))
    Path("linked").symlink_to("${x}")
    write_run(Path("unsaved"), HOVER, iterations=())
    write_run(Path("no_best"), HOVER, iterations=(3,)).joinpath("checkpoints", BEST).unlink()
    shutil.copy("run/checkpoints/model_5.pt", "loose.pt")
    shutil.copy("run/checkpoints/model_5.pt", "run/checkpoints/state_11.pt")
    for name, change in {"damaged": lambda b: b[:-30], "flipped": lambda b: b[:9] + bytes([b[9] ^ 1]) + b[10:]}.items():
        shutil.copytree("run", name)
        newest = Path(name, "checkpoints", "model_11.pt")
        newest.write_bytes(change(newest.read_bytes()))
    with pytest.raises(ConfigError, match=REFUSED[text]) as refused:
        ancestry.find(text)
    assert str(refused.value).startswith("init_from=")
    assert str(refused.value).isprintable()


def misfit(there: ExperimentConfig, here: ExperimentConfig) -> str:
    """What a run of `here` is told that begins with the weights of `there`; empty where it may."""
    found = ancestry.Ancestor(Path("/run/checkpoints/model_1.pt"), "", there, [])
    try:
        found.refuse_misfit(here)
    except ConfigError as error:
        return str(error)
    return ""


FIT = [
    "num_envs=64",
    "algorithm.learning_rate=0.5",
    "algorithm.optimizer=sgd",
    "env.reward_scales.crash=-3",
    "env.episode_length_s=3",
    "seed=9",
    "network.actor.init_std=3",
    "init.std=false network.actor.std_type=log",
    "init.critic=false network.critic.hidden_dims=[3]",
    "init.optimizer=true",
    "init_from=run init.kl_coef=0.5 init.std=false",
]


@pytest.mark.parametrize("overrides", FIT)
def test_a_run_with_these_other_settings_begins_with_the_weights(overrides: str, experiment: Experiment) -> None:
    assert misfit(HOVER, experiment("env=hover", *overrides.split())) == ""


MISFITS = {
    "network.actor.hidden_dims=[3]": "network.actor.hidden_dims: [128,128] there, [3] here",
    "network.critic.activation=relu": "network.critic.activation: tanh there, relu here",
    "network.actor.obs_normalization=true": "network.actor.obs_normalization: false there, true here",
    "network.actor.std_type=log": "network.actor.std_type: scalar there, log here",
    "init.std=false init.kl_coef=1 init_from=run network.actor.std_type=log": "std_type: scalar there, log here",
    "init.optimizer=true algorithm.optimizer=sgd": "algorithm.optimizer: adam there, sgd here",
}


@pytest.mark.parametrize("overrides", MISFITS)
def test_a_setting_that_does_not_fit_is_named_with_the_one_that_does(overrides: str, experiment: Experiment) -> None:
    there = HOVER
    message = misfit(there, experiment("env=hover", *overrides.split()))
    assert MISFITS[overrides] in message
    mend = message.partition(" Try ")[2].removesuffix(".").split()
    assert misfit(there, experiment("env=hover", *overrides.split(), *mend)) == ""


def with_groups(cfg: ExperimentConfig, **groups: dict[str, int]) -> ExperimentConfig:
    """`cfg`, whose env observes these."""

    class Other(HoverConfig):
        def spec(self) -> Any:
            return super().spec()._replace(observations=groups)

    env = Other(**{f.name: getattr(cfg.env, f.name) for f in dataclasses.fields(HoverConfig)})
    return dataclasses.replace(cfg, env=env)


def test_observations_are_compared_group_by_group_and_term_by_term(experiment: Experiment) -> None:
    cfg = HOVER
    policy = {"pos": 3, "commands": 3}
    there = with_groups(cfg, policy=policy)
    assert misfit(there, there) == ""
    other = misfit(there, with_groups(cfg, policy={"pos": 3, "commands": 4, "height": 1}))
    assert "observation policy.commands: 3 there, 4 here; observation policy.height: none there, 1 here." in other
    assert "Try" not in other
    reversed_ = misfit(there, with_groups(cfg, policy={"commands": 3, "pos": 3}))
    assert "the order of the observations policy: pos,commands there, commands,pos here" in reversed_
    assert misfit(there, with_groups(cfg, policy=policy, critic=policy)) == "", "the critic sees the same"
    privileged = with_groups(cfg, policy=policy, critic={**policy, "mass": 1})
    assert "does not fit this run: observation critic.mass: none there, 1 here." in misfit(there, privileged)
    assert misfit(there, privileged).endswith("Try init.critic=false.")
    alone = dataclasses.replace(privileged, init=dataclasses.replace(cfg.init, critic=False))
    assert misfit(there, alone) == ""


def test_another_env_is_refused_by_its_observations_and_actions(experiment: Experiment) -> None:
    message = misfit(experiment("env=go2"), HOVER)
    assert "observation policy.dof_pos: 12 there, none here" in message
    assert "actions: 12 there, 4 here" in message


def test_what_the_actions_mean_may_differ_and_is_a_warning(experiment: Experiment) -> None:
    found = ancestry.Ancestor(Path("/run/checkpoints/model_1.pt"), "", experiment("env=go2"), [])
    assert found.warnings(experiment("env=go2", "env.reward_scales.base_height=-1")) == []
    (warning,) = found.warnings(experiment("env=go2", "env.action_scale=0.5", "env.robot.kp=30", "env.dt=0.01"))
    assert "action_scale: 0.25 there, 0.5 here" in warning
    assert "kp: 20.0 there, 30.0 here" in warning
    assert "dt: 0.02 there, 0.01 here" in warning
    joints = "{FR_hip_joint: 0, FL_hip_joint: 0, FL_thigh_joint: 0.8, FL_calf_joint: -1.5, FR_thigh_joint: 0.8, "
    joints += "FR_calf_joint: -1.5, RL_hip_joint: 0, RL_thigh_joint: 1, RL_calf_joint: -1.5, RR_hip_joint: 0, "
    joints += "RR_thigh_joint: 1, RR_calf_joint: -1.5}"
    there = dataclasses.replace(found.settings)
    reordered = experiment("env=go2")
    order = [*reordered.env.robot.default_joint_angles]  # type: ignore[attr-defined]
    angles = reordered.env.robot.default_joint_angles  # type: ignore[attr-defined]
    reordered.env.robot.default_joint_angles = {name: angles[name] for name in reversed(order)}  # type: ignore[attr-defined]
    assert misfit(there, reordered) == ""
    (warning,) = found.warnings(reordered)
    assert f"action 0: {order[0]} there, {order[-1]} here, and 11 more" in warning


def test_the_settings_of_a_checkpoint_are_those_that_its_run_began_with(here: Path, experiment: Experiment) -> None:
    began = HOVER
    (here / "run" / "manifest.json").write_text(to_json({"config": dataclasses.asdict(began)}))
    changed = dataclasses.replace(began, num_envs=16)
    (here / "run" / "config.yaml").write_text(as_yaml(changed))
    assert ancestry.find("run").settings == began


@pytest.mark.parametrize("config", [{"env": {"name": "${oc.env:HOME}"}}, {"env": {"name": "nope"}}, {}])
def test_a_manifest_that_anyone_may_have_written_is_refused(config: dict[str, Any], here: Path) -> None:
    (here / "run" / "manifest.json").write_text(json.dumps({"config": config}))
    with pytest.raises(ConfigError, match=r"init_from=run: run/manifest\.json: "):
        ancestry.find("run")


def test_the_ancestry_goes_back_to_the_first_run_and_stops_at_what_is_none(here: Path) -> None:
    earlier = [ANCESTOR, {**ANCESTOR, "iteration": "<b>"}, ANCESTOR]
    (here / "run" / "manifest.json").write_text(json.dumps({"ancestry": earlier}))
    own, *others = ancestry.find("run:5").ancestry(5)
    assert (own["folder"], own["checkpoint"], own["iteration"]) == (str(here / "run"), "model_5.pt", 5)
    assert others == [ANCESTOR]
    assert ancestry.in_short({"ancestry": [own, *others]}) == "run:5 < first:7"
    assert ancestry.in_short({"ancestry": "x"}) == ancestry.in_short({}) == ""


def test_a_run_is_begun_again_only_with_the_checkpoint_that_it_began_with(here: Path, experiment: Experiment) -> None:
    cfg, found = ancestry.with_ancestor(experiment("env=hover", "init_from=run:5"))
    assert found
    assert cfg.init_from == str(found.checkpoint)
    child = write_run(here / "child", cfg, iterations=())
    assert ancestry.find_again("resume=child", child, cfg) == found, "killed before there was a manifest"
    (child / "manifest.json").write_text(json.dumps({"ancestry": found.ancestry(5)}))
    assert ancestry.find_again("resume=child", child, cfg) == found
    for text in ("run:5", "run/checkpoints/model_5.pt", str(found.checkpoint)):
        assert ancestry.same_start(text, cfg, child) == cfg.init_from
    for other in ("run:0", "run:best", None):
        assert ancestry.same_start(other, cfg, child) is None

    shutil.move("run", "moved")
    with pytest.raises(
        ConfigError, match=r"resume=child: the run began with run/.*model_5\.pt, which is gone\. Put it b"
    ):
        ancestry.find_again("resume=child", child, cfg)
    moved = str(here / "moved" / "checkpoints" / "model_5.pt")
    assert ancestry.same_start("moved:5", cfg, child) == moved
    assert ancestry.find_again("resume=child", child, dataclasses.replace(cfg, init_from=moved)) is not None

    shutil.copytree("moved", "run")
    found.checkpoint.write_bytes(sealed("another"))
    with pytest.raises(ConfigError, match=r"model_5\.pt was changed since .* its sha256 was [0-9a-f]{16}\.\.\. and is"):
        ancestry.find_again("resume=child", child, cfg)


def test_last_may_be_what_a_run_began_with_although_its_ancestor_went_on(here: Path, experiment: Experiment) -> None:
    cfg, _ = ancestry.with_ancestor(experiment("env=hover", "init_from=run:last"))
    child = write_run(here / "child", cfg, iterations=())
    (here / "run" / "checkpoints" / "model_12.pt").write_bytes(sealed("newer"))
    assert ancestry.same_start("run:last", cfg, child) == ancestry.same_start("run", cfg, child) == cfg.init_from
    assert ancestry.same_start("run:12", cfg, child) is None
    shutil.rmtree("run")
    for text in ("run", "run:11", "run/checkpoints/model_11.pt"):
        assert ancestry.same_start(text, cfg, child) == cfg.init_from, "nothing of it need be left"
    assert ancestry.same_start("run:12", cfg, child) is None


def test_several_with_commas_between_are_told_from_a_path_with_commas(here: Path) -> None:
    def read(text: str) -> str:
        return as_overrides([text])[0].partition("=")[2]

    for name in ("0_a=1,b=2", "1_a=1,b=3"):
        shutil.copytree("run", name)
    assert read("init_from=run") == "'run'"
    assert read("init_from=0_a=1,b=2:best") == "'0_a=1,b=2:best'"
    assert read("init_from=0_a=1,b=2:best,1_a=1,b=3,null") == "'0_a=1,b=2:best','1_a=1,b=3',null"
    assert read("init_from=run,run:5,nothing") == "'run','run:5','nothing'"
    assert read("init_from=no,where") == "'no,where'"
    assert read("init_from=null") == "null"
    assert read("init_from='run'") == "'run'"


def test_a_config_from_before_there_was_init_from_began_from_scratch(here: Path) -> None:
    config = here / "run" / "config.yaml"
    content = yaml.safe_load(config.read_text())
    del content["init_from"], content["init"]
    config.write_text(yaml.safe_dump(content))
    cfg = read_experiment(config)
    assert (cfg.init_from, dataclasses.asdict(cfg.init)) == (
        None,
        {"critic": True, "optimizer": False, "std": True, "kl_coef": 0.0},
    )


def test_a_config_from_before_init_kl_coef_keeps_what_it_says_of_init(here: Path) -> None:
    config = here / "run" / "config.yaml"
    content = yaml.safe_load(config.read_text())
    content["init"] = {"critic": False, "optimizer": False, "std": False}
    config.write_text(yaml.safe_dump(content))
    assert dataclasses.asdict(read_experiment(config).init) == {**content["init"], "kl_coef": 0.0}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "init.kl_coef=0.5",
            "init.kl_coef=0.5 holds the policy near the one that the run begins with, and init_from=null begins with "
            "random weights. Try init_from=RUN or init.kl_coef=0.",
        ),
        ("init_from=run init.kl_coef=-1", "init.kl_coef=-1.0 is out of range. Allowed: >= 0."),
        ("init_from=run init.kl_coef=much", "init.kl_coef=much is of the wrong kind. Allowed: a number."),
    ],
)
def test_a_weight_that_cannot_be_is_refused(overrides: str, message: str, experiment: Experiment) -> None:
    with pytest.raises(ConfigError) as refused:
        experiment("env=hover", *overrides.split())
    assert str(refused.value) == message
