"""`inspect` shows the private state of a cache, and no test reads that state in another way."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
from cache_cases import KEYS, make_rows
from caches import make_cache

from vitcache.testing import forget_streams, inspect

TESTS = Path(__file__).parents[1]
PRIVATE = re.compile(
    r"\._(coordinator|claims|handle|entry|drain_lock|streams|stale|dropped|pending_demotions)\b"
)
PRIVATE_OF_RINGS = re.compile(r"\.(_native|_in_flight)\b(?!\.Placement)")


def test_inspect_shows_pools_counts_and_entries_of_both_tiers() -> None:
    cache = make_cache(2, 3)
    cache.put(KEYS[0], make_rows(2))
    cache.put(KEYS[1], make_rows(2, 1.0))
    inside = inspect(cache)
    assert (inside.device_pool.num_free, inside.host_pool.num_free) == (0, 1)
    assert (inside.counts.insertions, inside.counts.demotions) == (2, 1)
    assert inside.entry(KEYS[1]).num_pages == len(inside.entry(KEYS[0], "host").pages) == 2
    assert (inside.dropped, inside.pending_demotions, inside.stale_indexes) == (set(), {}, [])
    assert inspect(make_cache(2)).host_pool is None


def test_inspect_entry_includes_host_copies_and_refuses_absent_keys() -> None:
    cache = make_cache(2, 3)
    cache.put(KEYS[0], make_rows(2))
    cache.expect([4])
    assert inspect(cache).entry(KEYS[0]) is not inspect(cache).entry(KEYS[0], "host")
    for tier in ("device", "host"):
        with pytest.raises(KeyError):
            inspect(cache).entry(KEYS[1], tier)


def test_inspect_reads_the_cache_at_each_access() -> None:
    cache = make_cache(2)
    inside = inspect(cache)
    cache.put(KEYS[0], make_rows(1))
    assert inside.device_pool.num_free == 1
    lease = cache.get(KEYS[0])
    assert lease is not None
    lease.release()
    assert inside.num_pending_releases == 1
    with cache.claim(KEYS[1]):
        assert inside.num_claims == 1
    cache.advance_epoch()
    assert len(inside.stale_indexes) == 1
    cache.close()
    with pytest.raises(RuntimeError, match="the cache was closed"):
        _ = inside.ledger


def test_inspect_shows_pending_demotions_and_dropped_entries() -> None:
    cache = make_cache(2, 2)
    cache.put(KEYS[0], make_rows(1))
    with cache.get(KEYS[0]) as lease:  # type: ignore[union-attr]
        cache.put(KEYS[0], make_rows(1, 1.0))
        assert inspect(cache).dropped == {lease.pin[0]}
    with cache.reserve(KEYS[1], 4):  # type: ignore[union-attr]
        assert list(inspect(cache).pending_demotions) == [KEYS[0]]


def test_inspect_locks_are_those_of_the_cache() -> None:
    cache = make_cache(2)
    with inspect(cache).all_locks():
        thread = threading.Thread(target=cache.stats)
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
        assert inspect(cache).lock.locked()
    thread.join(60)
    assert not thread.is_alive()


def test_inspect_lock_can_be_replaced_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, other = make_cache(2), threading.Lock()
    lock = inspect(cache).lock
    with monkeypatch.context() as patch:
        patch.setattr(inspect(cache), "lock", other)
        assert inspect(cache).lock is other
    assert inspect(cache).lock is lock


def test_forget_streams_releases_a_lease_without_its_readers() -> None:
    cache = make_cache(2)
    cache.put(KEYS[0], make_rows(1))
    with cache.get(KEYS[0]) as lease:  # type: ignore[union-attr]
        lease.use()
        forget_streams(lease)
    assert [streams for _, streams in inspect(cache).handle.releases.take()] == [frozenset()]


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
