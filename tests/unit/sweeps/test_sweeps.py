"""Sweeps: which jobs, whether they fit, what becomes of each, and that nothing is lost or left behind.

What a job does to the schedule is tried with small programs in place of train.py; what the overrides mean and what
isolation gives, with train.py itself.
"""

import dataclasses
import errno
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from ppo_lab import envs, report
from ppo_lab.cli import argv as command_line
from ppo_lab.cli import sweep as sweep_command
from ppo_lab.cli.compose import compose
from ppo_lab.cli.sweep import expand
from ppo_lab.config import ExperimentConfig
from ppo_lab.errors import ConfigError, ExitCode, OverBudgetError
from ppo_lab.machine import commands
from ppo_lab.memory.predict import hardware
from ppo_lab.runs.config import to_experiment
from ppo_lab.runs.folder import lock
from ppo_lab.sweeps import executors, jobs, launcher, plan, schedule, table
from ppo_lab.sweeps.executors import LocalSlot
from ppo_lab.sweeps.jobs import Job, Sweep
from ppo_lab.sweeps.table import Progress
from ppo_lab.training.stopping import AGAIN_AFTER_S
from tests.fake_nvml import Device
from tests.paths import REPOSITORY

TINY = ["experiment=smoke", "env=hover", "device=cpu"]

Train = Callable[..., subprocess.CompletedProcess[str]]

JOB = """
import json, os, pathlib, signal, subprocess, sys, time
overrides = dict(override.split("=", 1) for override in sys.argv[1:])
folder = pathlib.Path((overrides.get("hydra.run.dir") or overrides["resume"]).strip("'"))
folder.mkdir(exist_ok=True)
def note(name, text):
    with (folder / name).open("a") as file:
        file.write(text + "\\n")
def end(signum, frame):
    note("signals", signal.Signals(signum).name)
    (folder / "summary.json").write_text(json.dumps({"status": "interrupted", "iterations": 7}))
    sys.exit(130 if signum == signal.SIGINT else 75)
for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, end)
note("overrides", " ".join(sys.argv[1:]))
note("pids", str(os.getpid()))
if overrides["do"] != "die_early":
    note("config.yaml", "")
match overrides["do"]:
    case "succeed":
        pass
    case "nap":
        time.sleep(0.5)  # the schedule looks more often
    case "fail":
        print("error: it broke")
        sys.exit(1)
    case "vanish":
        os._exit(1)
    case "die" | "die_early":
        os.kill(os.getpid(), signal.SIGKILL)
    case "does_not_fit":
        print("error: memory: 9 MiB of 8 MiB free; fits: no")
        sys.exit(3)
    case "wait" | "wait_if_new":
        if "resume" not in overrides or overrides["do"] == "wait":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            note("pids", str(child.pid))
            note("waits", "")
            time.sleep(60)
print("done", os.environ.get("OMP_NUM_THREADS"))
"""
"""Does as its override do= says, in the folder that it is given."""

RUN = """
import sys
from pathlib import Path
from ppo_lab import report
from ppo_lab.sweeps import jobs, launcher
from ppo_lab.sweeps.executors import LocalSlot
count, folder, job = sys.argv[1:]
slots = [LocalSlot(f"slot {n}", {}, (sys.executable, "-c", job)) for n in range(int(count))]
sys.exit(launcher.run(jobs.read(Path(folder)), slots, report.write))
"""


def sweep_of(folder: Path, *does: str, over_budget: str = "skip") -> Sweep:
    """A planned sweep whose jobs do as they are told."""
    planned = [
        Job(
            number=number,
            name=f"do={do}",
            folder=plan.folder_name(number, len(does), f"do={do}"),
            overrides=(f"do={do}",),
            max_iterations=10,
            transitions=100,
        )
        for number, do in enumerate(does)
    ]
    settings = {"jobs_per_device": 1, "over_budget": over_budget, "resume": None, "reward_threshold": None}
    folder.mkdir()
    sweep = Sweep(folder, "2026-11-20T09:00:00+00:00", "python train.py -m do=...", ["do"], "cpu", settings, planned)
    sweep.save()
    return sweep


def tiny_slots(count: int = 1) -> list[LocalSlot]:
    return [LocalSlot(f"slot {n}", {}, (sys.executable, "-c", JOB)) for n in range(count)]


