"""The rules of the package's structure. README.md draws it."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from pkgutil import iter_modules

import pytest

from ppo_lab.envs import tasks
from tests.paths import REPOSITORY

PACKAGE = REPOSITORY / "ppo_lab"
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem[0] != "_")

LAYERS = (
    {"contracts", "errors", "states"},
    {"config"},
    {"machine"},
    {"envs"},
    {"runs"},
    {"memory"},
    {"learning"},
    {"training", "probes", "importers", "deploy"},
    {"sweeps"},
    {"report"},
    {"cli"},
)
"""From the lowest to the highest: a package imports from its own layer's members' own modules and from lower layers.

`probes` are programs that others start in a process of their own.
"""


def imports(path: Path) -> Iterator[str]:
    """The modules that `path` imports, wherever in the file, but for those under `if TYPE_CHECKING`."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return visit(ast.parse(path.read_text()))


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def users_of(library: str) -> set[str]:
    """The files that import `library`, relative to the package."""
    return {
        str(path.relative_to(PACKAGE))
        for path in SOURCES
        if any(module.split(".")[0] == library for module in imports(path))
    }


def test_a_package_imports_only_from_lower_layers() -> None:
    height = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {module}"
        for path in SOURCES
        for module in imports(path)
        if module.startswith("ppo_lab.")
        and (there := module.split(".")[1]) != (here := package_of(path))
        and height[there] >= height[here]
    ]
    assert wrong == []


@pytest.mark.parametrize(("package", "allowed"), [("importers", {"cli"}), ("probes", set())])
def test_only_cli_imports_importers_and_nothing_imports_probes(package: str, allowed: set[str]) -> None:
    users = {
        package_of(path)
        for path in SOURCES
        for module in imports(path)
        if f"{module}.".startswith(f"ppo_lab.{package}.")
    }
    assert users - {package} == allowed


def test_only_the_simulated_envs_import_genesis() -> None:
    own = ("envs/genesis/", "envs/tasks/", "probes/simulator_arrays.py")
    assert [name for name in users_of("genesis") if not name.startswith(own)] == []


def test_only_learning_imports_rsl_rl() -> None:
    assert all(name.startswith("learning/") for name in users_of("rsl_rl"))


def test_only_cli_imports_hydra() -> None:
    assert all(name.startswith("cli/") for name in users_of("hydra"))


LEAVES_THE_PACKAGE = PACKAGE / "deploy" / "runner.py"
"""Copied into each export, as its run.py: it knows that folder alone."""
RUN_FILES = re.compile(
    r"(config\.yaml|metrics\.jsonl|(summary|manifest|estimate|reproduction)\.json|train\.log|git\.diff|\.hydra|\.lock"
    r"|checkpoints|best\.pt|(model|state|nan)_(\d+(\.pt)?)?)"
)
"""A name, or how it begins; a message may speak of one."""


def test_only_runs_spells_the_file_names_of_a_run_folder() -> None:
    spelled = {
        f"{path.relative_to(PACKAGE)}: {node.value}"
        for path in SOURCES
        if package_of(path) != "runs" and path != LEAVES_THE_PACKAGE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and RUN_FILES.fullmatch(node.value)
    }
    assert spelled == set()


TORCH_FREE = [
    *("config", "errors", "states", "machine.devices", "machine.commands"),
    *("envs", *(f"envs.tasks.{module.name}" for module in iter_modules(tasks.__path__))),
    *("cli.export", "cli.evaluate", "deploy.trained", "deploy.table", "deploy.interface", "deploy.exported"),
    *("runs.config", "runs.folder", "runs.hparams", "runs.record", "runs.metrics", "runs.manifest", "runs.ancestry"),
    *("memory.predict.estimate", "memory.predict.largest", "memory.measure.measured", "memory.measure.growth"),
    *("memory.show.table", "training.budget", "sweeps.plan", "report"),
    *("cli.choose_run", "cli.estimate", "cli.runs"),
]


@pytest.mark.parametrize("name", TORCH_FREE)
def test_what_only_needs_a_config_loads_neither_torch_nor_the_simulator(name: str) -> None:
    code = f"import sys, ppo_lab.{name}; print('torch' in sys.modules or 'genesis' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_program_for_robots_needs_numpy_and_onnxruntime_alone_and_runs_on_python_3_8() -> None:
    others = {name.partition(".")[0] for name in imports(LEAVES_THE_PACKAGE)} - sys.stdlib_module_names
    assert others == {"numpy", "onnxruntime"}
    ast.parse(LEAVES_THE_PACKAGE.read_text(), feature_version=(3, 8))


def test_nothing_unpickles_or_evaluates() -> None:
    """But for one file that reads the settings of old runs, through an unpickler that finds no names."""
    for path in SOURCES:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        called = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
        assert not called & {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load"}, path
        uses = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
        allowed = {"pickle.Unpickler"} if path.name == "plain_pickle.py" else set()
        assert {use for use in uses if use.startswith("pickle.")} - {"pickle.UnpicklingError"} == allowed, path
        imported = set(imports(path))
        aliased = {name for name in imported if name.startswith("pickle.")}
        assert not aliased | {"dill", "cloudpickle", "shelve", "marshal"} & imported, path
