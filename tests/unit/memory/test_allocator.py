"""The allocator's rules, one by one, against counters worked out by hand, in MiB unless it says otherwise."""

from __future__ import annotations

import random

import pytest

from ppo_lab.errors import ConfigError
from ppo_lab.memory.predict.allocator import (
    AllocatorSettings,
    Replay,
    cublas_workspace_bytes,
    read_settings,
    replay,
    rounded,
)
from ppo_lab.memory.predict.trace import Allocation, Event, Free
from ppo_lab.memory.rows import MIB


def take(block: int, mib: float) -> Allocation:
    return Allocation(block, int(mib * MIB), "temporary")


def play(*events: Event, conf: str = "") -> Replay:
    return replay(events, read_settings(conf))


def in_mib(counter: tuple[int, ...]) -> list[float]:
    return [size / MIB for size in counter[1:]]


def test_sizes_are_rounded_up_to_512_bytes() -> None:
    assert [rounded(size) for size in (1, 512, 513, 1_000_000)] == [512, 512, 1024, 1_000_448]


def test_nothing_is_allocated_for_no_bytes() -> None:
    assert play(Allocation(0, 0, "temporary"), Free(0)).allocated == (0, 0, 0)


def test_requests_up_to_1_mib_are_packed_into_segments_of_2_mib() -> None:
    assert in_mib(play(take(0, 1), take(1, 1), take(2, 0.5)).reserved) == [2, 2, 4]


def test_requests_below_10_mib_are_packed_into_segments_of_20_mib() -> None:
    just_large = Allocation(0, MIB + 1, "temporary")
    counters = play(just_large, take(1, 9), take(2, 9), take(3, 9))
    assert counters.allocated[1] == MIB + 512
    assert in_mib(counters.reserved) == [20, 20, 20, 40]  # 1 + 9 + 9, and 512 bytes


def test_requests_from_10_mib_have_a_segment_of_their_own_rounded_up_to_2_mib() -> None:
    assert in_mib(play(take(0, 10), take(1, 12.5)).reserved) == [10, 24]


def test_a_large_block_is_split_when_more_than_1_mib_would_be_left() -> None:
    assert in_mib(play(take(0, 11)).allocated) == [12]
    assert in_mib(play(take(0, 10.5)).allocated) == [10.5]


def test_a_small_block_is_split_when_512_bytes_are_left() -> None:
    nearly, exact, rest = Allocation(0, MIB - 512, "temporary"), take(1, 1), Allocation(2, 512, "temporary")
    assert play(nearly, exact, rest).reserved[-1] == 2 * MIB


def test_small_and_large_requests_do_not_share_segments() -> None:
    assert in_mib(play(take(0, 9), take(1, 0.5)).reserved) == [20, 22]


def test_the_smallest_free_block_that_fits_is_taken() -> None:
    events: list[Event] = [take(0, 30), take(1, 12), Free(0), Free(1), take(2, 11)]
    assert in_mib(play(*events).allocated)[-1] == 12  # not 11, split off the 30


def test_of_equal_free_blocks_the_one_at_the_lower_address_is_taken() -> None:
    two_segments: list[Event] = [take(0, 9), take(1, 9), take(2, 9), take(3, 9)]
    events: list[Event] = [*two_segments, Free(2), Free(0), take(4, 9), Free(3), take(5, 20)]
    assert in_mib(play(*events).reserved)[-1] == 40  # the second segment was left whole


def test_freed_neighbours_become_one_block() -> None:
    thirds: list[Event] = [take(0, 6), take(1, 6), take(2, 6)]
    both_sides: list[Event] = [*thirds, Free(0), Free(2), Free(1), take(3, 20)]
    apart: list[Event] = [*thirds, Free(0), Free(2), take(3, 9)]
    assert in_mib(play(*both_sides).reserved)[-1] == 20
    assert in_mib(play(*apart).reserved)[-1] == 40  # 6 and 8 MiB are free, and do not touch


def test_segments_stay_reserved() -> None:
    counters = play(take(0, 30), Free(0), take(1, 0.5), Free(1))
    assert (counters.reserved_bytes, counters.allocated[-1]) == (32 * MIB, 0)
    assert (counters.reserved_peak_bytes, counters.allocated_peak_bytes) == (32 * MIB, 30 * MIB)


def test_the_peak_of_a_phase_counts_what_is_alive_when_it_starts() -> None:
    counters = play(take(0, 30), take(1, 20), Free(1), take(2, 12))
    assert counters.allocated_peak_bytes_within((2, 3)) == 50 * MIB
    assert counters.allocated_peak_bytes_within((3, 4)) == 42 * MIB


