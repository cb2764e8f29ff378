"""`copy_to_host`, `demote` and `discard(tier="host")`: the caller chooses the entries; none is evicted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cache_cases import KEYS, PAGE_BYTES, make_full, make_rows, present, read, read_entry
from caches import make_cache
from failure import Failure, fail

from vitcache import EmbeddingCache
from vitcache.cache.policies import POLICIES
from vitcache.pages.pool import PagePool
from vitcache.testing import inspect


def tier_of(cache: EmbeddingCache, key: bytes) -> str:
    """The tier of an entry, without a hit."""
    return "device" if key in inspect(cache).eviction_order("device") else "host"


@pytest.mark.parametrize("width", [4, 2, 1])
def test_copy_to_host_makes_a_host_copy_with_the_same_rows(width: int) -> None:
    cache = make_cache(4, 4)
    rows = make_rows(2).reshape(-1, width)
    cache.put(KEYS[0], rows)
    assert cache.copy_to_host(KEYS[0])
    assert torch.equal(read_entry(cache, KEYS[0], "host"), rows)
    assert tier_of(cache, KEYS[0]) == "device"
    stats = cache.stats()
    assert (stats.writebacks, stats.demotions, stats.hits, stats.host_bytes) == (1, 0, 0, 2 * PAGE_BYTES)
    cache.check_integrity()


def test_copy_to_host_of_a_copied_entry_copies_nothing(copies: list[int]) -> None:
    cache = make_full(1, 1)
    for _ in range(2):
        assert cache.copy_to_host(KEYS[0])
    assert copies == [1]
    assert cache.stats().writebacks == 1


def test_copy_to_host_of_a_leased_entry_is_made() -> None:
    cache = make_full(1, 1)
    with cache.get(KEYS[0]):
        assert cache.copy_to_host(KEYS[0])
    assert torch.equal(read_entry(cache, KEYS[0], "host"), make_rows(1))


def make_case(case: str) -> EmbeddingCache:
    """A cache in which `copy_to_host` and `demote` of entry 0 are not possible."""
    if case == "no host tier":
        return make_full(2)
    cache = make_full(2, 1)
    if case == "no entry":
        cache.discard(KEYS[0])
    elif case == "in the host tier":
        cache.put(KEYS[0], make_rows(1), tier="host")
    elif case == "no free host page":
        cache.put(KEYS[5], make_rows(1), tier="host")
    elif case == "larger than the host tier":
        cache.clear()
        cache.put(KEYS[0], make_rows(2))
    return cache


CASES = ["no host tier", "no entry", "in the host tier", "no free host page", "larger than the host tier"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["copy_to_host", "demote"])
def test_without_an_entry_or_free_host_pages_nothing_changes(case: str, name: str, copies: list[int]) -> None:
    cache = make_case(case)
    before, keys = cache.stats(), present(cache)
    assert getattr(cache, name)(KEYS[0]) is False
    assert (cache.stats(), present(cache), copies) == (before, keys, [])
    cache.check_integrity()


def test_host_pages_of_earlier_epochs_are_free() -> None:
    cache = make_cache(2, 2)
    cache.put(KEYS[5], make_rows(2), tier="host")
    cache.advance_epoch()
    cache.put(KEYS[0], make_rows(2))
    assert cache.copy_to_host(KEYS[0])
    cache.check_integrity()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("has_copy", [False, True])
def test_demoted_entry_is_in_the_host_tier_and_its_device_pages_are_free(
    policy: str, has_copy: bool, copies: list[int]
) -> None:
    cache = make_full(3, 3, policy=policy)
    if has_copy:
        cache.copy_to_host(KEYS[1])
        copies.clear()
    assert cache.demote(KEYS[1])
    assert copies == ([] if has_copy else [1])
    assert inspect(cache).device_pool.free_pages == (1,)
    assert [tier_of(cache, KEYS[number]) for number in range(3)] == ["device", "host", "device"]
    stats = cache.stats()
    assert (stats.demotions, stats.writebacks, stats.evictions, stats.entries) == (1, 1, 0, 3)
    with cache.get(KEYS[1]) as lease:
        assert (lease.tier, lease.hits) == ("host", 1)
        assert torch.equal(lease.to_tensor(), make_rows(1, 1.0))
    assert cache.demote(KEYS[1]) is False  # it is in the host tier
    cache.check_integrity()


def test_demote_of_a_leased_entry_changes_nothing_until_the_release(copies: list[int]) -> None:
    cache = make_full(1, 1)
    lease = cache.get(KEYS[0])
    before = cache.stats()
    assert cache.demote(KEYS[0]) is False
    assert (cache.stats(), copies) == (before, [])
    lease.release()
    assert cache.demote(KEYS[0])


def test_demoted_and_promoted_entry_is_demoted_again_without_a_copy(copies: list[int]) -> None:
    cache = make_full(1, 1)
    for _ in range(3):
        assert cache.demote(KEYS[0])
        with cache.get(KEYS[0]) as lease, cache.promote(lease, contiguous=True) as reservation:
            reservation.write(lease)
            copies.pop()  # of `write`
            assert reservation.commit()
    assert copies == [1]
    assert (cache.stats().demotions, cache.stats().promotions, cache.stats().writebacks) == (3, 3, 1)
    assert torch.equal(read(cache, KEYS[0]), make_rows(1))
    cache.check_integrity()


@pytest.mark.parametrize("name", ["copy_to_host", "demote"])
def test_failed_copy_loses_no_entry(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_full(2, 2)
    before = cache.stats()
    with monkeypatch.context() as patch:
        patch.setattr(PagePool, "copy_pages", fail)
        with pytest.raises(Failure):
            getattr(cache, name)(KEYS[0])
    assert cache.stats() == before
    cache.check_integrity()
    assert getattr(cache, name)(KEYS[0])


def test_entry_that_is_replaced_during_its_copy_is_not_demoted(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_full(2, 2)
    copy_pages = PagePool.copy_pages

    def replace_during_copy(*arguments: object) -> None:
        monkeypatch.undo()
        cache.put(KEYS[0], make_rows(1, 9.0))
        copy_pages(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(PagePool, "copy_pages", replace_during_copy)
    cache.copy_to_host(KEYS[0])
    assert torch.equal(read(cache, KEYS[0]), make_rows(1, 9.0))
    cache.check_integrity()


def test_copies_have_checksums() -> None:
    cache = make_full(2, 2, checksum=True)
    assert cache.copy_to_host(KEYS[0])
    assert cache.demote(KEYS[0])
    assert cache.demote(KEYS[1])
    entry = inspect(cache).entry(KEYS[1], "host")
    entry.checksum.result()
    entry.memory.rows[entry.pages[0] * 2] += 1
    assert torch.equal(read(cache, KEYS[0]), make_rows(1))
    assert cache.get(KEYS[1]) is None
    assert cache.stats().corruptions == 1


def test_discard_from_the_host_tier_keeps_the_device_entry() -> None:
    cache = make_full(2, 2, record_evictions=4)
    cache.copy_to_host(KEYS[0])
    before = cache.stats()
    assert cache.discard(KEYS[0], tier="host")
    assert not cache.discard(KEYS[0], tier="host")
    assert not cache.discard(KEYS[1], tier="host")  # it has no host copy
    assert not cache.discard(KEYS[7], tier="host")
    assert cache.stats() == replace(before, host_bytes=0)
    assert cache.take_evicted() == []
    assert torch.equal(read(cache, KEYS[0]), make_rows(1))
    cache.check_integrity()


def test_discard_from_the_host_tier_drops_an_entry_that_is_only_there() -> None:
    cache = make_full(1, 2, record_evictions=4)
    cache.put(KEYS[5], make_rows(1), tier="host")
    assert cache.discard(KEYS[5], tier="host")
    assert cache.take_evicted() == [KEYS[5]]
    with cache.reserve(KEYS[6], 1) as reservation:  # demotes entry 0
        assert cache.discard(KEYS[0], tier="host")
        assert reservation.commit()
    assert present(cache) == [6]
    assert cache.stats().evictions == 2
    cache.check_integrity()


def test_discarded_host_copy_is_readable_while_it_is_leased() -> None:
    cache = make_full(1, 1)
    assert cache.demote(KEYS[0])
    lease = cache.get(KEYS[0])
    with cache.promote(lease) as reservation:
        reservation.write(lease)
        assert reservation.commit()
    assert cache.discard(KEYS[0], tier="host")
    assert not cache.copy_to_host(KEYS[0])  # its one page is leased
    assert torch.equal(lease.to_tensor(), make_rows(1))
    lease.release()
    assert cache.copy_to_host(KEYS[0])
    cache.check_integrity()


def test_discard_from_the_host_tier_of_a_cache_without_one_drops_nothing() -> None:
    cache = make_full(1)
    assert cache.discard(KEYS[0], tier="host") is False
    assert present(cache) == [0]


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda cache: cache.copy_to_host("a" * 32), TypeError, "key must be bytes, got str"),
        (lambda cache: cache.copy_to_host(bytes(31)), ValueError, "key has 31 bytes, it must have 32"),
        (lambda cache: cache.demote(None), TypeError, "key must be bytes, got NoneType"),
        (lambda cache: cache.demote(bytes(33)), ValueError, "key has 33 bytes, it must have 32"),
        (lambda cache: cache.discard(bytes(31), tier="host"), ValueError, "key has 31 bytes"),
        (lambda cache: cache.discard(KEYS[0], tier="device"), ValueError, "tier is 'device', .* 'host' or"),
        (
            lambda cache: cache.discard(KEYS[0], tier="both"),
            ValueError,
            "tier is 'both', it must be 'host' or",
        ),
        (lambda cache: cache.discard(KEYS[0], tier=True), TypeError, "tier must be a str or None, got bool"),
        (lambda cache: cache.discard(KEYS[0], "host"), TypeError, "positional"),
    ],
)
def test_invalid_call_raises_and_changes_nothing(call: Any, error: type[Exception], match: str) -> None:
    cache = make_full(2, 2)
    before = cache.stats()
    with pytest.raises(error, match=match):
        call(cache)
    assert cache.stats() == before
