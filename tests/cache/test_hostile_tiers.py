"""A user's own tier that returns wrong values or raises in any method: the cache misses, and stays in use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tiers.planted_tier import PlantedTier
from tiers.tier_cache import (
    LONG,
    Clock,
    fill,
    is_right,
    key_of,
    put,
    rows_of,
    stats_of,
    tier_cache,
    workers_of,
)

from vitcache.tiers import FetchOutcome

METHODS = ["open", "exists", "fetch", "store", "claim", "erase", "generation", "revoke", "metrics", "close"]
VALUES: list[Any] = [
    *(None, 0, -1, 1.5, "x", b"", [], [None], [True] * 7, object(), {}, (), [1], ["HIT"], iter([True])),
    *({"a": "b"}, {1: 2}, {"a": 1.5}, {"a": None}, [FetchOutcome.HIT] * 9, [FetchOutcome.HIT.value]),
]
ERRORS: list[BaseException] = [
    *(OSError("planted"), StopIteration(), MemoryError(), RecursionError(), KeyboardInterrupt()),
    *(SystemExit(3), GeneratorExit()),
]


class HostileTier(PlantedTier):
    """While `result` is an error or a value in a list, `method` raises or returns it."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.result: Any = None
        real = getattr(self, method)

        def call(*arguments: Any, **options: Any) -> Any:
            if isinstance(self.result, BaseException):
                raise self.result
            returned = real(*arguments, **options)
            return self.result[0] if self.result else returned

        setattr(self, method, call)


def results() -> Iterator[Any]:
    yield from ([value] for value in VALUES)
    yield from ERRORS


@pytest.mark.parametrize("method", METHODS)
def test_tier_that_raises_or_returns_wrong_values_costs_misses_only(method: str) -> None:
    for result in results():
        tier, clock = HostileTier(method), Clock()
        fill(tier, 1, 2)
        tier.result = result if method == "open" else None
        with tier_cache(tier, clock=clock) as cache:
            assert cache.flush(LONG)
            tier.result = result
            cache.fetch([key_of(1)], 2, timeout_s=LONG)
            is_right(cache, 1)
            assert cache.put(key_of(5), rows_of(5))
            assert cache.flush(LONG)
            try:
                assert type(cache.forget(key_of(1), timeout_s=LONG)) is int
            except RuntimeError:
                assert method in ("open", "fetch", "erase", "exists", "close")
            assert cache.discard(key_of(5))
            cache.advance_epoch(weights_name="weights")
            counts = stats_of(cache)
            assert all(type(name) is str and type(count) is int for name, count in counts.own.items())
            tier.result = None
            clock.advance(100)
            assert cache.fetch([key_of(7)], 2, timeout_s=LONG) == [False]
            put(cache, 6)
            assert not stats_of(cache).is_open
            cache.check_integrity()
            tier.result = result if method == "close" else None
            thread = workers_of(cache)[0]._thread
        thread.join(LONG)
        assert not thread.is_alive()
