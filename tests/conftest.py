"""What several tests need: composed experiments, and the simulator, started once."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from ppo_lab.cli.compose import compose
from ppo_lab.config import ExperimentConfig
from ppo_lab.memory.predict import trace
from ppo_lab.runs.config import to_experiment
from tests import fake_nvml
from tests.paths import REPOSITORY

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it, for all it starts
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup this
os.environ["OMP_NUM_THREADS"] = "1"  # tests run side by side, and threads that wait for each other burn the cores
os.environ["QD_ENABLE_PYBUF"] = "0"  # or the simulator, imported here, would make those started from here talk

_config = tempfile.TemporaryDirectory()  # until this process ends
os.environ["XDG_CONFIG_HOME"] = _config.name  # the calibrations of whoever runs the tests are not theirs

if "PYTEST_XDIST_WORKER" not in os.environ:  # xdist's workers share the folder of the process that starts them
    _cache = tempfile.TemporaryDirectory()  # traces of this session alone; other programs' caches are the user's
    _own_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for _entry in _own_cache.glob("*"):
        if _entry.name != "ppo-lab":
            Path(_cache.name, _entry.name).symlink_to(_entry)
    os.environ["XDG_CACHE_HOME"] = _cache.name


def selects_gpu_tests(expression: str) -> bool:
    """Whether pytest's -m asks for the tests that need a GPU, and not merely leaves them in."""
    return re.search(r"\bgpu\b", expression) is not None and re.search(r"\bnot\s+gpu\b", expression) is None


def pytest_configure(config: pytest.Config) -> None:
    """Hides the GPUs from all tests and what they start: most train on the CPU and know its figures."""
    if not selects_gpu_tests(config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Tests that measure a GPU do not share it."""
    return 1 if selects_gpu_tests(config.option.markexpr) else None


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker runs all tests that fork runs, one all that need the simulator, one each file of the others.

    What a group shares takes up to half a minute to make. The longest groups come first.
    """
    groups = {item: group_of(item) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: (groups[item] not in SHARED, "system" not in item.path.parts))


SHARED = ("forked runs", "simulator")


def group_of(item: pytest.Item) -> str:
    if marker := item.get_closest_marker("xdist_group"):
        return marker.args[0]
    if "simulator" in getattr(item, "fixturenames", ()):
        return "simulator"
    return "forked runs" if hasattr(getattr(item, "module", None), "ForkedRun") else item.path.stem


@pytest.fixture(scope="session", autouse=True)
def _traces_in_this_process() -> Iterator[None]:
    """A trace that a test asks for takes a second here, and six in a process of its own, which loads torch first.

    Programs that tests start trace as they do for users.
    """
    one_at_a_time = threading.Lock()  # a trace changes torch

    def run_tracer(cfg: ExperimentConfig, device_type: trace.DeviceType) -> str:
        from ppo_lab.probes import learner

        with one_at_a_time:
            return trace.to_json(learner.run(cfg, device_type))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "_run_tracer", run_tracer)
        yield


@pytest.fixture
def experiment() -> Callable[..., ExperimentConfig]:
    """Composes an experiment from overrides."""
    return lambda *overrides: to_experiment(compose(list(overrides)))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Lets NVML answer as on a machine with the given cards; see `fake_nvml.install`."""
    yield partial(fake_nvml.install, monkeypatch)
    fake_nvml.forget()


@pytest.fixture(scope="session")
def simulator() -> torch.device:
    """The simulator on the CPU. One process can start it once."""
    from ppo_lab.envs.genesis.start import ensure_started

    device = torch.device("cpu")
    ensure_started(device, seed=1, performance_mode=False)
    return device


@pytest.fixture(scope="session")
def train() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python train.py` with arguments, in a process of its own, as a user does."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "train.py", *arguments],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture(scope="session")
def dashboard() -> Callable[..., AbstractContextManager[tuple[subprocess.Popen[str], str]]]:
    """Runs `python -m ppo_lab dashboard` with arguments: its process and its address, once it serves.

    `default_port` stands in for 6006, which others on this machine may use.
    """

    @contextmanager
    def run(*arguments: str, default_port: int | None = None) -> Iterator[tuple[subprocess.Popen[str], str]]:
        command = [sys.executable, "-m", "ppo_lab", "dashboard", *arguments]
        if default_port is not None:
            code = f"""
import runpy, sys
from tensorboard.plugins.core import core_plugin
core_plugin.DEFAULT_PORT = {default_port}
sys.argv = ["ppo_lab", *sys.argv[1:]]
runpy.run_module("ppo_lab", run_name="__main__")
"""
            command = [sys.executable, "-c", code, "dashboard", *arguments]
        with serving(command) as (process, said):
            yield process, re.findall(r"(http://localhost:\d+/)#timeseries", said)[0]

    return run


@contextmanager
def serving(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that serves until Ctrl-C, and what it said by the time it does."""
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            said = ""
            while "Ctrl-C" not in said:
                line = process.stdout.readline()
                assert line, process.communicate()
                said += line
            yield process, said
        finally:
            process.terminate()
