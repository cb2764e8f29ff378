"""The simulation has the cache's hits, and `bound` is above every policy and above `simulate_farthest`."""

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


# One access evicts several entries. Later evictions of "s3fifo" depend on the order of these entries.
SEVERAL_VICTIMS = [image(number, SIZES[number], 1.0 + number) for number in (0, 1, 3, 3, 0, 1, 2, 4, 0)]


@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None)
@example(trace=SEVERAL_VICTIMS, device_pages=5, host_pages=0)
@given(trace=traces, device_pages=st.integers(1, 8), host_pages=st.integers(0, 4))
def test_simulate_random_trace_has_the_hits_of_the_cache(
    policy: str, trace: list[Access], device_pages: int, host_pages: int
) -> None:
    cache = make_cache(device_pages, host_pages, width=WIDTH, page_rows=PAGE_ROWS, policy=policy)
    for key, num_rows, encode_ms in trace:
        lease = cache.get(key, num_rows=num_rows)
        if lease is None:
            cache.put(key, torch.zeros(num_rows, WIDTH), encode_ms=encode_ms)
        else:
            lease.release()
            cache.check_integrity()  # settles the released lease
    outcome = simulate(trace, policy, device_pages, host_pages, page_rows=PAGE_ROWS)
    assert (outcome.accesses, outcome.hits) == (len(trace), cache.stats().hits)
    assert (outcome.written_pages > 0) == (cache.stats().demotions > 0)
    cache.close()


@settings(deadline=None)
@given(trace=traces, pages=st.integers(1, 12))
def test_bound_is_not_exceeded_by_a_policy_or_by_farthest(trace: list[Access], pages: int) -> None:
    limit = bound(trace, pages, page_rows=PAGE_ROWS)
    outcomes = [simulate(trace, policy, pages, page_rows=PAGE_ROWS) for policy in POLICIES]
    for outcome in [*outcomes, simulate_farthest(trace, pages, page_rows=PAGE_ROWS)]:
        assert outcome.hits <= limit.hits + 1e-9
        assert outcome.saved_ms <= limit.saved_ms + 1e-9
        assert outcome.encode_ms == limit.encode_ms


@settings(deadline=None)
@given(numbers=st.lists(st.integers(0, 4), max_size=14), pages=st.integers(1, 3))
def test_simulate_farthest_items_of_one_size_has_the_most_possible_hits(
    numbers: list[int], pages: int
) -> None:
    @cache
    def most_hits(now: int, cached: frozenset[int]) -> int:
        if now == len(numbers):
            return 0
        if numbers[now] in cached:
            return 1 + most_hits(now + 1, cached)
        inserted = cached | {numbers[now]}
        is_full = len(cached) == pages
        choices = [cached, *(inserted - {victim} for victim in cached)] if is_full else [cached, inserted]
        return max(most_hits(now + 1, choice) for choice in choices)

    trace = [image(number, 1) for number in numbers]
    assert simulate_farthest(trace, pages).hits == most_hits(0, frozenset())


@pytest.mark.parametrize("policy", POLICIES)
def test_simulate_as_many_pages_as_the_footprint_every_repeat_hits(policy: str) -> None:
    trace = make_trace("mixed", 500)
    pages = footprint(trace)
    repeats = len(trace) - len({access.key for access in trace})
    for outcome in (simulate(trace, policy, pages), simulate_farthest(trace, pages), bound(trace, pages)):
        assert outcome.hits == repeats
        assert outcome.hit_share == repeats / len(trace)


def test_simulate_item_larger_than_the_tier_is_not_inserted() -> None:
    trace = [image("small", 1), image("large", 1000), image("small", 1), image("large", 1000)]
    assert simulate(trace, "lru", 3).hits == simulate_farthest(trace, 3).hits == bound(trace, 3).hits == 1


def test_simulate_empty_trace_has_shares_of_zero() -> None:
    for outcome in (simulate([], "lru", 1), simulate_farthest([], 1), bound([], 1)):
        assert (outcome.hit_share, outcome.saved_share, outcome.written_share) == (0, 0, 0)


def test_simulate_lru_larger_tier_saves_no_less() -> None:
    trace = make_trace("agents", 2000)  # images of three sizes
    shares = [simulate(trace, "lru", 1 << power).saved_share for power in range(6, 15)]
    assert all(less <= more for less, more in pairwise(shares))
