"""The pictures: what is drawn is what was traced."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Annotation

from ppo_lab.cli.compose import compose
from ppo_lab.memory.predict.allocator import cublas_workspace_bytes, replay
from ppo_lab.memory.predict.estimate import Estimate, Span
from ppo_lab.memory.predict.hardware import Hardware
from ppo_lab.memory.predict.trace import CATEGORIES, Allocation, Event, Free, Trace, summarize, trace
from ppo_lab.memory.rows import MIB
from ppo_lab.memory.show.pictures import LAYERS, course, draw_iteration, draw_map
from ppo_lab.runs.config import to_experiment

SMOKE = to_experiment(compose(["experiment=smoke", "env=hover"]))
GPU = Hardware("Card", 4096, "8.9", 10)


@pytest.fixture(scope="module")
def traced() -> Trace:
    return trace(SMOKE, "cuda")


def estimate(found: Trace, hardware: Hardware = GPU) -> Estimate:
    nothing: dict[str, Any] = dict.fromkeys(f.name for f in dataclasses.fields(Estimate))
    return Estimate(**nothing | {"device_bytes": Span(0, None, None), "hardware": hardware, "trace": found})


def spikes() -> Trace:
    """3 bytes that stay; a rollout with 10 more for a moment, then an update with 20 and 30 more."""
    events: list[Event] = [Allocation(0, 3, "storage")]
    for block, (size, category) in enumerate([(10, "temporary"), (20, "mini_batch"), (30, "temporary")], start=1):
        events += [Allocation(block, size, category), Free(block)]
    return summarize(events, rollout=(1, 3), update=(3, 7), matmul_starts=())


def test_every_category_has_a_layer() -> None:
    assert set(LAYERS) == set(CATEGORIES)
    assert len({colour for _, colour in LAYERS.values()}) == len(CATEGORIES)


def test_the_course_goes_through_every_moment_if_there_is_room() -> None:
    found = course(spikes())
    assert found.starts.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert found.alive["storage"].tolist() == [3] * 7
    assert found.alive["temporary"].tolist() == [0, 10, 0, 0, 0, 30, 0]
    assert found.alive["mini_batch"].tolist() == [0, 0, 0, 20, 0, 0, 0]


def test_a_stretch_shows_its_fullest_moment_and_none_lies_in_both_phases() -> None:
    # one stretch is cut in two where the update starts, after 3 events: 1 to 2, and 3 to 7
    found = course(spikes(), stretches=1)
    assert found.starts.tolist() == [1, 3]
    assert found.alive["temporary"].tolist() == [10, 30]
    assert found.alive["mini_batch"].tolist() == [0, 0]


@pytest.mark.parametrize("stretches", [7, 100, 100_000])
def test_the_stack_is_as_high_as_the_trace_at_its_peaks(traced: Trace, stretches: int) -> None:
    found = course(traced, stretches)
    heights = np.sum(list(found.alive.values()), axis=0)
    in_update = found.starts >= traced.update[0]
    assert heights[~in_update].max() == traced.rollout_peak_bytes
    assert heights[in_update].max() == traced.update_peak_bytes
    fullest = {category: int(sizes[heights.argmax()]) for category, sizes in found.alive.items()}
    assert {category: size for category, size in fullest.items() if size} == traced.alive_at_update_peak


def test_the_picture_of_an_iteration_is_as_high_as_its_peak_and_says_what_it_shows(
    traced: Trace, tmp_path: Path
) -> None:
    figure = draw_iteration(SMOKE, estimate(traced), tmp_path / "iteration.png")
    (axes,) = figure.axes
    drawn = max(float(area.get_datalim(axes.transData).y1) for area in axes.collections)
    assert drawn == pytest.approx(traced.update_peak_bytes / MIB)
    texts = [text.get_text() for text in axes.texts]
    assert f"rollout's peak: {traced.rollout_peak_bytes / MIB:,.1f} MiB" in texts
    assert f"update's peak: {traced.update_peak_bytes / MIB:,.1f} MiB" in texts
    reserved = replay(traced.events, None, cublas_workspace_bytes(8), traced.matmul_starts).reserved_peak_bytes
    assert any(text.startswith("reserved") and text.endswith(f" {reserved / MIB:,.1f} MiB") for text in texts)
    title = "Memory of one iteration: hover, 16 envs x 8 steps, 4 mini-batches of 32"
    assert figure.get_suptitle() == title
    assert is_a_picture(tmp_path / "iteration.png")


def test_the_legend_lies_as_the_stack_does(traced: Trace, tmp_path: Path) -> None:
    figure = draw_iteration(SMOKE, estimate(traced), tmp_path / "iteration.png")
    labels = [text.get_text().split("  ")[-1] for text in figure.legends[0].get_texts()]
    assert labels == [label for label, _ in reversed(LAYERS.values()) if label in labels]
    assert {"saved activations", "rollout storage"} <= set(labels)


def test_nothing_is_reserved_on_a_cpu(traced: Trace, tmp_path: Path) -> None:
    figure = draw_iteration(SMOKE, estimate(traced, Hardware("Host", 8192, "cpu", 0)), tmp_path / "iteration.png")
    assert not any("reserved" in text.get_text() for text in figure.axes[0].texts)


def test_the_map_names_each_card_where_its_line_leaves(tmp_path: Path) -> None:
    # n envs in m mini-batches need 20 n / m MiB. From a cell's centre to the next, n and m double. At the top edge,
    # half a cell beyond m = 2, needs are 20 n / 2^1.5: card A with 20 x 2^1.5 MiB leaves at n = 8, the centre of the
    # last column. At the right edge, half a cell beyond n = 8, they are 20 x 2^3.5 / m: card B with 20 x 2^2.5 MiB
    # leaves at m = 2, the centre of the second row. C holds everything and D nothing.
    needs = {(n, m): 20 * n // m * MIB for n in (1, 2, 4, 8) for m in (1, 2)}
    cards = {"A": 20 * 2**1.5, "B": 20 * 2**2.5, "C": 1000, "D": 1}
    figure = draw_map(needs, {name: int(size * MIB) for name, size in cards.items()}, "Needs", tmp_path / "map.png")
    named = {text.get_text(): text.xy for text in figure.axes[0].texts if isinstance(text, Annotation)}
    assert named == {"A": pytest.approx((3.5, 2), abs=1e-5), "B": pytest.approx((4, 1.5), abs=1e-5)}
    assert written(figure) == ["20", "40", "80", "160", "10", "20", "40", "80"]
    assert is_a_picture(tmp_path / "map.png")


def test_a_long_name_of_a_card_is_not_cut_and_leaves_the_map_its_room(tmp_path: Path) -> None:
    # as above, card A leaves at the top edge and card B at the right edge
    needs = {(n, m): 20 * n // m * MIB for n in (1, 2, 4, 8) for m in (1, 2)}
    name = "a card of $my$ own with a name of sixty characters xxxxxxxxx"
    sizes = {f"{name} A": 20 * 2**1.5, f"{name} B": 20 * 2**2.5}
    cards = {name: int(size * MIB) for name, size in sizes.items()}
    figure = draw_map(needs, cards, f"Needs on {name}", tmp_path / "map.png")
    shown = [text.get_text().replace("\n", " ") for text in figure.axes[0].texts if isinstance(text, Annotation)]
    assert sorted(shown) == sorted(cards)
    assert figure.get_suptitle().replace("\n", " ").startswith(f"Needs on {name} ")
    everything, cells = figure.get_tightbbox(), figure.axes[0].get_window_extent()
    assert everything.x0 >= 0
    assert everything.x1 <= figure.get_figwidth()
    assert everything.y1 <= figure.get_figheight()
    assert cells.width / figure.dpi > 4
    assert cells.height / figure.dpi > 1


def test_a_size_that_cannot_be_is_left_white(tmp_path: Path) -> None:
    needs = {(n, m): n * MIB for n in (10, 20, 30) for m in (2, 3, 4)}
    del needs[30, 4], needs[20, 3]
    figure = draw_map(needs, {"A": 15 * MIB}, "Needs", tmp_path / "map.png")
    assert written(figure) == ["10", "20", "30", "10", "30", "10", "20"]


def written(figure: Figure) -> list[str]:
    """The numbers in the cells, row by row from below."""
    return [text.get_text() for text in figure.axes[0].texts if not isinstance(text, Annotation)]


def is_a_picture(path: Path) -> bool:
    pixels = imread(path)
    return bool(pixels.shape[0] > 300 and pixels.shape[1] > 600 and pixels.std() > 0.01)