def start(sweep: Sweep, count: int) -> subprocess.Popen[str]:
    """The sweep in a process of its own, in `count` slots."""
    command = [sys.executable, "-c", RUN, str(count), str(sweep.folder), JOB]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(happened: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + 240
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def pids(sweep: Sweep) -> list[int]:
    """Of every process of every job, and of those that they started."""
    return [int(pid) for file in sweep.folder.glob("*/pids") for pid in file.read_text().split()]


def are_gone(numbers: list[int]) -> bool:
    return not any(psutil.pid_exists(n) and psutil.Process(n).status() != psutil.STATUS_ZOMBIE for n in numbers)


def statuses(sweep: Sweep) -> list[str]:
    return [job.status for job in jobs.read(sweep.folder).jobs]


def overrides_of(sweep: Sweep, number: int) -> list[str]:
    """What each process of a job was called with."""
    return (sweep.run_folder(sweep.jobs[number]) / "overrides").read_text().splitlines()


# overrides -> jobs


def test_every_combination_is_one_job_with_the_last_override_turning_fastest() -> None:
    combinations = expand(["env=hover", "num_envs=512,1024", "algorithm.num_mini_batches=2,4", "seed=range(1,3)"])
    assert len(combinations) == 8
    assert combinations[0] == ("env=hover", "num_envs=512", "algorithm.num_mini_batches=2", "seed=1")
    assert combinations[1] == ("env=hover", "num_envs=512", "algorithm.num_mini_batches=2", "seed=2")
    assert combinations[7] == ("env=hover", "num_envs=1024", "algorithm.num_mini_batches=4", "seed=2")
    assert plan.swept_keys(combinations) == ["num_envs", "algorithm.num_mini_batches", "seed"]
    assert plan.job_names(combinations)[7] == "num_envs=1024 num_mini_batches=4 seed=2"


def test_a_choice_of_files_can_be_swept_too() -> None:
    assert expand(["env=glob(*)"]) == [(f"env={name}",) for name in envs.names()]


def test_a_key_given_twice_keeps_both_overrides_in_their_order() -> None:
    overrides = ["env.obs_scales={ang_vel: 1}", "env.obs_scales={dof_pos: 2}", "seed=1", "seed=3", "num_envs=16,32"]
    combinations = expand(overrides)
    assert combinations == [
        ("env.obs_scales={ang_vel:1}", "env.obs_scales={dof_pos:2}", "seed=1", "seed=3", "num_envs=16"),
        ("env.obs_scales={ang_vel:1}", "env.obs_scales={dof_pos:2}", "seed=1", "seed=3", "num_envs=32"),
    ]
    assert plan.swept_keys(combinations) == ["num_envs"]
    assert plan.job_names(combinations) == ["num_envs=16", "num_envs=32"]


def test_a_job_with_two_overrides_of_one_key_equals_the_single_run(
    experiment: Callable[..., ExperimentConfig],
) -> None:
    swept = ["env.obs_scales={ang_vel: 1},{ang_vel: 2}", "env.obs_scales={dof_pos: 3}", "seed=1", "seed=4"]
    jobs_overrides = expand(swept)
    assert plan.job_names(jobs_overrides) == ["obs_scales={ang_vel:1}", "obs_scales={ang_vel:2}"]
    for overrides, ang_vel in zip(jobs_overrides, (1.0, 2.0), strict=True):
        job = experiment(*overrides)
        assert job == experiment(f"env.obs_scales={{ang_vel: {ang_vel}}}", "env.obs_scales={dof_pos: 3}", "seed=4")
        scales = vars(job.env)["obs_scales"]
        assert (job.seed, scales.ang_vel, scales.dof_pos) == (4, ang_vel, 3.0)


def test_the_swept_keys_are_those_of_the_configuration_without_plus_signs() -> None:
    assert plan.swept_keys(expand(["++seed=1,2", "+num_envs=16,32"])) == ["seed", "num_envs"]


def test_a_deletion_stays_as_it_was_given() -> None:
    assert expand(["~experiment", "seed=1,2"]) == [("~experiment", "seed=1"), ("~experiment", "seed=2")]


def test_keys_that_end_alike_keep_their_whole_name() -> None:
    combinations = expand(["network.actor.hidden_dims=[64],[8,8]", "network.critic.hidden_dims=[64],[8,8]"])
    names = plan.job_names(combinations)
    assert names[1] == "network.actor.hidden_dims=[64] network.critic.hidden_dims=[8,8]"
    folder = plan.folder_name(1, len(combinations), names[1])
    assert folder == "1_network.actor.hidden_dims=,64,network.critic.hidden_dims=,8,8"


@pytest.mark.parametrize("name", ["a=../../etc", "a=$(rm -rf x)", "a='; b", "a=" + "long" * 100, "a=ü/\\:*?", ""])
def test_a_folder_name_is_one_short_plain_part_of_a_path(name: str) -> None:
    folder = plan.folder_name(7, 1000, name)
    assert re.fullmatch(r"007[A-Za-z0-9._,=+-]*", folder)
    assert len(folder) <= 120


WRONG = {
    "num_envs=0,16": r"^num_envs=0: num_envs=0 is out of range\. Allowed: >= 1, <= 2147483647\.$",
    "num_env=16,32": r"^unknown key num_env\. Did you mean num_envs\?",
    "algorithm.num_mini_batches=4,7,11": r"^num_mini_batches=7: .*7 does not divide 128 .*\(2 of 3 jobs are wrong\)$",
    "seed=1,1": "is given twice",
    "seed=interval(0,1)": "has no end of values",
    "seed=range(0,1000000000)": "more than 10,000 jobs",
    "seed=range(0,0)": "gives no job at all",
    "seed=range(0,10,0)": r"cannot sweep over .*seed=range\(0,10,0\)",
    "seed=range(nan,2)": r"cannot sweep over .*seed=range\(nan,2\)",
    "seed=choice(1,choice(2,3))": "cannot sweep over",
    "seed=7": r"no key has several values\. Give some, as in: python train\.py -m seed=1,2; or leave out -m",
    "seed=1,'1'": r"jobs 0 \(seed=1\) and 1 \(seed='1'\) are the same run",
    "env=choice(nothing)": r"env=nothing: there is no such env",
    "+env=hover,go2": "appears more than once",
    "seed=shuffle(1,2)": "jobs run in the order given",
    "--seed=1,2": "unknown option --seed=1,2",
    "resume=outputs/x": r"is for one run\. To go on with a sweep: sweep\.resume=FOLDER",
    "hydra/launcher=basic": r"each in a process of its own.*docs/sweeps\.md",
    "hydra.sweeper.n_jobs=4": r"each in a process of its own.*docs/sweeps\.md",
    "hydra.verbose=true,false": "Give one, for the whole sweep",
    "hydra.run.dir=here": "does not go with -m",
    "device=cpu,auto": "a sweep has one kind of device",
    "sweep.over_budget=skipp": r"Did you mean skip\? Allowed: one of skip, run, stop\.",
    "sweep.jobs_per_device=0": r"sweep\.jobs_per_device=0 is out of range",
    "sweep.jobs_per_device=1,2": "Give one, for the whole sweep",
    "sweep.reward_threshold=high": "Allowed: a number or null",
    "sweep.jobs=2": r"unknown key sweep\.jobs",
    "sweep.resume=nowhere": r"sweep\.resume: nowhere is not a sweep's folder: there is no jobs\.json",
}


@pytest.mark.parametrize(("override", "message"), WRONG.items(), ids=WRONG)
def test_a_wrong_override_is_refused_before_anything_is_written(
    override: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = [other for other in TINY if other.split("=")[0] != override.split("=")[0]]
    several = [] if "," in override or override == "seed=7" else ["seed=1,2"]
    with pytest.raises(ConfigError, match=message) as refused:
        sweep_command.prepare(["-m", *tiny, override, *several, f"hydra.sweep.dir={tmp_path / 'sweep'}"])
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_one_gpu_of_several_is_not_for_a_sweep_to_name() -> None:
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES=1 leaves it this one"):
        sweep_command.prepare(["-m", "device=cuda:1", "seed=1,2"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["seed=1,2", "seed=3"],
            r"jobs 0 \(seed=1\) and 1 \(seed=2\) are the same run\. Of a key given twice the last",
        ),
        (
            ["seed=choice(1,2)", "seed=choice(3,4)"],
            r"jobs 0 \(seed=1 seed=3\) and 2 \(seed=2 seed=3\) are the same run",
        ),
        (["env.obs_scales={lin_vel: 1},{lin_vel: 2}", "env.obs_scales.lin_vel=3"], "are the same run"),
    ],
)
def test_a_value_that_a_later_override_replaces_is_refused(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep_command.prepare(["-m", *TINY, *overrides, f"hydra.sweep.dir={tmp_path / 'sweep'}"])
    assert list(tmp_path.iterdir()) == []


STARTS = [
    ["env=choice(hover)", "env.yaw_lambda=-5"],
    ["env=choice('hover')", "env.yaw_lambda=-5"],
    ["env=glob(h*)", "env.yaw_lambda=-5"],
    ["env=choice(hover)", "env.yaw_lambda=-5", "seed=range(1,2)", "run_name='a',\"b\""],
    ["env=hover", "++seed=1,2"],
    ["env=hover", "~seed", "+seed=1,2"],
    ["env=hover", "env.obs_scales={rel_pos: 1},{rel_pos: 2}", "experiment=choice(smoke)"],
]
"""Overrides that hold for the job's own configuration alone, or that are given in an unusual form."""


@pytest.mark.parametrize("overrides", STARTS, ids=" ".join)
def test_a_job_that_the_plan_accepts_starts(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_estimate", lambda *_: None)
    folder = tmp_path / "sweep"
    argv = ["-m", "experiment=smoke", "device=cpu", *overrides, f"hydra.sweep.dir={folder}"]
    assert sweep_command.prepare(argv) == folder
    for job in jobs.read(folder).jobs:
        cfg = compose([*job.overrides, f"hydra.run.dir='{folder / job.folder}'"])
        assert to_experiment(cfg).env.name == "hover"


def test_a_plan_that_cannot_be_written_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: dict[str, Any]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(plan, "_estimate", lambda *_: None)
    monkeypatch.setattr(jobs, "write_json", full)
    with pytest.raises(ConfigError, match=r"cannot write to .*sweep: No space left on device; choose another"):
        sweep_command.prepare(["-m", *TINY, "seed=1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}"])
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_of_one_job_that_was_begun_earlier_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_estimate", lambda *_: None)
    sweep_command.prepare(["-m", *TINY, "seed=choice(1)", f"hydra.sweep.dir={tmp_path / 'sweep'}"])
    assert sweep_command.prepare(["-m", *TINY, "seed=1", f"sweep.resume={tmp_path / 'sweep'}"]) == tmp_path / "sweep"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["-m", "num_envs=0,16"], "error: num_envs=0: num_envs=0 is out of range"),
        (["num_envs=16,32"], "or add -m to train with each"),
        (["sweep.over_budget=run"], "Add -m"),
    ],
)
def test_the_command_refuses_with_code_2_and_one_line(train: Train, overrides: list[str], message: str) -> None:
    done = train(*TINY, *overrides)
    assert done.returncode == ExitCode.WRONG_INPUT
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


