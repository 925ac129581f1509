"""Nothing gets in: every input makes a checked experiment or ends with exit code 2, one line, and no trace on disk."""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from ppo_lab import config, envs
from ppo_lab.cli import estimate as estimating
from ppo_lab.cli.choose_run import prepare
from ppo_lab.cli.compose import compose
from ppo_lab.cli.exits import exit_codes
from ppo_lab.config import ExperimentConfig
from ppo_lab.errors import ConfigError
from ppo_lab.runs.config import from_json, read_experiment, to_experiment
from tests.paths import REPOSITORY

SHORT = settings(
    max_examples=70,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
"""The same examples everywhere, no file written, and an answer at once when one fails."""
LONG = settings(SHORT, max_examples=700)


def paths(content: dict[Any, Any]) -> Iterator[tuple[Any, ...]]:
    """The way to everything in nested dicts, groups included."""
    for name, value in content.items():
        yield (name,)
        if isinstance(value, dict):
            yield from ((name, *path) for path in paths(value))


@contextlib.contextmanager
def empty_folder() -> Iterator[Path]:
    """A new working directory, in its parent alone."""
    with tempfile.TemporaryDirectory() as parent:
        here = Path(parent) / "here"
        here.mkdir()
        with contextlib.chdir(here):
            yield here


def files_under(folder: Path) -> set[Path]:
    return set(folder.parent.rglob("*"))


def outcome(command: Callable[[list[str]], Any], arguments: list[str]) -> tuple[int, str]:
    """The exit code and what is said on stderr. Any exception but those with a code of their own comes through."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            with exit_codes():
                command(arguments)
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
    return 0, said.getvalue()


def assert_one_message(said: str) -> None:
    assert said.startswith("error: ")
    assert said.endswith("\n")
    assert said[:-1].isprintable(), "one line, and nothing that steers a terminal"
    assert len(said) < 2500


GO2, HOVER = (dataclasses.asdict(to_experiment(compose([f"env={name}"]))) for name in ("go2", "hover"))

KEYS = sorted({".".join(path) for path in (*paths(GO2), *paths(HOVER))})
HYDRA_KEYS = (
    "hydra hydra.run hydra.run.dir hydra.sweep.dir hydra.searchpath hydra.mode hydra.job.chdir hydra.job.env_set.A "
    "hydra.output_subdir hydra.launcher hydra.callbacks.x hydra.job_logging.handlers.file.filename "
    "hydra.job_logging.root.level hydra.runtime.output_dir hydra.verbose hydra/launcher hydra/job_logging hydra/help"
).split()
STARTS = ["resume", "reproduce"]
GROUPS = ["env", "algorithm", "network", "experiment", "hardware"]

ODD_VALUES = [
    *(
        "",
        " ",
        "0",
        "-1",
        "1",
        "1.5",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "1e39",
        "-0.0",
        "9" * 30,
        "1" + "0" * 400,
        "9" * 5000,
    ),
    *(
        "true",
        "null",
        "???",
        "None",
        "~",
        "yes",
        "a",
        "é",
        "名",
        "\\",
        "'",
        '"',
        "$",
        "${",
        "}",
        "{",
        "[",
        "]",
        "=",
        ",",
        "@",
    ),
    *(
        "a\nb",
        '"a\nb"',
        "\0",
        '"\0"',
        '"\x1b[31m"',
        '"\u2028"',
        '"\udcff"',
        "\udcff",
        "a" * 20_000,
        "[" * 200 + "]" * 200,
    ),
    *("[1,2]", "[1,[2]]", "[]", "{}", "{a: 1}", "{1: 2}", "{a: {b: [1]}}", "{_target_: os.system}", "1,2", "[null]"),
    *(
        "${oc.env:HOME}",
        "${oc.env:NO_SUCH}",
        "${seed}",
        "${num_envs}",
        "${network}",
        "${nope}",
        "${nope:1}",
        "${now:%f}",
    ),
    *(
        "${hydra:runtime.cwd}",
        "${hydra.run.dir}",
        "${oc.decode:'[1'}",
        "${oc.create:{a: 1}}",
        r"\${x}",
        "${.}",
        "${..seed}",
    ),
    *("shuffle([1,2])", "range(3)", "glob(*)", "int(a)", "choice(1)", "interval(0,1)", "sort(3,2)", "str([1])"),
    *(
        "../env/go2",
        "/etc/passwd",
        "..",
        ".",
        "/dev/null",
        "/dev/null/x",
        "/proc/x",
        "a/" + "b" * 300,
        "go2",
        "hover",
        "smoke",
    ),
    *(
        "[go2,hover]",
        "[smoke,nope]",
        "MULTIRUN",
        "basic",
        "none",
        "'a b=c,d'",
        '"it\'s"',
        r'"q\\"',
        "a/../../b",
        "a\u202eb",
    ),
]
VALUES: SearchStrategy[str] = st.one_of(
    st.sampled_from(ODD_VALUES),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=20),
    st.text("0123456789.,:-+~$'\"\\[]{}()=@/ \n", max_size=12),
)
ARGUMENTS: SearchStrategy[str] = st.one_of(
    st.builds("{}{}{}={}".format, st.sampled_from(["", "", "", "+", "++", "~"]), st.sampled_from(KEYS),
              st.sampled_from(["", "", "", ".a", ".0", "@x", "@hydra.job", "[0]", "/a"]), VALUES),
    st.builds("{}={}".format, st.sampled_from([*GROUPS, *STARTS]), VALUES),
    st.builds("{}{}={}".format, st.sampled_from(["", "", "+", "++"]), st.sampled_from(HYDRA_KEYS), VALUES),
    st.builds("~{}".format, st.sampled_from([*KEYS, *GROUPS, *HYDRA_KEYS])),
    st.sampled_from("-m --multirun -cn --config-name=x --config-path=/ --config-dir=/ --foo - -- -cd -p a -r".split()),
    st.text(max_size=20),
)  # fmt: skip
COMMAND_LINES = st.lists(ARGUMENTS, min_size=1, max_size=3)


def begin(arguments: list[str]) -> None:
    run, _ = prepare(arguments)
    run.lock.close()


def train_or_refuse(arguments: list[str]) -> None:
    with empty_folder() as here:
        before = files_under(here)
        code, said = outcome(begin, arguments)
        new = files_under(here) - before
        if code:
            assert code == 2
            assert_one_message(said)
            assert not new
        else:
            files = {path.name for path in new if path.is_file()}
            assert files <= {".lock", "config.yaml"}, "the run's folder, taken, and what it is"
            assert all(any(path.iterdir()) for path in new if path.is_dir()), "that folder and those above it"


@SHORT
@given(COMMAND_LINES)
@example(["num_envs=1000000007", "num_steps_per_env=1", "algorithm.num_mini_batches=2"])  # a prime: no divisor to find
@example(["hydra.run.dir=a/b/" + "c" * 300])  # a and b can be made, the last cannot
@example(["network.hidden_dims=${seed}"])  # what is looked up has a kind as well
@example(["device=cuda:99999999999999999999"])
@example(["hydra.run.dir=${oc.env:NO_SUCH}"])
@example(["resume=3"])
@example(["reproduce=" + "a" * 5000])
@example(["resume=${nope}"])
@example(["env.name=${oc.env:NO_SUCH}"])
def test_random_arguments_of_train_make_a_run_or_are_refused(arguments: list[str]) -> None:
    train_or_refuse(arguments)


@pytest.mark.slow
@LONG
@given(COMMAND_LINES)
def test_many_more_random_arguments_of_train_make_a_run_or_are_refused(arguments: list[str]) -> None:
    train_or_refuse(arguments)


@pytest.mark.parametrize("value", ODD_VALUES, ids=range(len(ODD_VALUES)))
@pytest.mark.parametrize("key", ["network.hidden_dims", "hydra.run.dir"])
def test_an_odd_value_of_each_kind_of_key_makes_a_run_or_is_refused(key: str, value: str) -> None:
    train_or_refuse([f"{key}={value}"])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(ODD_VALUES)))
def test_an_odd_value_of_any_key_makes_a_run_or_is_refused(number: int) -> None:
    for key in [*KEYS, *GROUPS, *STARTS, *HYDRA_KEYS][number % 7 :: 7]:
        train_or_refuse([f"{key}={ODD_VALUES[number]}"])


QUESTION_KEYS = (
    "hardware hardware.name hardware.memory_mib hardware.compute_capability hardware.multiprocessors explain format "
    "plot fit run num_envs env.dt network.hidden_dims"
).split()


def answer_or_refuse(arguments: list[str]) -> None:
    with empty_folder() as here, contextlib.redirect_stdout(io.StringIO()):
        before = files_under(here)
        code, said = outcome(estimating.main, [*arguments, "trace=false"])
        assert code in (0, 2)
        if code:
            assert_one_message(said)
        assert files_under(here) == before


@settings(SHORT, max_examples=30)
@given(st.lists(st.builds("{}={}".format, st.sampled_from(QUESTION_KEYS), VALUES), min_size=1, max_size=2))
@example(["hardware.name='[/b]'"])  # markup of the library that prints the table
@example(["hardware.name=${this_machine:__class__}"])
def test_random_arguments_of_estimate_are_answered_or_refused(arguments: list[str]) -> None:
    answer_or_refuse([argument for argument in arguments if not argument.startswith("fit=num")])


OF_HYDRA_ALONE = (
    "hydra.output_subdir=../../x hydra.job.chdir=true hydra.mode=MULTIRUN +hydra.searchpath=[/tmp] ~hydra.job.name "
    "hydra.job_logging.handlers.file.filename=/tmp/x hydra/launcher=basic ++hydra.run.dir=x hydra.run={dir:x} "
    "hydra.job={}"
).split()


@pytest.mark.parametrize("argument", [*OF_HYDRA_ALONE, "+hydra.callbacks.x={_target_: os.system}"])
def test_a_setting_of_hydra_that_would_write_elsewhere_or_call_anything_is_refused(argument: str) -> None:
    with pytest.raises(ConfigError, match=r"Allowed of Hydra's own settings: hydra\.run\.dir, "):
        prepare([argument])


def test_a_group_cannot_be_moved_to_another_package() -> None:
    with pytest.raises(ConfigError, match=r"moves experiment to another part of the configuration"):
        prepare(["+experiment@hydra.job.env_set=smoke"])


REFUSED = [
    ["seed=" + "9" * 5000],
    ["num_envs=1" + "0" * 400],
    ["run_name=a\nb"],
    ["run_name='\x1b[31m'"],
    ["env=../env/go2"],
    ["network=${network}"],
    ["network.hidden_dims=[1,[2]]"],
    ["hydra.run.dir=/dev/null/x"],
    ["hydra.run.dir='a\nb'"],
    ["hydra.run.dir=\\${x}"],
    ["hydra.output_subdir=../.."],
    ["hydra.mode=MULTIRUN"],
    ["--config-dir=/no/such/folder"],
    ["--config-name=nothing"],
    ["--config-name"],
    ["hydra.searchpath=[file:///no/such/folder]"],
    ["hydra.verbose={a:1}"],
    ["hydra.job.env_set={a=b:1}"],
    ["--cfg", "job", "num_env=3"],
    ["--cfg", "nothing"],
    ["--resolve"],
    ["--help", "--experimental-rerun=run.pickle"],
    ["--help", "--experimental-r", "run.pickle"],
    ["--cfg", "job", "--resolve", "seed=${nope}"],
    ["num_envs=2147483648"],
]


@pytest.mark.parametrize(
    "arguments", REFUSED, ids=[" ".join(arguments)[:40].encode("unicode_escape").decode() for arguments in REFUSED]
)
def test_the_command_itself_refuses_in_one_line_and_leaves_nothing(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "train.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 2, done.stderr
    assert_one_message(done.stderr)
    assert done.stdout == ""
    assert not any(tmp_path.iterdir())


NAMES = ["a run", "it's", "a=b,c", "[a]", "{a}", "x:y", "é", "名", "$HOME", "-x", "(a)", "null"]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_printable_name_is_made(name: str) -> None:
    with empty_folder() as here:
        escaped = name.replace("'", r"\'")
        run, cfg = prepare([f"hydra.run.dir='{escaped}'"])
        run.lock.close()
        assert [path.name for path in here.iterdir()] == [name]
        assert cfg.hydra.run.dir == name


# Values that are valid by kind but not by size


@pytest.mark.parametrize(
    ("arguments", "message"),
    {
        ("env=hover", "num_envs=2147483648"): "num_envs=2147483648 is out of range. Allowed: >= 1, <= 2147483647.",
        # 4 B x 17 x 10^9 envs x 10^4 steps = 6.8e14 B > 2^47
        ("env=hover", "num_envs=1000000000", "num_steps_per_env=10000"): "the observations would take 680,000,",
        # 4 B x (17 x 10^9 + 10^9 x 10^9 + 10^9 x 4) is more than 4e18 B
        ("env=hover", "network.hidden_dims=[1000000000,1000000000]"): "the actor's weights would take",
        # 4 B x 2*10^9 envs x 10^6 units
        ("env=hover", "num_envs=2000000000", "network.critic.hidden_dims=[1000000]"): "the critic's outputs",
        ("env.episode_length_s=1e30",): "env.episode_length_s=1e+30 is too many steps of env.dt=0.02 s.",
        ("env.resampling_time_s=1e30",): "env.resampling_time_s=1e+30 is too many steps",
        ("env.robot.kp=1e39",): "env.robot.kp=1e+39 is out of range.",
        ("network.hidden_dims=[64,[32]]",): "network.hidden_dims=[64,[32]] is ",
        ("memory=${seed}",): "memory=${seed} is of the wrong kind.",
        ("device=cuda:100",): "device=cuda:100 is out of range.",
    }.items(),
)  # fmt: skip
def test_what_no_machine_can_run_is_refused_before_the_simulator(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        prepare(list(arguments))
    assert message in str(refused.value)


def test_the_nearest_divisors_of_large_numbers_are_found_at_once() -> None:
    # 2 x 1,000,000,007 (a prime): its divisors are 1, 2, 1,000,000,007 and 2,000,000,014
    arguments = ["num_envs=1000000007", "num_steps_per_env=2", "algorithm.num_mini_batches=3"]
    with pytest.raises(
        ConfigError, match=r"Try algorithm.num_mini_batches=2 or algorithm.num_mini_batches=1000000007\."
    ):
        prepare(arguments)


# Valid experiments


def numbers(kind: type, allowed: config.Range) -> SearchStrategy[Any]:
    """Numbers that `allowed` admits, the ends included."""
    low, high, above = allowed.at_least, allowed.at_most, allowed.above
    if kind is int:
        return st.integers(int(low or 0), int(high) if high is not None else 2**31 - 1)
    least = low if low is not None else (above if above is not None else -1e30)
    top = high if high is not None else 1e30  # no subnormal ones: the simulator turns them to 0 in its process
    return st.floats(least, top, exclude_min=above is not None, allow_subnormal=False)


@st.composite
def overrides(draw: st.DrawFn) -> list[str]:
    """Overrides that make a valid experiment, many of its values drawn."""
    name = draw(st.sampled_from(envs.names()))
    arguments = [f"env={name}"]
    drawn = {
        "env.dt": st.floats(1e-3, 1.0),
        "env.action_scale": numbers(float, config.Range(above=0)),
        "env.clip_actions": numbers(float, config.Range(above=0)),
        "env.substeps": numbers(int, config.Range(at_least=1, at_most=2**31 - 1)),
        "algorithm.gamma": numbers(float, config.Range(at_least=0, at_most=1)),
        "algorithm.learning_rate": numbers(float, config.Range(above=0)),
        "algorithm.num_learning_epochs": numbers(int, config.Range(at_least=1, at_most=2**31 - 1)),
        "algorithm.optimizer": st.sampled_from(["adam", "adamw", "sgd", "rmsprop"]),
        "seed": numbers(int, config.Range(at_least=0, at_most=2**32 - 1)),
        "run_name": st.from_regex(r"[A-Za-z][A-Za-z0-9._-]{0,40}", fullmatch=True),
        "quiet": st.sampled_from(["true", "false"]),
        "network.actor.hidden_dims": st.lists(st.integers(1, 4096), min_size=1, max_size=5).map(config.as_text),
        "network.activation": st.sampled_from(config.ACTIVATIONS),
        "max_iterations": numbers(int, config.Range(at_least=1, at_most=2**31 - 1)),
    }
    arguments += [f"{key}={draw(values)}" for key, values in drawn.items() if draw(st.booleans())]
    mini_batches, per_batch = draw(st.integers(1, 64)), draw(st.integers(2, 1000))
    return [*arguments, f"num_envs={mini_batches * per_batch}", f"algorithm.num_mini_batches={mini_batches}"]


@settings(SHORT, max_examples=30)
@given(overrides())
def test_a_valid_experiment_is_taken_and_comes_back_equal_from_json_and_from_its_file(arguments: list[str]) -> None:
    cfg = to_experiment(compose(arguments))
    assert from_json(config.to_json(cfg)) == cfg
    with empty_folder() as here:
        (here / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(cfg), sort_keys=False))
        assert read_experiment(here / "config.yaml") == cfg


# Config files


def read_or_refuse(content: str | bytes) -> ExperimentConfig | None:
    with empty_folder() as here:
        path = here / "config.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
        found: list[ExperimentConfig] = []
        code, said = outcome(lambda _: found.append(read_experiment(path)), [])
        assert list(here.iterdir()) == [path]
        if found:
            return found[0]
        assert code == 2
        assert_one_message(said)
        assert said.startswith(f"error: {path}: ")
        return None


SCALARS: SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=8),
    st.dates(), st.datetimes(),
    st.sampled_from([10**400, "${oc.env:HOME}", "${seed}", "???", "../../x", "base", "os", ""]),
)  # fmt: skip
NAMES_IN_FILES = st.one_of(st.sampled_from(KEYS), st.text(max_size=8), st.integers(), st.none(), st.dates())
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES_IN_FILES, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    """A saved configuration with one to three things wrong, or at least changed."""
    content: dict[str, Any] = yaml.safe_load(yaml.safe_dump(draw(st.sampled_from([GO2, HOVER]))))
    for _ in range(draw(st.integers(1, 3))):
        *above, name = draw(st.sampled_from(list(paths(content))))
        node = content
        for part in above:
            node = node[part]
        match draw(st.sampled_from(["delete", "change", "add", "swap", "rename"])):
            case "delete":
                del node[name]
            case "change":
                node[name] = draw(TREES)
            case "add":
                node[draw(st.text(max_size=8))] = draw(TREES)
            case "swap":
                node[name] = yaml.safe_load(yaml.safe_dump(content[draw(st.sampled_from(sorted(content)))]))
            case "rename":
                node[f"{name}_"] = node.pop(name)
        if not content:
            break
    return content


def as_yaml(content: Any) -> str:
    """Whatever Python holds; what is not plain gets a tag like !!python/tuple."""
    return yaml.dump(content, sort_keys=False, allow_unicode=True)


@SHORT
@given(damaged())
def test_a_damaged_config_file_is_an_experiment_or_is_refused(content: dict[str, Any]) -> None:
    read_or_refuse(as_yaml(content))


@pytest.mark.slow
@LONG
@given(damaged())
def test_many_more_damaged_config_files_are_experiments_or_are_refused(content: dict[str, Any]) -> None:
    read_or_refuse(as_yaml(content))


@SHORT
@given(st.one_of(TREES.map(as_yaml), st.text(), st.text("[]{}&*!-:?#|>%@`'\"\n abc0", max_size=60), st.binary()))
def test_any_file_at_all_is_refused(content: str | bytes) -> None:
    assert read_or_refuse(content) is None


@SHORT
@given(st.integers(0, 1500), st.binary(min_size=1, max_size=3))
def test_a_config_file_with_other_bytes_in_it_is_an_experiment_or_is_refused(at: int, other: bytes) -> None:
    saved = yaml.safe_dump(HOVER, sort_keys=False).encode()
    read_or_refuse(saved[:at] + other + saved[at + len(other) :])


HOSTILE = {
    "a call": ("env: !!python/object/apply:os.system ['touch here']", "is not plain YAML"),
    "an object": ("!!python/object:ppo_lab.config.ConfigError {}", "is not plain YAML"),
    "a path": ("env: !!python/object/apply:pathlib.Path [x]", "is not plain YAML"),
    "billion laughs": (
        "a: &a [x,x]\n" + "\n".join(f"{b}: &{b} [*{a},*{a}]" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)),
        "aliases (*name) or is nested too deeply",
    ),
    "a cycle": ("a: &a [*a]", "aliases (*name) or is nested too deeply"),
    "depth": ("[" * 30_000, "aliases (*name) or is nested too deeply"),
    "deep mappings": ("{a: " * 5000, "aliases (*name) or is nested too deeply"),
    "size": ("# " + "x" * 70_000, "the file is larger than 64 KiB"),
    "nothing": ("", "does not hold keys with values"),
    "a list": ("- 1", "does not hold keys with values"),
    "null bytes": ("\0", "is not plain YAML"),
    "not UTF-8": (b"a: \xff", "is not plain YAML"),
    "a date": ("2001-99-99", "is not plain YAML"),
    "two documents": ("a: 1\n---\nb: 2", "is not plain YAML"),
    "a list for a key": ("[1]: 2", "is not plain YAML"),
    "a number without end": ("seed: " + "9" * 5000, "is not plain YAML"),
    "another env": ("env: {name: ../../x}", f"env.name=../../x is not an env. Allowed: {', '.join(envs.names())}."),
    "a module that is no env": ("env: {name: base}", "env.name=base is not an env."),
    "the environment": (
        "env: {name: '${oc.env:PPO_LAB_SECRET}'}",
        "env.name=${oc.env:PPO_LAB_SECRET} would be looked up",
    ),
    "a name that is looked up": ("'${oc.env:PPO_LAB_SECRET}': 1", "env.name=null is not an env"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_config_file_is_refused_and_nothing_in_it_is_looked_up(
    content: str | bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPO_LAB_SECRET", "hover")
    with empty_folder() as here:
        (here / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ConfigError) as refused:
            read_experiment(Path("config.yaml"))
        assert str(refused.value).startswith("config.yaml: ")
        assert message in str(refused.value)
        assert [path.name for path in here.iterdir()] == ["config.yaml"]


def test_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "nothing", tmp_path / "a\0b", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="is missing, or no file"):
            read_experiment(path)


def test_every_text_of_a_saved_config_is_looked_up_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPO_LAB_SECRET", "1")
    for path in paths(HOVER):
        content = yaml.safe_load(yaml.safe_dump(HOVER))
        node = content
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = "${oc.env:PPO_LAB_SECRET}"
        assert read_or_refuse(as_yaml(content)) is None, path


# Other files of a run folder that estimate.py reads

ODD_JSON = ["", "3", '"x"', "{", "NaN", "[" * 20_000, "\0", '{"machine": 3}', '{"hardware": []}',
            '{"Memory/allocated_peak_mib": 0}',
            '{"Memory/allocated_peak_mib": null}', '{"Memory/x": 1e999}', "{}\n[]"]  # fmt: skip


def odd_files() -> Iterator[Any]:
    """Name and content. With an odd estimate.json the memory is predicted anew, which takes seconds."""
    for name, (number, content) in itertools.product(
        ["manifest.json", "metrics.jsonl", "estimate.json"], enumerate(ODD_JSON)
    ):
        marks = [pytest.mark.slow] if name == "estimate.json" and number > 1 else []
        yield pytest.param(name, content, marks=marks, id=f"{name}-{number}")


@pytest.mark.parametrize(("name", "content"), list(odd_files()))
def test_a_run_folder_with_an_odd_file_is_compared_or_refused(
    name: str, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    span = {"low": 1, "likely": None, "high": None}
    sizes = {f"{peak}_bytes": 1 for peak in ("allocated_peak", "rollout_peak", "update_peak")}
    contents = {
        "config.yaml": yaml.safe_dump(HOVER),
        "manifest.json": json.dumps({"machine": {"cpu": "one", "memory_gib": 1}, "packages": {}, "started": "now"}),
        "metrics.jsonl": json.dumps({"iteration": 0, "Memory/allocated_peak_mib": 1.0}) + "\n",
        "estimate.json": json.dumps(
            {**sizes, "hardware": {"compute_capability": "cpu"}, "device_bytes": span, "reserved_peak_bytes": None,
             "simulator_bytes": None}
        ),
    }  # fmt: skip
    with empty_folder() as here, contextlib.redirect_stdout(io.StringIO()):
        monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
        for file, text in contents.items():
            (here / file).write_text(text)
        assert outcome(estimating.main, ["run=.", "trace=false"]) == (0, "")
        (here / name).write_text(content)
        code, said = outcome(estimating.main, ["run=.", "trace=false"])
        assert code in (0, 2)
        if code:
            assert_one_message(said)
