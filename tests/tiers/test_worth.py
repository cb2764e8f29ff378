"""Entries whose transfer is not worth their encode are neither fetched nor stored, except now and then."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import pytest
import torch
from tiers.planted_tier import PlantedTier
from tiers.tier_cache import LONG, Clock, fill, key_of, put, rows_of, stats_of, tier_cache

from vitcache.cache.call_arguments import MOST_ROWS, MS_PER_ROW
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.tiers import encode_times
from vitcache.tiers.encode_times import EncodeTimes
from vitcache.tiers.transfer_time import TransferTime
from vitcache.tiers.worth import PROBE_S, RETRY_S, WorthRule

ENTRY_BYTES = 2 * 4 * 4
ENTRY_S = 2 * MS_PER_ROW / 1e3  # the estimated encode time of an entry
CPU = torch.device("cpu")


class TimedTier(PlantedTier):
    """A tier whose fetches take time of a clock. `entry_s`: of one entry."""

    def __init__(self, clock: Clock, entry_s: float, worth: float | None = 0.5, name: str = "timed") -> None:
        super().__init__()
        self.name, self.worth = name, worth
        self.entry_s = entry_s
        self._clock = clock

    def fetch(self, fetches: Any) -> Any:
        self._clock.advance(self.entry_s * len(fetches))
        return super().fetch(fetches)


def fetch(cache: EmbeddingCache, *numbers: int) -> list[bool]:
    return cache.fetch([key_of(number) for number in numbers], 2, timeout_s=LONG)


def scene(entry_s: float, worth: float | None = 0.5) -> tuple[EmbeddingCache, TimedTier, Clock]:
    """A cache whose tier has the entries 1 to 31, and was measured by a fetch of entry 1."""
    clock = Clock()
    tier = TimedTier(clock, entry_s, worth)
    fill(tier, *range(1, 32))
    cache = tier_cache(tier, clock=clock, host_pages=64)
    assert fetch(cache, 31) == [True]  # the first measurement is dropped
    assert fetch(cache, 1) == [True]  # nothing is measured yet
    return cache, tier, clock


@pytest.mark.parametrize(
    ("part", "worth", "is_fetched"),
    [(0.49, 0.5, True), (0.51, 0.5, False), (0.99, 1, True), (1.01, 1.0, False), (100.0, None, True)],
)
def test_entry_is_fetched_if_its_transfer_takes_at_most_the_part(
    part: float, worth: float | None, is_fetched: bool
) -> None:
    cache, tier, _ = scene(part * ENTRY_S, worth)
    with cache:
        asked = tier.calls["exists"]
        assert fetch(cache, 2) == [is_fetched]
        assert stats_of(cache).not_worth == (not is_fetched)
        assert tier.calls["exists"] == asked + is_fetched


def test_fetch_of_entries_that_are_not_worth_it_is_done_at_once() -> None:
    cache, tier, _ = scene(ENTRY_S)
    with cache:
        pause = tier.pause("metrics")  # the worker cannot run a job
        handle = cache.begin_fetch([key_of(2), key_of(3)], 2)
        assert handle.done
        assert handle.wait(0.0) == [False, False]
        pause.release()
        assert (stats_of(cache).not_worth, stats_of(cache).refused, stats_of(cache).misses) == (2, 0, 0)


def test_measured_encode_time_of_the_width_decides() -> None:
    cache, _, _ = scene(1.0)
    with cache:
        for number in (40, 41):
            put(cache, number, encode_ms=2500.0)
        assert cache.stats().encode_ms_per_row == {4: 1250.0}
        assert fetch(cache, 2) == [True]
        assert cache.fetch([key_of(3)], 1, row_width=2) == [False]  # of this width nothing was measured
        assert stats_of(cache).not_worth == 1


def test_entry_is_let_through_now_and_then_while_all_are_refused() -> None:
    cache, _, clock = scene(1.0)
    with cache:
        assert fetch(cache, 2, 3) == [False, False]
        clock.advance(PROBE_S)
        assert fetch(cache, 2, 3) == [True, False]
        assert fetch(cache, 3) == [False]
        assert stats_of(cache).not_worth == 4


def test_first_fetch_which_connects_to_the_tier_decides_nothing() -> None:
    clock = Clock()
    tier = TimedTier(clock, 100 * ENTRY_S)
    fill(tier, *range(1, 9))
    with tier_cache(tier, clock=clock) as cache:
        assert fetch(cache, 1) == [True]
        tier.entry_s = 0.1 * ENTRY_S
        assert all(fetch(cache, number) == [True] for number in range(2, 9))
        assert stats_of(cache).not_worth == 0


def test_tier_that_became_fast_is_used_again_after_a_few_measurements() -> None:
    cache, tier, clock = scene(20 * ENTRY_S)
    with cache:
        tier.entry_s = ENTRY_S / 10
        is_worth = []
        for number in range(2, 30, 2):
            clock.advance(PROBE_S)
            assert fetch(cache, number) == [True]
            is_worth += fetch(cache, number + 1)
        assert is_worth == sorted(is_worth)
        assert (is_worth[0], is_worth[-1]) == (False, True)


def test_tier_that_became_slow_is_refused_after_a_few_measurements() -> None:
    cache, tier, _ = scene(ENTRY_S / 100)
    with cache:
        tier.entry_s = 2 * ENTRY_S
        fetched = [fetch(cache, number) for number in range(2, 12)]
        assert fetched[0] == [True]
        assert fetched[-1] == [False]


def test_miss_of_the_entry_that_was_let_through_lets_the_next_one_through_soon() -> None:
    cache, _, clock = scene(1.0)
    with cache:
        clock.advance(PROBE_S)
        assert fetch(cache, 99) == [False]
        assert stats_of(cache).misses == 1
        clock.advance(RETRY_S)
        assert fetch(cache, 2) == [True]


def test_zero_rows_are_neither_fetched_nor_counted() -> None:
    cache, _, _ = scene(1.0)
    with cache:
        assert cache.fetch([key_of(7)], 0) == [False]
        assert stats_of(cache).not_worth == 0


def test_next_tier_is_asked_for_entries_that_are_not_worth_the_first_one() -> None:
    clock = Clock()
    near, far = TimedTier(clock, 1.0, name="near"), TimedTier(clock, 1.0, None, "far")
    fill(near, 1, 9)
    fill(far, 2, 3)
    with tier_cache(near, far, clock=clock) as cache:
        assert fetch(cache, 9) == [True]
        assert fetch(cache, 1, 2) == [True, True]
        assert fetch(cache, 3) == [True]
        assert (stats_of(cache, 0).not_worth, stats_of(cache, 0).misses) == (1, 1)
        assert (stats_of(cache, 1).not_worth, stats_of(cache, 1).hits) == (0, 2)


def test_miss_of_a_near_tier_is_not_asked_of_a_far_tier_that_is_not_worth_it() -> None:
    clock = Clock()
    near, far = TimedTier(clock, 1.0, None, "near"), TimedTier(clock, 1.0, name="far")
    fill(near, 1)
    fill(far, 2, 3, 4)
    with tier_cache(near, far, clock=clock) as cache:
        assert fetch(cache, 4) == [True]
        assert fetch(cache, 2) == [True]
        asked = far.calls["exists"]
        assert fetch(cache, 1, 3) == [True, False]
        assert (stats_of(cache, 0).hits, stats_of(cache, 0).misses) == (1, 3)
        assert stats_of(cache, 1).not_worth == 1
        assert far.calls["exists"] == asked


def test_entry_that_is_not_worth_a_fetch_is_not_stored_except_now_and_then() -> None:
    cache, tier, clock = scene(1.0)
    with cache:
        put(cache, 50)
        assert (stats_of(cache).stored, stats_of(cache).not_worth) == (0, 1)
        assert stats_of(cache).skipped_stores == 0
        clock.advance(PROBE_S)
        put(cache, 51, 52)
        assert (stats_of(cache).stored, stats_of(cache).not_worth) == (1, 2)
        assert tier.calls["store"] == 32  # 31 by another cache


def test_stores_before_a_measurement_and_while_worth_it_are_stored() -> None:
    clock = Clock()
    tier = TimedTier(clock, ENTRY_S / 4)
    with tier_cache(tier, clock=clock) as cache:
        put(cache, 1)
        assert cache.evict(key_of(1))
        assert fetch(cache, 1) == [True]
        put(cache, 2)
        assert (stats_of(cache).stored, stats_of(cache).not_worth) == (2, 0)


def test_stats_show_the_measured_bandwidth_latency_and_seconds() -> None:
    cache, _, _ = scene(0.5)
    with cache:
        stats = stats_of(cache)
        assert stats.fetch_seconds == pytest.approx(1.0)
        assert stats.bytes_per_second == pytest.approx(2 * ENTRY_BYTES)
        assert stats.latency_seconds == pytest.approx(0, abs=1e-9)


def test_call_that_returns_a_damaged_entry_is_not_a_measurement() -> None:
    cache, tier, clock = scene(1.0, 1e9)
    with cache:
        before = stats_of(cache).bytes_per_second
        tier.return_damaged()
        tier.entry_s = 20.0
        assert fetch(cache, 2, 3) == [False, True]
        stats = stats_of(cache)
        assert (stats.damaged, stats.hits, stats.bytes_per_second) == (1, 3, before)
        assert clock.now > 100 + 40


@pytest.mark.parametrize("worth", [None, 0.5, 1, 1e300, Fraction(1, 3), 10**300])
def test_cache_accepts_a_worth_that_is_none_or_a_number_above_0(worth: Any) -> None:
    tier = PlantedTier()
    tier.worth = worth
    with tier_cache(tier) as cache:
        put(cache, 1)
        assert cache.evict(key_of(1))
        assert fetch(cache, 1) == [True]
        assert fetch(cache, 2) == [False]
        assert (cache.encode_times is None) == (worth is None)


@pytest.mark.parametrize(
    ("worth", "error"),
    [
        *((0, ValueError), (-0.5, ValueError), (math.inf, ValueError), (math.nan, ValueError)),
        *((10**400, ValueError), (True, TypeError), ("0.5", TypeError), ([0.5], TypeError)),
    ],
)
def test_cache_refuses_a_worth_that_is_not_a_number_above_0(worth: Any, error: type[Exception]) -> None:
    tier = PlantedTier()
    tier.worth = worth
    with pytest.raises(error, match=r"worth of the tier 'planted'"):
        tier_cache(tier)
    assert not tier.calls


def test_cache_refuses_a_tier_without_a_worth() -> None:
    class OldTier(PlantedTier):
        def __getattribute__(self, name: str) -> Any:
            if name == "worth":
                raise AttributeError(name)
            return super().__getattribute__(name)

    with pytest.raises(TypeError, match="a tier of type OldTier has no `worth`"):
        tier_cache(OldTier())


def test_rule_accepts_the_largest_numbers() -> None:
    clock = Clock()
    rule = WorthRule(1e300, 8, EncodeTimes(MS_PER_ROW, CPU), clock)
    assert rule.may_fetch(MOST_ROWS, 1 << 62)
    for _ in range(100):
        rule.note_fetch(MOST_ROWS << 65, 1e300)
        rule.note_fetch(1, 0.0)
    assert math.isfinite(rule.time.bytes_per_second)
    assert math.isfinite(rule.time.latency_s)
    assert rule.may_store(MOST_ROWS, 1 << 62) in (True, False)


def test_transfer_time_tells_latency_and_bandwidth_from_two_sizes() -> None:
    time = TransferTime()
    time.note(7_200_000, 3.0)  # the first one is dropped
    assert (time.line, time.bytes_per_second, time.latency_s) == (None, 0.0, 0.0)
    assert time.expected_s(1) is None
    for _ in range(10):
        for size in (500_000, 7_200_000):
            time.note(size, 0.002 + size / 1e9)
    for size in (500_000, 2_000_000, 7_200_000, 28_800_000):
        assert time.expected_s(size) == pytest.approx(0.002 + size / 1e9, rel=0.15)
    assert time.bytes_per_second == pytest.approx(1e9, rel=0.1)
    assert time.latency_s == pytest.approx(0.002, rel=0.1)


def test_transfer_time_of_one_size_is_in_proportion_to_bytes() -> None:
    time = TransferTime()
    for number in range(40):  # one size, nearly, and times that vary
        time.note(7_200_000 + 1000 * (number % 7), 0.0072 * (1 + 0.2 * math.sin(number)))
    for size in (1_000_000, 7_200_000, 28_800_000):
        assert time.expected_s(size) == pytest.approx(size / 1e9, rel=0.5)


def test_transfer_time_heals_from_small_entries_by_one_large_one() -> None:
    time = TransferTime()
    for _ in range(50):
        time.note(500_000, 0.0025)
    assert time.expected_s(7_200_000) == pytest.approx(0.036, rel=0.01)
    time.note(7_200_000, 0.0092)
    assert time.expected_s(7_200_000) == pytest.approx(0.0092, rel=0.15)


def test_transfer_time_of_one_call_that_hung_is_forgotten_soon() -> None:
    time = TransferTime()
    for _ in range(10):
        time.note(7_200_000, 0.0072)
    time.note(7_200_000, 47.6)
    for _ in range(5):
        time.note(7_200_000, 0.0072)
    assert time.expected_s(7_200_000) == pytest.approx(0.0072, rel=0.3)


def test_encode_times_drop_the_first_measurement_and_weigh_by_rows() -> None:
    times = EncodeTimes(2.0, CPU)
    assert times.expected_ms(10, 4) == 20.0
    times.note(10, 4, 5000.0)  # loads kernels
    assert times.expected_ms(10, 4) == 5000.0
    times.note(10, 4, 10.0)
    assert times.by_width() == {4: 1.0}
    times.note(990, 4, 99.0)
    assert times.expected_ms(1000, 4) == pytest.approx(109, rel=0.01)
    assert times.expected_ms(10, 8) == 20.0  # of another width


def test_encode_times_bound_one_slow_encode_and_follow_a_lasting_change() -> None:
    times = EncodeTimes(2.0, CPU)
    for _ in range(30):
        times.note(10, 4, 10.0)
    times.note(10, 4, 1e6)
    assert times.by_width()[4] < 2.0
    for _ in range(60):
        times.note(10, 4, 1e3)
    assert times.by_width()[4] == pytest.approx(100, rel=0.1)


def test_encode_times_accept_zero_and_huge_numbers() -> None:
    times = EncodeTimes(2.0, CPU)
    times.note(0, 4, 10.0)
    assert times.by_width() == {}
    for ms in (0.0, 0.0, 0.0, 5.0):
        times.note(10, 4, ms)
    assert 0 < times.by_width()[4] < 0.5
    for _ in range(3):
        times.note(MOST_ROWS, 8, 1e308)
        times.note(1, 16, 1e308)
    assert all(map(math.isfinite, times.by_width().values()))


def test_encode_times_of_the_cpu_are_read_at_the_stop() -> None:
    times = EncodeTimes(2.0, CPU)
    times.stop(times.start(), 10, 4)
    assert 0 <= times.by_width()[4] < 1e3 * LONG


class FakeEvent:
    """An event of a device whose time and whose progress a test sets."""

    now = done = 0.0
    num_events = 0

    def __init__(self, *, timing: bool) -> None:
        assert timing
        type(self).num_events += 1

    def record(self, stream: Any) -> None:
        assert stream == "current"
        self.at = self.now

    def query(self) -> bool:
        return self.at <= self.done

    def ms_since(self, start: FakeEvent) -> float:
        assert self.query()
        return self.at - start.at


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[FakeEvent]:
    class Event(FakeEvent):
        pass

    monkeypatch.setattr(encode_times, "Event", Event)
    monkeypatch.setattr(encode_times, "is_capturing", lambda device: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "current")
    return Event


def test_encode_times_of_a_gpu_are_read_after_the_device_reached_them(gpu: type[FakeEvent]) -> None:
    times = EncodeTimes(2.0, torch.device("cuda", 0))
    for ms in (5.0, 30.0):
        start = times.start()
        gpu.now += ms
        times.stop(start, 10, 4)
        gpu.now += 100.0
    assert times.by_width() == {}
    gpu.done = 5.0
    assert times.by_width() == {4: 0.5}
    gpu.done = 1000.0
    assert times.expected_ms(1, 4) == 3.0


def test_encode_times_of_a_gpu_keep_a_bounded_number_of_events(gpu: type[FakeEvent]) -> None:
    times = EncodeTimes(2.0, torch.device("cuda", 0))
    for _ in range(300):
        start = times.start()
        gpu.now += 10.0
        times.stop(start, 10, 4)
    gpu.done = 1e9
    assert times.by_width()[4] == pytest.approx(1.0)
    assert len(times._open) == 0


def test_encode_that_is_captured_in_a_graph_is_not_measured(
    gpu: type[FakeEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_times, "is_capturing", lambda device: True)
    times = EncodeTimes(2.0, torch.device("cuda", 0))
    times.stop(times.start(), 10, 4)
    assert (gpu.num_events, times.by_width()) == (0, {})


def test_put_without_an_encode_time_and_a_cache_without_worth_note_nothing() -> None:
    cache, _, _ = scene(1.0)
    with cache:
        assert cache.put(key_of(60), rows_of(60))
        assert cache.stats().encode_ms_per_row == {}
    with tier_cache(PlantedTier()) as cache:
        assert cache.put(key_of(60), rows_of(60), encode_ms=5.0)
        assert (cache.encode_times, cache.stats().encode_ms_per_row) == (None, {})


def test_encode_times_of_a_gpu_are_collected_by_several_threads_at_once(gpu: type[FakeEvent]) -> None:
    times = EncodeTimes(2.0, torch.device("cuda", 0))
    gpu.done = 1e9

    def run(width: int) -> None:
        for _ in range(200):
            times.stop(times.start(), 10, width)
            times.expected_ms(10, width)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(run, range(4)))
    assert times.by_width() == dict.fromkeys(range(4), 0.0)
