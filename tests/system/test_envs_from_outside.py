"""Envs of packages that a lab installs, found by entry point, and overlays in a folder of one's own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ppo_lab import envs
from tests.paths import REPOSITORY
from tests.system.test_docs import examples

PACKAGE = """
import os, pathlib

def note(text):
    with pathlib.Path(os.environ["NOTES"]).open("a") as file:
        file.write(text + "\\n")
"""


class Lab:
    """A folder on sys.path with the package my_lab, which brings the env drone and an experiment for it.

    The drone is the puck of docs/add_an_env.md, which needs no simulator.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = folder / "site"
        self.package = self.site / "my_lab"
        conf = self.package / "conf"
        for group in ("env", "experiment"):
            (conf / group).mkdir(parents=True)
        (self.package / "__init__.py").write_text(PACKAGE)
        found = examples()
        puck, made = found["ppo_lab/envs/tasks/puck.py"], "    return PuckEnv()\n"
        assert puck.count(made) == 1
        begin = 'import my_lab\n\nmy_lab.note("imported")\n'
        module = begin + puck.replace(made, f'    my_lab.note("made")\n{made}')
        (self.package / "drone.py").write_text(module)
        settings = found["conf/env/puck.yaml"]
        assert "name: puck" in settings
        (conf / "env" / "drone.yaml").write_text(settings.replace("name: puck", "name: drone"))
        overlay = "# @package _global_\nnum_envs: 24\nrun_name: gentle\n"
        (conf / "experiment" / "drone_gentle.yaml").write_text(overlay)
        self.register("my-lab", "drone = my_lab.drone")

    def register(self, name: str, entry: str) -> None:
        info = self.site / f"{name.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[ppo_lab.envs]\n{entry}\n")

    @property
    def notes(self) -> list[str]:
        """What the module my_lab.drone did."""
        notes = self.folder / "notes"
        return notes.read_text().split() if notes.exists() else []

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(REPOSITORY), str(self.site)])
        environment = os.environ | {"PYTHONPATH": path, "NOTES": str(self.folder / "notes")}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300)

    def train(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "ppo_lab", "train", *arguments)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_help_lists_what_an_installed_package_brings_and_imports_nothing_of_it(lab: Lab) -> None:
    done = lab.train("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"\n  env: {', '.join(sorted(['drone', *envs.names()]))}\n" in done.stdout
    assert "drone_gentle" in done.stdout
    assert lab.notes == []


def test_a_setting_of_the_packages_env_is_checked_by_its_config(lab: Lab) -> None:
    done = lab.train("env=drone", "experiment=drone_gentle", "env.dt=0")
    assert (done.returncode, done.stderr) == (2, "error: env.dt=0.0 is out of range. Allowed: > 0.\n")
    assert lab.notes == ["imported"]


DESCRIBE = """
import json, sys
from pathlib import Path
from ppo_lab.cli.compose import compose
from ppo_lab.runs import manifest
from ppo_lab.runs.config import to_experiment
import torch
cfg = to_experiment(compose(["env=drone", "experiment=drone_gentle"]))
checkout = manifest.Checkout(None, b"", [])
print(json.dumps(manifest.describe_run([], cfg, torch.device("cpu"), Path("run"), checkout)))
"""


def test_the_manifest_names_the_package_of_the_env_with_its_commit_and_changes(lab: Lab) -> None:
    installed = json.loads(lab.run("-c", DESCRIBE).stdout)
    assert installed["config"]["num_envs"] == 24
    assert installed["env_package"] == {
        **{"name": "my-lab", "version": "1.2", "module": "my_lab.drone"},
        **{"commit": None, "dirty": None, "left_out": [], "diff": None},
    }
    assert installed["repeat"].endswith("train.py  # with my-lab 1.2")

    for command in ("init", "add .", "-c user.name=a -c user.email=b commit -m c"):
        subprocess.run(["git", *command.split()], cwd=lab.site, check=True, capture_output=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=lab.site, check=True, capture_output=True, text=True).stdout
    with (lab.package / "drone.py").open("a") as file:
        file.write("# changed\n")
    changed = json.loads(lab.run("-c", DESCRIBE).stdout)
    assert (changed["env_package"]["commit"], changed["env_package"]["dirty"]) == (head.strip(), True)
    assert "+# changed\n" in changed["env_package"]["diff"]
    assert changed["repeat"].endswith(
        f"  # with my-lab 1.2 at commit {head.strip()} and the changes in env_package.diff of manifest.json"
    )


def test_a_run_folder_of_an_env_that_is_not_installed_is_refused_and_imports_nothing(lab: Lab) -> None:
    write = (
        "from ppo_lab.cli.compose import compose; from ppo_lab.runs.config import as_yaml, to_experiment; "
        "print(as_yaml(to_experiment(compose(['env=drone']))))"
    )
    run = lab.folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text(lab.run("-c", write).stdout)
    package = {"name": "my-lab", "version": "1.2", "module": "my_lab.drone"}
    (run / "manifest.json").write_text(json.dumps({"env_package": package}))
    before = lab.notes
    shutil.rmtree(lab.site / "my_lab-1.2.dist-info")  # the module can still be imported
    done = lab.train("resume=run")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: run/config.yaml: env.name=drone is not an env. Allowed: {', '.join(envs.names())}. Others come with "
        "packages that register them as entry points of ppo_lab.envs; install theirs. The run's env was that of the "
        "package my-lab 1.2.\n"
    )
    assert lab.notes == before