# the plan


@pytest.fixture
def free_mib(monkeypatch: pytest.MonkeyPatch) -> int:
    """What is free on the host: 4 million envs, which need 160 GiB, never fit."""
    free = 32 * 1024
    monkeypatch.setattr(hardware, "_free_bytes", lambda card: free * hardware.MIB)
    return free


def test_the_plan_is_written_down_and_leaves_out_what_will_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], free_mib: int
) -> None:
    overrides = [*TINY, "num_envs=16,4000000", "seed=1,2", "sweep.jobs_per_device=2"]
    folder = sweep_command.prepare(["-m", *overrides, f"hydra.sweep.dir={tmp_path / 'sweep'}"])
    assert folder == tmp_path / "sweep"
    content = json.loads((tmp_path / "sweep" / "jobs.json").read_text())
    assert content["swept"] == ["num_envs", "seed"]
    assert content["settings"]["jobs_per_device"] == 2
    assert [(job["folder"], job["status"], job["transitions"]) for job in content["jobs"]] == [
        ("0_num_envs=16,seed=1", "planned", 16 * 8),
        ("1_num_envs=16,seed=2", "planned", 16 * 8),
        ("2_num_envs=4000000,seed=1", "over_budget", 4_000_000 * 8),
        ("3_num_envs=4000000,seed=2", "over_budget", 4_000_000 * 8),
    ]
    predicted = [job["predicted_bytes"] for job in content["jobs"]]
    assert 0 < predicted[0] == predicted[1] < free_mib * hardware.MIB / 2 < predicted[2] == predicted[3]
    assert [job.is_missing for job in jobs.read(tmp_path / "sweep").jobs] == [True, True, False, False]
    assert re.fullmatch(
        r"needs (at least|about) [\d,]+ MiB( \([^)]+\))? of [\d,]+ MiB free", content["jobs"][2]["message"]
    )
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3, "one estimate for each num_envs, not for each seed"
    assert re.fullmatch(rf"plan: 4 jobs, {free_mib // 2:,} MiB free on .* for each of 2 at a time", said[0])
    assert re.match(r"  prediction 1 of 2 \| jobs 0, 1 \| num_envs=16 \| needs .*; fits: ", said[1])
    assert re.match(r"  prediction 2 of 2 \| jobs 2, 3 \| num_envs=4000000 \| needs .*; fits: no$", said[2])


