"""`inspect` shows the private state of a cache, and no test reads that state in another way."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
import torch
from cache_cases import KEYS, make_rows
from caches import make_cache
from stream_model import StreamModel

from vitcache.testing import inspect

TESTS = Path(__file__).parents[1]
PRIVATE = re.compile(
    r"\._(coordinator|claims|ledger|device_tier|host_tier|drain_lock|streams|memory|tier|abandoned)\b"
)
PRIVATE_OF_RINGS = re.compile(r"\.(_native|_in_flight)\b(?!\.Placement)")


def test_inspect_shows_tiers_and_entries_of_both_tiers() -> None:
    cache = make_cache(2, 3)
    cache.put(KEYS[0], make_rows(2))
    cache.put(KEYS[1], make_rows(2, 1.0))
    inside = inspect(cache)
    assert (inside.device_pool.num_free, inside.host_pool.num_free) == (0, 1)
    assert (inside.device_pool.num_available, inside.host_pool.num_available) == (2, 3)
    assert inside.entry(KEYS[1]).num_pages == len(inside.entry(KEYS[0], "host").pages) == 2
    assert (inside.eviction_order("device"), inside.eviction_order("host")) == ([KEYS[1]], [KEYS[0]])
    assert (inside.num_stale_indexes, inside.violations, inside.is_draining) == (0, [], False)
    assert inspect(make_cache(2)).host_pool is None


def test_inspect_entry_includes_host_copies_and_refuses_absent_keys() -> None:
    cache = make_cache(2, 3)
    cache.put(KEYS[0], make_rows(2))
    cache.expect([4])
    assert inspect(cache).entry(KEYS[0]).tier == "device"
    assert inspect(cache).entry(KEYS[0], "host").tier == "host"
    for tier in ("device", "host"):
        with pytest.raises(KeyError):
            inspect(cache).entry(KEYS[1], tier)


def test_inspect_shows_the_pages_of_a_reservation_and_the_free_pages() -> None:
    cache = make_cache(3)
    reservation = cache.reserve(KEYS[0], 3)
    assert inspect(cache).pages_of(reservation) == [0, 1]
    assert inspect(cache).device_pool.free_pages == (2,)


def test_inspect_reads_the_cache_at_each_access() -> None:
    model = StreamModel()
    cache = model.make_cache(2)
    inside = inspect(cache)
    cache.put(KEYS[0], torch.zeros(1, 2))
    assert inside.device_pool.num_free == 1
    with cache.get(KEYS[0]) as lease:  # type: ignore[union-attr]
        lease.use()
        assert inside.lease_entry(lease) is inside.entry(KEYS[0])
        assert (inside.num_pending_releases, inside.device_pool.leased_pages) == (0, 1)
    assert inside.num_pending_releases == 1
    with cache.reserve(KEYS[1], 1):  # type: ignore[union-attr]
        assert inside.device_pool.pending_pages == 1
    with cache.claim(KEYS[1]):
        assert inside.num_claims == 1
    cache.advance_epoch()
    assert inside.num_stale_indexes == 1
    assert not inside.is_closed
    cache.close()
    assert inside.is_closed
    with pytest.raises(RuntimeError, match="the cache was closed"):
        _ = inside.ledger


def test_inspect_violations_include_a_page_that_a_test_took() -> None:
    cache = make_cache(2)
    [page], _ = inspect(cache).device_pool.allocate(1)
    assert inspect(cache).violations == [f"device pages [{page}] do not have exactly one owner"]
    inspect(cache).device_pool.free([page], [])
    assert inspect(cache).violations == []


def test_inspect_drain_lock_is_that_of_the_cache() -> None:
    cache = make_cache(2)
    with inspect(cache).drain_lock:
        assert inspect(cache).is_draining
        thread = threading.Thread(target=cache.stats)
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
    thread.join(60)
    assert not thread.is_alive()


def test_no_test_reads_the_private_state_of_a_cache_or_a_ring() -> None:
    found = []
    for path in TESTS.rglob("*.py"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            where = f"{path.relative_to(TESTS)}:{number}"
            code = re.sub(r"\b(self|vitcache)\._\w+|monkeypatch\.setattr\(\"[^\"]*\"", "", line)
            if path != Path(__file__) and PRIVATE.search(code):
                found.append(where)
            if path not in (Path(__file__), TESTS / "support" / "rings.py") and PRIVATE_OF_RINGS.search(code):
                found.append(where)
    assert found == []
