"""Who may import whom. The house is drawn in the README; here it is held to it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ppo_lab"

MAY_IMPORT = {
    "config": set(),
    "files": set(),
    "__main__": set(),
    "preflight": set(),
    "devices": {"preflight"},
    "streams": set(),
    "states": set(),
    "envs": {"config", "states"},
    "command_line": {"config", "envs", "preflight", "streams"},
    "learning": {"config", "files", "states"},
    "telemetry": {"config", "devices", "files", "preflight"},
    "invocation": {"files"},
    "runs": {"command_line", "config", "devices", "files", "invocation", "preflight"},
    "reproduction": {"files", "learning", "telemetry"},
    "memory": {"command_line", "config", "devices", "files", "preflight"},
    "memory/tracer": {"command_line", "config", "learning", "memory"},
    "envs/footprint": {"command_line", "config", "envs", "memory"},
    "budget": {"command_line", "config", "invocation", "memory"},
    "dashboard": {"command_line", "config", "telemetry"},
    "calibrating": {"command_line", "config", "files", "invocation", "memory"},
    "estimating": {"calibrating", "command_line", "config", "files", "memory"},
    "import_run": {"command_line", "config", "files", "learning", "preflight", "telemetry"},
    "report": {"command_line", "config", "files", "memory", "telemetry"},
    "sweeps": {
        *("command_line", "config", "devices", "files", "invocation", "memory", "preflight", "report", "runs"),
        *("stopping", "telemetry"),
    },
    "replay": {"command_line", "config", "devices", "learning", "memory", "preflight", "training"},
    "stopping": {"command_line"},
    "record": {"config", "files", "memory", "runs", "telemetry"},
    "training": {
        "budget",
        "command_line",
        "config",
        "devices",
        "envs",
        "files",
        "invocation",
        "learning",
        "memory",
        "record",
        "reproduction",
        "runs",
        "stopping",
        "telemetry",
    },
}
"""Room -> the rooms it may import while it runs, beside itself. Imports for type checkers alone are free.

The two with a slash are programs, which others start as a process and never import.
"""


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path) -> set[str]:
    """The modules that `path` imports, wherever in the file, but for those under `if TYPE_CHECKING`."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    place = str(path.relative_to(PACKAGE).with_suffix(""))
    here = place if place in MAY_IMPORT else place.partition("/")[0]
    ours = {room(module) for module in imports(path) if module.startswith("ppo_lab.")}
    assert ours <= MAY_IMPORT[here] | {here}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_envs_know_the_simulator(path: Path) -> None:
    uses_it = any(module.split(".")[0] == "genesis" for module in imports(path))
    assert not uses_it or path.is_relative_to(PACKAGE / "envs")


TORCH_FREE = [
    *("config", "devices", "files", "preflight", "states", "streams", "command_line", "invocation", "stopping", "runs"),
    *("budget", "calibrating", "dashboard", "estimating"),
    *("envs", "envs.go2", "envs.hover"),
    *("import_run.__main__", "import_run.plain_pickle", "import_run.old_settings"),
    *("memory.calibration", "memory.closed_form", "memory.estimate", "memory.fit", "memory.growth", "memory.measured"),
    "memory.render",
    "telemetry.hparams",
    "report",
    *("sweeps.plan", "sweeps.launcher"),
]


@pytest.mark.parametrize("name", TORCH_FREE)
def test_what_only_needs_a_config_does_not_load_torch(name: str) -> None:
    code = f"import sys, ppo_lab.{name}; print('torch' in sys.modules or 'genesis' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_config_is_standard_library_alone() -> None:
    modules = {module.split(".")[0] for module in imports(PACKAGE / "config.py")}
    assert modules <= set(sys.stdlib_module_names)


def test_json_that_is_kept_or_shown_is_made_in_one_place() -> None:
    """`files.to_json` has no NaN. What is left goes to a process of ours, into a hash or into a table's cell."""
    elsewhere = {
        str(path.relative_to(PACKAGE))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("json.dump", "json.dumps")
    }
    to_ourselves = {"config.py", "memory/trace.py", "memory/simulator.py", "envs/footprint.py", "report/jobs.py"}
    assert elsewhere == {"files.py"} | to_ourselves


def test_nothing_unpickles_or_evaluates() -> None:
    for path in SOURCES:
        names = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        assert not names & {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load"}, path


def test_one_file_alone_unpickles_and_that_through_an_unpickler_that_finds_no_names() -> None:
    """Old runs keep their settings in a pickle. Elsewhere only the error has a use: torch raises it."""
    for path in SOURCES:
        uses = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        ours = {"pickle.Unpickler"} if path == PACKAGE / "import_run" / "plain_pickle.py" else set()
        assert {use for use in uses if use.startswith("pickle.")} - {"pickle.UnpicklingError"} == ours, path
        aliased = {name for name in imports(path) if name.startswith("pickle.")}
        assert not aliased | {"dill", "cloudpickle", "shelve", "marshal"} & imports(path), path