def test_config_dir_and_settings_of_hydra_are_given_to_every_job(tmp_path: Path) -> None:
    conf = tmp_path / "my conf"
    (conf / "experiment").mkdir(parents=True)
    overlay = "# @package _global_\ndefaults:\n  - smoke\n  - _self_\nnum_envs: 24\n"
    (conf / "experiment" / "mine.yaml").write_text(overlay)
    given = ["experiment=mine", "env=hover", "device=cpu", "hydra.verbose=ppo_lab", "+hydra.job.env_set.NAME=value"]
    argv = ["-m", "--config-dir", str(conf), *given, "seed=1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    planned = jobs.read(sweep_command.prepare(argv)).jobs
    assert [job.overrides for job in planned] == [(f"--config-dir={conf}", *given, f"seed={n}") for n in (1, 2)]
    for number, job in enumerate(planned, 1):
        cfg = compose(*command_line.read(job.overrides))
        experiment = to_experiment(cfg)
        assert (experiment.num_envs, experiment.max_iterations, experiment.seed) == (24, 2, number)
        assert (cfg.hydra.verbose, cfg.hydra.job.env_set) == ("ppo_lab", {"NAME": "value"})


@pytest.mark.usefixtures("free_mib")
def test_a_sweep_may_stop_where_a_job_will_not_fit(tmp_path: Path) -> None:
    overrides = [*TINY, "num_envs=4000000", "seed=1,2", "sweep.over_budget=stop"]
    with pytest.raises(OverBudgetError, match=r"2 of 2 jobs do not fit: seed=1, seed=2\. Try sweep\.over_budget="):
        sweep_command.prepare(["-m", *overrides, f"hydra.sweep.dir={tmp_path / 'sweep'}"])
    assert list(tmp_path.iterdir()) == []


def test_what_the_simulator_cannot_build_is_left_out_however_much_memory_there_is(tmp_path: Path) -> None:
    sweep_command.prepare(
        ["-m", *TINY, "num_envs=16,50000000", "sweep.over_budget=run", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    )
    small, large = jobs.read(tmp_path / "sweep").jobs
    assert (small.status, large.status, large.predicted_bytes) == ("planned", "over_budget", None)
    assert large.message
    assert "more than the simulator builds of this env" in large.message


@pytest.mark.usefixtures("free_mib")
def test_over_budget_run_starts_a_job_that_is_predicted_not_to_fit(tmp_path: Path) -> None:
    overrides = [*TINY, "num_envs=choice(4000000)", "sweep.over_budget=run"]
    sweep_command.prepare(["-m", *overrides, f"hydra.sweep.dir={tmp_path / 'planned'}"])
    assert [(job.status, job.folder) for job in jobs.read(tmp_path / "planned").jobs] == [("planned", "0")]
    sweep = sweep_of(tmp_path / "sweep", "succeed", over_budget="run")
    schedule.run(sweep, tiny_slots())
    assert "memory.over_budget=warn" in overrides_of(sweep, 0)[0].split()


# devices


def test_without_a_gpu_the_cpu_is_the_one_device_and_its_cores_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    cores = len(os.sched_getaffinity(0))
    (alone,) = executors.local_slots("cpu", 1)
    assert (alone.name, alone.environment) == ("cpu", {"CUDA_VISIBLE_DEVICES": ""})
    shares = executors.local_slots("cpu", 2)
    assert [share.environment.get("OMP_NUM_THREADS") for share in shares] == [str(max(1, cores // 2))] * 2
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert not any("OMP_NUM_THREADS" in share.environment for share in executors.local_slots("cpu", 2)), "by hand"


def test_each_gpu_that_is_visible_takes_its_share_of_jobs(
    monkeypatch: pytest.MonkeyPatch, machine: Callable[..., None]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    machine([Device("GPU-0"), Device("GPU-1"), Device("GPU-2")], CUDA_VISIBLE_DEVICES="2,GPU-0")
    four = executors.local_slots("auto", 2)
    assert [slot.name for slot in four] == ["gpu 2", "gpu 0"] * 2
    alone = [{"CUDA_VISIBLE_DEVICES": uuid, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"} for uuid in ("GPU-2", "GPU-0")]
    assert [slot.environment for slot in four] == alone * 2
    assert executors.local_slots("cpu", 1)[0].environment == {"CUDA_VISIBLE_DEVICES": ""}, "no GPU is left to a CPU job"


def test_a_plan_counts_with_the_gpu_that_has_the_least_free(machine: Callable[..., None]) -> None:
    machine([Device("GPU-0", "large", free_mib=9), Device("GPU-1", "small", 8188, 252, free_mib=7)])
    full = hardware.Hardware("small", 7936, "8.9", 24)
    assert hardware.fullest("auto") == (full, 7 * hardware.MIB)
    assert hardware.fullest("cpu")[0] == hardware.this_machine("cpu")


def test_a_gpu_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="no NVIDIA GPU is visible"):
        executors.local_slots("cuda", 1)


# the schedule


def test_one_bad_job_stops_no_other_and_each_says_what_became_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of(tmp_path / "sweep", "succeed", "fail", "die", "vanish", "does_not_fit", "succeed")
    assert launcher.run(sweep, tiny_slots(), report.write) == ExitCode.FAILED
    ended = jobs.read(sweep.folder).jobs
    assert [(job.status, job.exit_code) for job in ended] == [
        ("completed", 0),
        ("failed", 1),
        ("killed", -9),
        ("killed", 1),
        ("over_budget", 3),
        ("completed", 0),
    ]
    assert [job.message for job in ended] == [
        None,
        "it broke",
        "ended by signal 9 (Killed); the system does that when memory runs out",
        "ended with code 1 and no reason given; it last printed: ",
        "memory: 9 MiB of 8 MiB free; fits: no",
        None,
    ]
    assert all(job.device == "slot 0" and job.started and job.wall_s for job in ended)
    assert sweep.log(ended[1]).read_text() == "error: it broke\n"
    said = capsys.readouterr().out
    assert "missing: 4 of 6 jobs" in said
    assert f"to run what is missing: {commands.train('-m', 'do=...', f'sweep.resume={sweep.folder}')}\n" in said


def test_a_sweep_is_done_when_all_is_completed_or_was_left_out_as_planned(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path / "sweep", "succeed", "fail")
    sweep.update(sweep.jobs[1], status="over_budget", message="needs 9 MiB of 8 MiB free")
    assert launcher.run(sweep, tiny_slots(), report.write) == ExitCode.DONE
    assert not sweep.run_folder(sweep.jobs[1]).exists()


def test_as_many_jobs_run_at_a_time_as_there_are_slots(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path / "sweep", *["nap"] * 7)
    running: list[int] = []
    at: list[set[str | None]] = []

    def look() -> None:
        now = [job for job in sweep.jobs if job.status == "running"]
        running.append(len(now))
        at.append({job.device for job in now})

    schedule.run(sweep, tiny_slots(3), look)
    assert max(running) == 3
    assert [len(devices) for devices in at] == running, "each in a slot of its own"
    assert statuses(sweep) == ["completed"] * 7


def test_jobs_json_is_whole_at_every_moment(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path / "sweep", *["succeed", "fail", "die"] * 4)
    process = start(sweep, count=3)
    seen = set()
    while process.poll() is None:
        seen.add(tuple(statuses(sweep)))  # would not parse, were it half
    process.communicate()
    assert process.returncode == ExitCode.FAILED
    assert len(seen) > 3
    assert statuses(sweep) == ["completed", "failed", "killed"] * 4


@pytest.mark.parametrize(
    ("sent", "told", "exit_code"),
    [
        (signal.SIGINT, "SIGINT", ExitCode.INTERRUPTED),
        (signal.SIGTERM, "SIGTERM", ExitCode.REQUEUE),
        (signal.SIGUSR1, "SIGTERM", ExitCode.REQUEUE),
        (signal.SIGHUP, "SIGTERM", 129),
    ],
)
def test_a_signal_lets_running_jobs_end_well_and_leaves_no_process(
    tmp_path: Path, sent: signal.Signals, told: str, exit_code: int
) -> None:
    sweep = sweep_of(tmp_path / "sweep", "succeed", "wait", "wait", "succeed")
    process = start(sweep, count=2)
    wait_for(lambda: len(list(sweep.folder.glob("*/waits"))) == 2, process)
    process.send_signal(sent)
    if sent == signal.SIGHUP:
        process.send_signal(sent)  # a shell passes on what the terminal has sent already
    said, _ = process.communicate(timeout=60)
    assert process.returncode == exit_code, said
    assert "Traceback" not in said
    assert "report: " in said
    assert statuses(sweep) == ["completed", "interrupted", "interrupted", "planned"]
    assert [job.message for job in jobs.read(sweep.folder).jobs][1] == "stopped after 7 iterations"
    assert [file.read_text() for file in sweep.folder.glob("*/signals")] == [f"{told}\n"] * 2, "told once"
    assert are_gone(pids(sweep))


STUBBORN = JOB.replace("def end(signum, frame):", "def end(signum, frame):\n    note('waits', 'told'); return")


def test_a_second_ctrl_c_kills_the_running_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "JOB", STUBBORN)
    sweep = sweep_of(tmp_path / "sweep", "wait")
    process = start(sweep, count=1)
    waits = sweep.run_folder(sweep.jobs[0]) / "waits"
    wait_for(waits.exists, process)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: "told" in waits.read_text(), process)
    time.sleep(AGAIN_AFTER_S)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    assert statuses(sweep) == ["killed"]
    assert jobs.read(sweep.folder).jobs[0].message == "killed by a second signal to the sweep"
    assert are_gone(pids(sweep))


@pytest.mark.skipif(sys.platform != "linux", reason="the system must tell a child that its parent is gone")
def test_jobs_end_with_a_sweep_that_was_killed_and_go_on_where_it_is_resumed(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path / "sweep", "succeed", "wait_if_new", "wait_if_new", "succeed")
    process = start(sweep, count=2)
    wait_for(lambda: len(list(sweep.folder.glob("*/waits"))) == 2, process)
    process.kill()
    process.communicate(timeout=60)
    leaders = [int(file.read_text().split()[0]) for file in sweep.folder.glob("*/pids")]
    deadline_s = time.monotonic() + 60
    while not are_gone(leaders):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    for left in set(pids(sweep)) - set(leaders):
        psutil.Process(left).kill()  # train.py's own children end with their work
    assert statuses(sweep) == ["completed", "running", "running", "planned"]

    again = jobs.read(sweep.folder)
    again.jobs = [plan._continued(again, planned) for planned in sweep.jobs]
    assert launcher.run(again, tiny_slots(), report.write) == ExitCode.DONE
    assert len(overrides_of(sweep, 0)) == len(overrides_of(sweep, 3)) == 1, "not run again"
    for number in (1, 2):
        folder = sweep.run_folder(sweep.jobs[number])
        assert overrides_of(sweep, number) == [
            f"do=wait_if_new hydra.run.dir='{folder}'",
            f"do=wait_if_new resume='{folder}'",
        ]
    assert statuses(sweep) == ["completed"] * 4


def received(tmp_path: Path, *signals: signal.Signals) -> tuple[signal.Signals | None, list[str]]:
    """What a sweep of one waiting job says that stopped it when it receives `signals`, and how the job ended."""
    sweep = sweep_of(tmp_path / "sweep", "wait")
    to_send = [*signals]

    def look() -> None:
        if (sweep.run_folder(sweep.jobs[0]) / "waits").exists():
            while to_send:
                signal.raise_signal(to_send.pop(0))

    return schedule.run(sweep, tiny_slots(), look), statuses(sweep)


def test_a_hangup_that_follows_another_signal_is_not_a_second_request(tmp_path: Path) -> None:
    """systemd sends SIGHUP after SIGTERM, and shells send it twice."""
    ended = received(tmp_path, signal.SIGTERM, signal.SIGHUP, signal.SIGHUP)
    assert ended == (signal.SIGTERM, ["interrupted"])


def test_a_hangup_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As nohup leaves it; the SIGTERM ends the test."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        ended = received(tmp_path, signal.SIGHUP, signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ended == (signal.SIGTERM, ["interrupted"])


def test_what_a_job_left_before_it_was_a_run_is_moved_aside(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path / "sweep", "die_early")
    folder = sweep.run_folder(sweep.jobs[0])
    for attempt in (1, 2, 3):
        schedule.run(sweep, tiny_slots())
        assert statuses(sweep) == ["killed"]
        asides = sorted(path.name for path in sweep.folder.glob("*.aside_*"))
        assert asides == [f"{folder.name}.aside_{n}" for n in range(1, attempt)]
        assert overrides_of(sweep, 0) == [f"do=die_early hydra.run.dir='{folder}'"]
        sweep.update(sweep.jobs[0], status="planned")


def test_a_job_that_was_completed_after_the_plan_is_not_started(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path / "sweep", "fail", "succeed")
    complete(sweep.run_folder(sweep.jobs[0]))
    assert launcher.run(sweep, tiny_slots(), report.write) == ExitCode.DONE
    assert [(job.status, job.exit_code, job.message) for job in jobs.read(sweep.folder).jobs] == [
        ("completed", 0, None)
    ] * 2
    assert not sweep.log(sweep.jobs[0]).exists()


@pytest.mark.parametrize("ends", ["completed", "killed"])
def test_a_job_whose_folder_is_in_use_waits_while_others_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ends: str
) -> None:
    sweep = sweep_of(tmp_path / "sweep", "succeed", "succeed")
    folder = sweep.run_folder(sweep.jobs[0])
    folder.mkdir()
    (folder / "config.yaml").touch()
    held = lock(folder)
    seen: set[tuple[str, str | None]] = set()

    def look() -> None:
        board.show()
        seen.add((statuses(sweep)[0], jobs.read(sweep.folder).jobs[0].message))
        if statuses(sweep)[1] == "completed":
            if ends == "completed":
                complete(folder)
            held.close()

    with table.SweepTable(sweep, slots=1) as board:
        schedule.run(sweep, tiny_slots(), look)
    waits = f"waits for process {os.getpid()}, which trains in its folder"
    assert ("planned", waits) in seen
    assert ("planned", None) not in seen
    assert capsys.readouterr().out.count(waits) == 1
    assert statuses(sweep) == ["completed"] * 2
    assert jobs.read(sweep.folder).jobs[0].message is None
    assert (folder / "overrides").exists() == (ends == "killed"), "what another process completed is not run again"


def test_a_sweep_that_is_stopped_waits_for_no_folder(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path / "sweep", "succeed")
    folder = sweep.run_folder(sweep.jobs[0])
    folder.mkdir()
    with lock(folder):
        assert schedule.run(sweep, tiny_slots(), lambda: os.kill(os.getpid(), signal.SIGTERM)) == signal.SIGTERM
    assert statuses(sweep) == ["planned"]


def complete(folder: Path) -> None:
    """Leaves what a run that came to its end leaves."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").touch()
    (folder / "summary.json").write_text('{"status": "completed"}')


# resume


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A sweep's folder, and the arguments that it came from."""
    folder = tmp_path_factory.mktemp("sweeps") / "it's a=1, of größeren"
    arguments = ["-m", *TINY, "num_envs=16", "seed=1,2,3,4,5,6"]
    sweep_command.prepare([*arguments, f"hydra.sweep.dir={folder}"])
    return folder, arguments


def test_resume_plans_what_is_missing_and_keeps_what_is_done(planned: tuple[Path, list[str]]) -> None:
    folder, _ = planned
    sweep = jobs.read(folder)
    sweep.update(sweep.jobs[0], status="completed", exit_code=0, device="cpu", wall_s=12.0)
    sweep.update(sweep.jobs[1], status="interrupted", exit_code=130, wall_s=5.0, started="then", message="stopped")
    sweep.update(sweep.jobs[2], status="failed", exit_code=1, wall_s=5.0, message="it broke")
    sweep.update(sweep.jobs[3], status="running", started="then")
    sweep.update(sweep.jobs[4], status="running", started="then", wall_s=3.0)
    over = sweep.run_folder(sweep.jobs[4])
    over.mkdir()
    (over / "summary.json").write_text('{"status": "completed"}')
    printed = launcher._how_to_go_on(sweep).partition("train.py ")[2]
    assert sweep_command.prepare([*shlex.split(printed), "sweep.jobs_per_device=2"]) == folder
    again = jobs.read(folder)
    assert [job.status for job in again.jobs] == ["completed", "planned", "planned", "planned", "completed", "planned"]
    assert again.jobs[0] == sweep.jobs[0]
    assert (again.jobs[1].wall_s, again.jobs[1].started, again.jobs[1].message) == (5.0, "then", None)
    assert again.jobs[4].wall_s == 3.0, "its sweep was gone when it came to its end"
    assert again.settings["jobs_per_device"] == 2
    assert (again.command, again.started) == (sweep.command, sweep.started)


def test_another_command_is_refused_by_what_differs(planned: tuple[Path, list[str]]) -> None:
    folder, arguments = planned
    before = (folder / "jobs.json").read_bytes()
    for other, message in {
        "seed=1,2": r"is another sweep: seed is 1,2 here and 1,2,3,4,5,6 there\. Give it the overrides that",
        "max_iterations=3": "max_iterations is 3 here and not given there",
    }.items():
        kept = [argument for argument in arguments if argument.split("=")[0] != other.split("=")[0]]
        with pytest.raises(ConfigError, match=message):
            sweep_command.prepare([*kept, other, f"sweep.resume={folder}"])
    assert (folder / "jobs.json").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        *({"folder": "../../elsewhere"}, {"folder": ".."}, {"number": 3}, {"status": "fine"}, {"extra": 1}),
        *({"predicted_bytes": "many"}, {"wall_s": [1]}, {"overrides": [1]}, {"predicted_is_least": 1}),
    ],
)
def test_a_jobs_json_with_a_wrong_value_is_refused(
    planned: tuple[Path, list[str]], tmp_path: Path, change: dict[str, Any]
) -> None:
    content = json.loads((planned[0] / "jobs.json").read_text())
    content["jobs"][0] |= change
    (tmp_path / "jobs.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"sweep\.resume: .*jobs\.json is damaged"):
        sweep_command.prepare([*planned[1], f"sweep.resume={tmp_path}"])


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"jobs": [1]}'])
def test_a_damaged_jobs_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "jobs.json").write_text(text)
    with pytest.raises(ConfigError, match=r"jobs\.json is damaged"):
        jobs.read(tmp_path)


HOLD = """
import sys
from pathlib import Path
from ppo_lab.runs.folder import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


def test_a_sweep_that_is_running_is_not_run_twice(planned: tuple[Path, list[str]]) -> None:
    folder, arguments = planned
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="is in use: process"):
            sweep_command.prepare([*arguments, f"sweep.resume={folder}"])
        other.kill()
    lock(folder).close()  # it is gone with its process


# what is shown


def metrics(folder: Path, count: int, **last: float) -> Path:
    """`count` iterations of 2 s."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"iteration": i, "Perf/collection_time": 1.5, "Perf/learning_time": 0.5} for i in range(count)]
    lines[-1] |= last
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_progress_is_read_from_the_end_of_a_file_that_is_being_written(tmp_path: Path) -> None:
    assert table.read_progress(tmp_path) is None
    path = metrics(tmp_path, 5000, **{"Train/mean_reward": 3.5, "Memory/host_peak_rss_mib": 900.0})
    with path.open("a") as file:
        file.write('{"iteration": 5000, "Train/mean_rew')
    assert table.read_progress(tmp_path) == Progress(
        iterations=5000, s_per_iteration=2.0, reward=3.5, measured_mib=900.0
    )


def test_time_left_goes_by_transitions_and_adds_a_start_for_each_job_to_come() -> None:
    """Two jobs of 100 transitions an iteration at 2 s (0.02 s each), 10 s beside the iterations; 10 iterations each.

    Job 0 is over: 10 + 10 x 2 = 30 s. Job 1 runs, 4 of 10 iterations after 10 + 8 s: 6 x 2 = 12 s are left.
    Job 2 has 300 transitions an iteration: 10 + 10 x 300 x 0.02 = 70 s. In two slots: 82 / 2, but no less than 70.
    """

    def job(number: int, status: jobs.Status, transitions: int) -> Job:
        wall_s = 30.0 if status == "completed" else None
        return Job(number, "", "", (), 10, transitions, status=status, wall_s=wall_s)

    three = [job(0, "completed", 100), job(1, "running", 100), job(2, "planned", 300)]
    progress = {0: Progress(10, 2.0, None, None), 1: Progress(4, 2.0, None, None)}
    assert table.left_s(three, {}, {1: 5.0}, 1) is None
    assert table.left_s(three, progress, {1: 18.0}, 1) == pytest.approx(82)
    assert table.left_s(three, progress, {1: 18.0}, 2) == pytest.approx(70)


def board_of(
    folder: Path, width: int, height: int = 24, name: str = "num_envs=512 seed=1", count: int = 1
) -> table.SweepTable:
    """Of `count` running jobs that have done 2 of 100 iterations of 2 s, on a terminal of that size."""
    running = [
        Job(n, name, str(n), (), 100, 100, predicted_bytes=2**30, status="running", device="cpu") for n in range(count)
    ]
    sweep = Sweep(folder, "", "", [], "cpu", {}, running)
    for job in running:
        metrics(sweep.run_folder(job), 2, **{"Train/mean_reward": -1234.5, "Memory/host_peak_rss_mib": 1790.0})
    console = Console(width=width, height=height, force_terminal=True, color_system=None, file=io.StringIO())
    return table.SweepTable(sweep, slots=1, console=console)


def shown_by(board: table.SweepTable) -> list[str]:
    with board.console.capture() as capture:
        board.console.print(board.view())
    return [line.rstrip() for line in capture.get().splitlines()]


FIGURES = {"iteration": "2/100", "left": "0:03:16", "reward": "-1234.50", "measured": "1,790", "predicted": ">= 1,024"}
"""98 iterations of 2 s are left."""


@pytest.mark.parametrize(
    ("width", "name", "lost"),
    [
        (160, "num_envs=512 num_mini_batches=4 seed=1", set()),
        (80, "seed=1", set()),
        (80, "num_envs=512 num_mini_batches=16 learning_rate=0.0003 seed=1", set()),
        (70, "num_envs=512 num_mini_batches=16 learning_rate=0.0003 seed=1", {"predicted"}),
        (60, "num_envs=512 num_mini_batches=16 learning_rate=0.0003 seed=1", {"predicted", "measured"}),
        (50, "network.actor.hidden_dims=[512,256,128] seed=1", {"predicted", "measured", "reward"}),
    ],
)
def test_where_the_terminal_is_narrow_memory_and_reward_give_way(
    tmp_path: Path, width: int, name: str, lost: set[str]
) -> None:
    lines = shown_by(board_of(tmp_path, width, name=name))
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert "running" in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert {figure for figure, value in FIGURES.items() if value not in text} == lost
    assert {figure for figure in FIGURES if figure not in text} == lost, "nor their heads"
    names = "".join(line.split("  ")[0].rstrip() for line in lines[:-1])
    assert all(word in names for word in name.split()), "the name goes on in the next line"


@pytest.mark.parametrize("height", [10, 24])
def test_what_is_shown_is_no_higher_than_the_terminal(tmp_path: Path, height: int) -> None:
    lines = shown_by(board_of(tmp_path, 60, height, "network.actor.hidden_dims=[512,256,128] num_mini_batches=4", 40))
    assert len(lines) < height
    assert lines[-2].startswith("0 of 40 jobs over | left ")
    assert lines[-1] == "rates so far"


def test_in_a_file_the_table_at_the_end_has_every_column(tmp_path: Path) -> None:
    there = board_of(
        tmp_path, 80, name="num_envs=512 num_mini_batches=16 learning_rate=0.0003 entropy_coef=0.003 seed=1"
    )
    there.console = Console(file=io.StringIO(), width=80)
    there.print_table()
    text = there.console.file.getvalue()  # type: ignore[attr-defined]
    assert all(value in text for value in FIGURES.values())


def test_a_line_begins_with_the_job_its_state_its_iteration_and_the_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = board_of(tmp_path, 80)
    (job,) = there.sweep.jobs
    assert there.line(job) == (
        "job 0 running | iteration 2/100 | left 0:03:16 | num_envs=512 seed=1 | reward -1234.50 | measured MiB 1,790 | "
        "predicted MiB >= 1,024 | on cpu"
    )
    failed = dataclasses.replace(job, status="failed", message="it broke", predicted_bytes=None)
    assert there.line(failed) == (
        "job 0 failed | iteration 2/100 | num_envs=512 seed=1 | it broke | reward -1234.50 | measured MiB 1,790"
    )