def test_max_split_size_keeps_large_blocks_for_large_requests() -> None:
    conf = "max_split_size_mb:20"
    small_one = play(take(0, 30), Free(0), take(1, 11), conf=conf)
    near_one = play(take(0, 30), Free(0), take(1, 25), conf=conf)
    far_one = play(take(0, 60), Free(0), take(1, 25), conf=conf)
    assert in_mib(small_one.reserved)[-1] == 42
    assert (in_mib(near_one.reserved)[-1], in_mib(near_one.allocated)[-1]) == (30, 30)  # whole
    assert in_mib(far_one.reserved)[-1] == 86  # 60 >= 25 + 20


def test_an_expandable_segment_grows_by_pages() -> None:
    counters = play(take(0, 3), take(1, 30), take(2, 0.5), conf="expandable_segments:True")
    assert in_mib(counters.reserved) == [20, 40, 42]  # 17 are free at the end, 13 are lacking: a page of 20
    assert in_mib(counters.allocated) == [3, 33, 33.5]


def test_an_expandable_segment_is_split_to_512_bytes() -> None:
    assert in_mib(play(take(0, 19.5), conf="expandable_segments:True").allocated) == [19.5]


def test_the_block_that_can_grow_is_the_last_to_be_taken() -> None:
    events: list[Event] = [take(0, 8), take(1, 9), Free(0), take(2, 2)]  # 8 are free in front, 3 at the end
    counters = play(*events, take(3, 7), conf="expandable_segments:True")
    assert in_mib(counters.reserved)[-1] == 40  # the 2 came off the 8, so 7 find no room in 6 and 3


def test_expandable_and_max_split_size_together_use_the_block_at_the_end() -> None:
    counters = play(take(0, 30), Free(0), take(1, 11), conf="expandable_segments:True,max_split_size_mb:20")
    assert in_mib(counters.reserved) == [40, 40, 40]


def test_a_cublas_handle_takes_its_workspace_for_good() -> None:
    events: list[Event] = [take(0, 0.5), Free(0), take(1, 0.5)]
    counters = replay(events, workspace_bytes=cublas_workspace_bytes(9), workspace_starts=(1, 2))
    assert in_mib(counters.allocated) == [0.5, 32, 64.5]
    assert in_mib(counters.reserved) == [2, 34, 66]


def test_the_workspace_depends_on_the_architecture() -> None:
    assert [cublas_workspace_bytes(major) for major in (7, 8, 9, 12)] == [8_519_680, 8_519_680, 32 * MIB, 32 * MIB]


@pytest.mark.parametrize(
    ("config", "workspace_bytes"),
    [
        (":4096:8", 32 * MIB),
        (":16:8", 128 * 1024),
        (":4096:2:16:8", 8 * MIB + 128 * 1024),  # what it is for 8.x
        (":0:0", 0),
        ("4096", 8_519_680),  # torch warns, and takes the default
        ("", 8_519_680),
    ],
)
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_user_decides_the_workspace(
    config: str, workspace_bytes: int, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", config)
    assert cublas_workspace_bytes(8, deterministic) == workspace_bytes


def test_a_deterministic_run_has_the_large_workspace_on_every_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert [cublas_workspace_bytes(major, deterministic=True) for major in (7, 8, 9, 12)] == [32 * MIB] * 4


@pytest.mark.parametrize(
    "conf",
    [
        "garbage_collection_threshold:0.8",
        "backend:cudaMallocAsync",
        "large_segment_size_mb:64",
        "max_split_size_mb:19",
        "roundup_power2_divisions:4",
        "roundup_power2_divisions:[256:1,512:2,>:4]",
        "expandable_segments:yes",
        "expandable_segment:True",
        "nonsense",
    ],
)
def test_a_setting_that_cannot_be_simulated_is_refused_by_name(conf: str) -> None:
    with pytest.raises(ConfigError, match=f"PYTORCH_ALLOC_CONF={conf}".replace("[", r"\[")):
        read_settings(f"max_split_size_mb:64, {conf}")


def test_settings_that_change_nothing_are_passed_over() -> None:
    assert read_settings("backend:native, pinned_use_background_threads:True") == AllocatorSettings()


@pytest.mark.parametrize("conf", ["", "expandable_segments:True", "max_split_size_mb:20"])
def test_counters_stay_consistent_over_random_events(conf: str) -> None:
    draw = random.Random(1)
    events: list[Event] = []
    alive: dict[int, int] = {}
    requested = [0]
    for number in range(20_000):
        if alive and draw.random() < 0.5:
            block = draw.choice(list(alive))
            del alive[block]
            events.append(Free(block))
        else:
            alive[number] = int(2 ** draw.uniform(0, 26))
            events.append(Allocation(number, alive[number], "temporary"))
        requested.append(sum(alive.values()))
    counters = play(*events, *map(Free, alive), conf=conf)
    for size, allocated, reserved in zip(requested, counters.allocated, counters.reserved, strict=False):
        assert size <= allocated <= reserved
    assert counters.allocated[-1] == 0
    assert list(counters.reserved) == sorted(counters.reserved)
