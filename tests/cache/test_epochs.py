"""Epochs, `clear` and `close`."""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cache_cases import KEYS, PAGE_BYTES, WIDTH, make_rows, present, read
from caches import make_cache

from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pages.lease import Lease
from vitcache.testing import inspect


def test_clear_frees_all_pages_except_leased_ones() -> None:
    cache = make_cache(2, 2)
    for number in range(3):
        cache.put(KEYS[number], make_rows(1, float(number)))
    lease = cache.get(KEYS[0])
    cache.advance_epoch()
    cache.put(KEYS[3], make_rows(1))
    cache.clear()
    stats = cache.stats()
    assert (len(cache), stats.device_bytes, stats.host_bytes, stats.leased_pages) == (0, 0, PAGE_BYTES, 1)
    assert torch.equal(lease.to_tensor(), make_rows(1, 0.0))
    lease.release()
    assert cache.stats().host_bytes == 0
    cache.check_integrity()


def test_advance_epoch_makes_entries_of_both_tiers_unreachable() -> None:
    cache = make_cache(2, 2)
    for number in range(4):
        cache.put(KEYS[number], make_rows(1))
    cache.advance_epoch()
    assert present(cache) == []
    assert len(cache) == 0
    assert all(cache.get(key) is None for key in KEYS)
    assert cache.stats().device_bytes == 2 * PAGE_BYTES
    assert cache.stats().evictions == 4


def test_pages_of_earlier_epochs_are_freed_before_an_entry_is_evicted() -> None:
    cache = make_cache(4, 4)
    for number in range(3):
        cache.put(KEYS[number], make_rows(1))
    cache.advance_epoch()
    for number in range(3, 7):
        cache.put(KEYS[number], make_rows(1))
    assert present(cache) == [3, 4, 5, 6]
    assert (cache.stats().evictions, cache.stats().demotions) == (3, 0)
    cache.check_integrity()


def test_advance_epoch_keeps_leases_readable_and_their_pages_pinned() -> None:
    cache = make_cache(2)
    cache.put(KEYS[0], make_rows(1, 1.0))
    lease = cache.get(KEYS[0])
    cache.advance_epoch()
    assert cache.put(KEYS[1], make_rows(2)) is False
    assert cache.put(KEYS[0], make_rows(1, 2.0)) is True
    assert torch.equal(lease.to_tensor(), make_rows(1, 1.0))
    assert torch.equal(read(cache, KEYS[0]), make_rows(1, 2.0))
    lease.release()
    assert cache.put(KEYS[1], make_rows(2)) is True
    cache.check_integrity()


def test_advance_epoch_takes_constant_time() -> None:
    cache = make_cache(1000)
    for number in range(1000):
        cache.put(number.to_bytes(32, "big"), torch.empty(0, WIDTH))
    calls = []
    sys.setprofile(lambda frame, event, argument: calls.append(event))
    cache.advance_epoch()
    sys.setprofile(None)
    assert len(calls) < 100
    # The index was replaced, not emptied: every page still has its old entry.
    assert (inspect(cache).num_stale_indexes, inspect(cache).device_pool.num_free) == (1, 0)
    assert (len(cache), inspect(cache).eviction_order("device")) == (0, [])


def test_advance_epoch_of_an_empty_cache_keeps_no_index() -> None:
    cache = make_cache(1)
    for _ in range(100):
        cache.advance_epoch()
    assert inspect(cache).num_stale_indexes == 0


def test_epoch_counts_the_calls_of_advance_epoch_and_clear() -> None:
    cache = make_cache(1)
    assert cache.epoch == 0
    cache.advance_epoch()
    assert cache.epoch == 1
    cache.clear()
    assert cache.epoch == 2


