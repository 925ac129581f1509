"""What an estimate says to people and to scripts."""

import dataclasses
import io
import json
import subprocess
import sys
from collections.abc import Callable

import pytest
from rich.console import Console, RenderableType

from ppo_lab.config import ExperimentConfig
from ppo_lab.memory.predict.estimate import Estimate, Row, Span
from ppo_lab.memory.predict.hardware import Hardware
from ppo_lab.memory.predict.trace import Allocation, Free, summarize
from ppo_lab.memory.rows import MIB
from ppo_lab.memory.show.table import as_json, conclusion, explanation, table

CARD = Hardware("Card", 4096, "8.9", 10)
CONTEXT = Row("CUDA context", "not measured on this card", None, "unknown")
KEYS = """
transitions mini_batch_size rollout_bytes mini_batch_bytes parameters parameter_bytes gradient_bytes optimizer_bytes
saved_activation_bytes rollout_peak_bytes update_peak_bytes allocated_peak_bytes reserved_peak_bytes simulator_bytes
device_bytes fits hardware rows alive_at_rollout_peak alive_at_update_peak
largest_freed_bytes host_bytes wall_s calibration notes
version processes scenes rank
""".split()

TRACE = summarize(
    [Allocation(0, 100, "storage"), Allocation(1, 5, "temporary"), Free(1), Allocation(2, 50, "activations")],
    rollout=(0, 2),
    update=(3, 4),
    matmul_starts=(),
)


def estimate(**changes: object) -> Estimate:
    """A run that needs at least 1 GiB of 4, and nobody knows how much more."""
    rows = (
        Row("rollout", "98,304 transitions x 345 B", 33_914_880, "exact"),
        Row("dones", "[uint8]", 8, "traced"),
        CONTEXT,
    )
    fields = dict.fromkeys((f.name for f in dataclasses.fields(Estimate)), 1) | {
        "transitions": 98_304,
        "mini_batch_size": 24_576,
        "rows": rows,
        "allocated_peak_bytes": 512 * MIB,
        "reserved_peak_bytes": 600 * MIB,
        "simulator_bytes": 424 * MIB,
        "device_bytes": Span(1024 * MIB, None, None),
        "hardware": CARD,
        "fits": None,
        "trace": TRACE,
        "rank": None,
        "largest_freed_bytes": None,
        "host_bytes": None,
        "wall_s": None,
        "calibration": None,
        "notes": (),
    }
    return Estimate(**fields | changes)  # type: ignore[arg-type]


def printed(renderable: RenderableType) -> str:
    """At 100 columns, and without the spaces at the ends of lines."""
    console = Console(width=100, file=io.StringIO())
    console.print(renderable)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 100
    return "\n".join(line.rstrip() for line in lines)


def line_of(text: str, start: str) -> list[str]:
    """The words of the line that begins with `start`, after it."""
    (line,) = (line for line in text.splitlines() if line.strip().startswith(start))
    return line.strip().removeprefix(start).split()


def test_a_component_has_exact_bytes_and_mib() -> None:
    # 33,914,880 / 2^20 = 32.34
    words = line_of(printed(table(estimate())), "rollout")
    assert words == ["98,304", "transitions", "x", "345", "B", "33,914,880", "32.3", "exact"]


def test_8_bytes_are_shown_as_less_than_a_tenth_of_a_mib() -> None:
    assert line_of(printed(table(estimate())), "dones") == ["[uint8]", "8", "<", "0.1", "traced"]


def test_unknown_sizes_are_shown_as_unknown() -> None:
    text = printed(table(estimate()))
    assert line_of(text, "CUDA context")[-3:] == ["unknown"] * 3
    assert line_of(text, "whole device") == ["1,024.0", "unknown", "unknown", "at", "least", "25.0%"]
    nothing = printed(table(estimate(simulator_bytes=None)))
    assert line_of(nothing, "simulator") == ["unknown"] * 2


def test_without_a_trace_the_lower_bound_is_shown_as_such() -> None:
    """Of the 1,024 MiB at least, 424 are the simulator's: 600 MiB of 4,096 are torch's."""
    found = estimate(trace=None, allocated_peak_bytes=None, reserved_peak_bytes=None)
    text = printed(table(found))
    for figure in ("allocated", "reserved"):
        assert line_of(text, figure) == ["600.0", "at", "least", "14.6%"]
    assert line_of(text, "simulator") == ["424.0", "10.4%"]
    assert line_of(text, "whole device") == ["1,024.0", "unknown", "unknown", "at", "least", "25.0%"]


