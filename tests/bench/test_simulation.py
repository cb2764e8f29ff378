"""What a cache would have done: as the cache itself does, between knowing the future and a bound."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch
from caches import make_cache
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vitcache.bench.traffic.simulation import bound, footprint, simulate, simulate_farthest
from vitcache.bench.traffic.traces import Access, image, make_trace
from vitcache.cache.policies import POLICIES

PAGE_ROWS, WIDTH = 2, 1
SIZES = (1, 3, 4, 9, 2, 12)

traces = st.lists(
    st.integers(0, 5).map(lambda number: image(number, SIZES[number], 1.0 + number)), max_size=60
)


# Several entries make room at once: what "s3fifo" does later depends on which it sees go first.
SEVERAL_VICTIMS = [image(number, SIZES[number], 1.0 + number) for number in (0, 1, 3, 3, 0, 1, 2, 4, 0)]


@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None)
@example(trace=SEVERAL_VICTIMS, device_pages=5, host_pages=0)
@given(trace=traces, device_pages=st.integers(1, 8), host_pages=st.integers(0, 4))
def test_it_does_what_the_cache_does(
    policy: str, trace: list[Access], device_pages: int, host_pages: int
) -> None:
    cache = make_cache(device_pages, host_pages, width=WIDTH, page_rows=PAGE_ROWS, policy=policy)
    for key, num_rows, encode_ms in trace:
        lease = cache.get(key, num_rows=num_rows)
        if lease is None:
            cache.put(key, torch.zeros(num_rows, WIDTH), encode_ms=encode_ms)
        else:
            lease.release()
            cache.check_integrity()  # which takes the release back
    outcome = simulate(trace, policy, device_pages, host_pages, page_rows=PAGE_ROWS)
    assert (outcome.accesses, outcome.hits) == (len(trace), cache.stats().hits)
    assert (outcome.written_pages > 0) == (cache.stats().demotions > 0)
    cache.close()


@settings(deadline=None)
@given(trace=traces, pages=st.integers(1, 12))
def test_nothing_passes_the_bound(trace: list[Access], pages: int) -> None:
    most = bound(trace, pages, page_rows=PAGE_ROWS)
    others = [simulate(trace, policy, pages, page_rows=PAGE_ROWS) for policy in POLICIES]
    for outcome in [*others, simulate_farthest(trace, pages, page_rows=PAGE_ROWS)]:
        assert outcome.hits <= most.hits + 1e-9
        assert outcome.saved_ms <= most.saved_ms + 1e-9
        assert outcome.encode_ms == most.encode_ms


@settings(deadline=None)
@given(numbers=st.lists(st.integers(0, 4), max_size=14), pages=st.integers(1, 3))
def test_who_knows_the_future_hits_most_if_all_are_of_one_size(numbers: list[int], pages: int) -> None:
    @cache
    def best(now: int, here: frozenset[int]) -> int:
        if now == len(numbers):
            return 0
        if numbers[now] in here:
            return 1 + best(now + 1, here)
        let_in = here | {numbers[now]}
        choices = [here, *(let_in - {victim} for victim in here)] if len(here) == pages else [here, let_in]
        return max(best(now + 1, choice) for choice in choices)

    trace = [image(number, 1) for number in numbers]
    assert simulate_farthest(trace, pages).hits == best(0, frozenset())


@pytest.mark.parametrize("policy", POLICIES)
def test_with_room_for_all_every_repeat_is_a_hit(policy: str) -> None:
    trace = make_trace("mixed", 500)
    pages = footprint(trace)
    repeats = len(trace) - len({access.key for access in trace})
    for outcome in (simulate(trace, policy, pages), simulate_farthest(trace, pages), bound(trace, pages)):
        assert outcome.hits == repeats
        assert outcome.hit_share == repeats / len(trace)


def test_what_does_not_fit_is_not_let_in() -> None:
    trace = [image("small", 1), image("large", 1000), image("small", 1), image("large", 1000)]
    assert simulate(trace, "lru", 3).hits == simulate_farthest(trace, 3).hits == bound(trace, 3).hits == 1


def test_nothing_asked_for_is_nothing_saved() -> None:
    for outcome in (simulate([], "lru", 1), simulate_farthest([], 1), bound([], 1)):
        assert (outcome.hit_share, outcome.saved_share, outcome.written_share) == (0, 0, 0)


def test_lru_saves_more_with_more_memory() -> None:
    trace = make_trace("agents", 2000)  # of three sizes
    shares = [simulate(trace, "lru", 1 << power).saved_share for power in range(6, 15)]
    assert all(less <= more for less, more in pairwise(shares))