@pytest.mark.parametrize(("entry", "other"), [("hover = my_lab.drone", "ppo-lab"), ("drone = theirs.drone", "my-lab")])
def test_a_name_that_is_taken_is_refused(lab: Lab, entry: str, other: str) -> None:
    lab.register("your-lab", entry)
    done = lab.train("num_envs=16")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: the env {entry.split()[0]} is registered by ")
    assert "your-lab" in done.stderr
    assert other in done.stderr


def test_a_module_that_cannot_be_imported_is_named_with_its_package(lab: Lab) -> None:
    (lab.package / "drone.py").write_text("import no_such_library\n")
    done = lab.train("env=drone")
    assert done.returncode == 2
    assert done.stderr == "error: the env drone of my-lab cannot be loaded: No module named 'no_such_library'.\n"


def test_overlays_in_a_folder_given_by_config_dir_are_listed_and_used(lab: Lab) -> None:
    folder = lab.folder / "my conf"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text("# @package _global_\nnum_envs: 48\n")
    shipped = [path.stem for path in (REPOSITORY / "conf" / "experiment").glob("*.yaml")]
    for option in (["--config-dir", "my conf"], ["-cd", "my conf"], ["--config-dir=my conf"]):
        listed = lab.train(*option, "--help")
        assert ", ".join(sorted([*shipped, "mine"])) in listed.stdout
    printed = lab.train("--config-dir", "my conf", "experiment=mine", "--cfg", "job")
    assert "num_envs: 48\n" in printed.stdout
    searched = lab.train("hydra.searchpath=['file://my conf']", "experiment=mine", "--cfg", "job")
    assert "num_envs: 48\n" in searched.stdout
    refused = lab.train("--config-dir", "my conf", "experiment=mime")
    assert refused.stderr.startswith("error: experiment=mime: there is no such experiment. Did you mean mine?")
    assert lab.train("experiment=mine").returncode == 2


def test_a_primary_config_of_ones_own_is_used_by_its_name(lab: Lab) -> None:
    (lab.folder / "mine.yaml").write_text("defaults:\n  - config\n  - _self_\nnum_envs: 48\n")
    done = lab.train("-cd", ".", "-cn", "mine", "--cfg", "job")
    assert (done.returncode, done.stderr) == (0, "")
    assert "num_envs: 48\n" in done.stdout
    done = lab.train("-cd", ".", "-cn", "yours")
    assert done.returncode == 2
    assert done.stderr == "error: --config-name=yours: there is no such file. Allowed: config, estimate, mine.\n"


def test_a_run_trains_with_hydras_settings_and_says_how_to_repeat_it(lab: Lab) -> None:
    (lab.folder / "conf" / "experiment").mkdir(parents=True)
    (lab.folder / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\nrun_name: mine\n")
    hydras = ["hydra.verbose=true", "+hydra.job.env_set.MY_SETTING=7", "hydra.job.name=first", "hydra.run.dir=run"]
    done = lab.train("--config-dir=conf", "env=drone", "experiment=[smoke,mine]", *hydras)
    assert done.returncode == 0, done.stderr
    assert "made" in lab.notes
    manifest = json.loads((lab.folder / "run" / "manifest.json").read_text())
    assert manifest["overrides"] == ["--config-dir=conf", "env=drone", "experiment=[smoke,mine]"]
    assert manifest["env_package"]["name"] == "my-lab"
    assert manifest["config"]["run_name"] == "mine"
    assert "DEBUG" in (lab.folder / "run" / "train.log").read_text()
    hydra = (lab.folder / "run" / ".hydra" / "hydra.yaml").read_text()
    assert "name: first" in hydra
    assert "MY_SETTING: '7'" in hydra