def test_figures_stand_beside_the_card() -> None:
    text = printed(table(estimate(device_bytes=Span(1024 * MIB, 1536 * MIB, 2048 * MIB), fits=True)))
    assert "On Card, MiB" in text
    assert "of its 4,096.0 MiB" in text
    assert line_of(text, "allocated") == ["512.0", "12.5%"]
    assert line_of(text, "reserved") == ["600.0", "14.6%"]
    assert line_of(text, "whole device") == ["1,024.0", "1,536.0", "2,048.0", "up", "to", "50.0%"]


def test_a_cpu_reserves_nothing() -> None:
    host = Hardware("Host", 8192, "cpu", 0)
    assert "reserved" not in printed(table(estimate(hardware=host, reserved_peak_bytes=None)))


def test_the_legend_explains_the_words_that_are_used() -> None:
    last_lines = printed(table(estimate())).rpartition("\n\n")[2].splitlines()
    assert [line.split()[0] for line in last_lines] == ["exact", "traced", "unknown"]


@pytest.mark.parametrize(
    ("fits", "device", "sentence"),
    [
        (True, Span(MIB, MIB, 2048 * MIB), "The run needs about 1 MiB (1 to 2,048) of 4,096 MiB on Card; fits: yes."),
        (False, Span(MIB, MIB, 5000 * MIB), "The run needs about 1 MiB (1 to 5,000) of 4,096 MiB on Card; fits: no."),
        (
            False,
            Span(4096 * MIB + 1, None, None),
            "The run needs at least 4,097 MiB of 4,096 MiB on Card; fits: no.",
        ),
        (
            None,
            Span(1024 * MIB, None, None),
            "The run needs at least 1,024 MiB of 4,096 MiB on Card; fits: not known.",
        ),
    ],
)
def test_the_conclusion_says_what_is_needed_what_there_is_and_whether_it_fits(
    fits: bool | None, device: Span, sentence: str
) -> None:
    found = estimate(fits=fits, device_bytes=device)
    assert conclusion(found) == sentence
    assert sentence in " ".join(printed(table(found)).split())


CONTEXT_UNKNOWN = "the CUDA context and kernels: on that machine, estimate.py calibrate=true measures it in minutes."


def test_what_is_not_known_stands_below_with_how_to_make_it_known() -> None:
    def not_known(**changes: object) -> str:
        text = printed(table(estimate(**changes)))
        return " ".join(text.partition("Not known:")[2].partition("exact")[0].split())

    assert not_known() == CONTEXT_UNKNOWN
    assert not_known(device_bytes=Span(1, 2, 3), fits=True) == ""
    assert not_known(device_bytes=Span(5000 * MIB, None, None), fits=False) == "", "nothing would change that"
    nothing = not_known(trace=None, simulator_bytes=None)
    assert nothing == (
        "beyond the closed forms, what the learner takes: without trace=false, estimate.py traces it. "
        "the simulator, never counted for these settings: without trace=false, estimate.py counts it once. "
        f"{CONTEXT_UNKNOWN}"
    )
    host = not_known(hardware=Hardware("Host", 8192, "cpu", 0))
    assert host.startswith("Python, torch and the simulator's code: on that machine, estimate.py calibrate=true")


def test_json_has_the_stable_keys_and_no_events() -> None:
    found = as_json(estimate())
    assert sorted(found) == sorted(KEYS)
    assert json.loads(json.dumps(found)) == found
    assert found["device_bytes"] == {"low": 1024 * MIB, "likely": None, "high": None}
    assert found["hardware"] == {
        "name": "Card",
        "memory_bytes": 4_294_967_296,
        "compute_capability": "8.9",
        "multiprocessors": 10,
    }
    assert found["rows"][-1] == {
        "name": "CUDA context",
        "formula": "not measured on this card",
        "bytes": None,
        "known": "unknown",
    }
    assert found["alive_at_rollout_peak"] == {"storage": 100, "temporary": 5}
    assert found["alive_at_update_peak"] == {"storage": 100, "activations": 50}


def test_json_without_a_trace_says_null() -> None:
    found = as_json(estimate(trace=None))
    assert sorted(found) == sorted(KEYS)
    assert [found[key] for key in ("alive_at_rollout_peak", "alive_at_update_peak")] == [None] * 2


def test_the_explanation_puts_the_numbers_in(experiment: Callable[..., ExperimentConfig]) -> None:
    text = " ".join(printed(explanation(experiment("env=go2"))).split())
    assert "= num_envs x num_steps_per_env = 4,096 x 24 = 98,304" in text
    assert "= 98,304 x (4 x (45 + 3 x 12 + 5) + 1) = 33,914,880 bytes (32.3 MiB)" in text
    assert "saved activations" in text


def test_reading_an_estimate_loads_neither_torch_nor_matplotlib() -> None:
    code = "import sys, ppo_lab.memory.show.table; print({'torch', 'matplotlib', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