@pytest.mark.parametrize("end", [EmbeddingCache.clear, EmbeddingCache.advance_epoch])
def test_put_rejects_rows_encoded_before_the_epoch_changed(
    end: Callable[[EmbeddingCache], None], caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_cache(2)
    cache.put(KEYS[0], make_rows(1))
    encoding, ended, admitted = threading.Event(), threading.Event(), []

    def encode_and_put() -> None:
        epoch = cache.epoch
        encoding.set()
        assert ended.wait(timeout=60)
        admitted.append(cache.put(KEYS[1], make_rows(1), epoch=epoch))

    thread = threading.Thread(target=encode_and_put)
    thread.start()
    assert encoding.wait(timeout=60)
    end(cache)
    cache.put(KEYS[2], make_rows(1, 2.0), epoch=cache.epoch)
    before = cache.stats()
    ended.set()
    thread.join()
    assert admitted == [False]
    assert present(cache) == [2]
    assert cache.stats() == dataclasses.replace(before, rejections=1)
    assert "the rows are of epoch 0, the cache is in epoch 1" in caplog.text
    cache.check_integrity()


@pytest.mark.parametrize(
    ("epoch", "error", "match"),
    [
        ("0", TypeError, "epoch must be an int, got '0' of type str"),
        (-1, ValueError, "epoch is -1, it must be at least 0"),
    ],
)
def test_put_invalid_epoch_raises(epoch: Any, error: type[Exception], match: str) -> None:
    cache = make_cache(1)
    with pytest.raises(error, match=match):
        cache.put(KEYS[0], make_rows(1), epoch=epoch)
    assert (len(cache), cache.stats().rejections) == (0, 0)


CALLS: dict[str, Callable[[EmbeddingCache, Lease], object]] = {
    "put": lambda cache, _: cache.put(KEYS[0], make_rows(1)),
    "reserve": lambda cache, _: cache.reserve(KEYS[0], 1),
    "expect": lambda cache, _: cache.expect([1]),
    "promote": lambda cache, lease: cache.promote(lease),
    "get": lambda cache, _: cache.get(KEYS[0]),
    "get_many": lambda cache, _: cache.get_many(KEYS[:2]),
    "in": lambda cache, _: KEYS[0] in cache,
    "len": lambda cache, _: len(cache),
    "stats": lambda cache, _: cache.stats(),
    "clear": lambda cache, _: cache.clear(),
    "advance_epoch": lambda cache, _: cache.advance_epoch(),
    "epoch": lambda cache, _: cache.epoch,
    "claim": lambda cache, _: cache.claim(KEYS[0]),
    "has_room": lambda cache, _: cache.has_room(1),
    "pages_for": lambda cache, _: cache.pages_for(1),
    "discard": lambda cache, _: cache.discard(KEYS[0]),
    "begin_fetch": lambda cache, _: cache.begin_fetch(KEYS[:1], 1),
    "fetch": lambda cache, _: cache.fetch(KEYS[:1], 1),
    "flush": lambda cache, _: cache.flush(),
    "evict": lambda cache, _: cache.evict(KEYS[0]),
    "offer": lambda cache, _: cache.offer(KEYS[0]),
    "forget": lambda cache, _: cache.forget(KEYS[0]),
    "forget_tenant": lambda cache, _: cache.forget_tenant("one"),
    "copy_to_host": lambda cache, _: cache.copy_to_host(KEYS[0]),
    "demote": lambda cache, _: cache.demote(KEYS[0]),
    "compact": lambda cache, _: cache.compact(),
    "take_evicted": lambda cache, _: cache.take_evicted(),
    "check_integrity": lambda cache, _: cache.check_integrity(),
}


@pytest.mark.parametrize("name", CALLS)
def test_closed_cache_raises_on_every_call_except_close(name: str) -> None:
    cache = make_cache(1)
    cache.put(KEYS[0], make_rows(1))
    lease = cache.get(KEYS[0])
    cache.close()
    cache.close()
    with pytest.raises(RuntimeError, match="the cache was closed"):
        CALLS[name](cache, lease)


def test_closed_cache_calls_include_every_public_method() -> None:
    public = {name for name in vars(EmbeddingCache) if not name.startswith("_")}
    assert public - {"close"} == set(CALLS) - {"in", "len"}
