"""`put(tier=)`: rows in the host tier alone, or in both tiers."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from cache_cases import KEYS, make_full, make_rows, present, read
from caches import make_cache
from failure import Failure, fail
from stream_model import StreamModel

from vitcache.pages.pool import PagePool
from vitcache.testing import inspect


def tiers_of(cache: Any, key: bytes) -> list[str]:
    found = []
    for tier in ("device", "host"):
        try:
            inspect(cache).entry(key, tier)
        except KeyError:
            continue
        found.append(tier)
    return found


@pytest.mark.parametrize("tier", ["device", "host", "both"])
@pytest.mark.parametrize("before", [None, "device", "host", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_in_the_tiers_that_put_names(tier: str, before: str | None, dtype: torch.dtype) -> None:
    cache = make_cache(4, 4, dtype=dtype)
    if before is not None:
        cache.put(KEYS[0], make_rows(1, 9.0), tier=before)
    rows = make_rows(2)
    expected = rows.to(dtype, copy=True)
    assert cache.put(KEYS[0], rows, tier=tier)
    rows.fill_(float("nan"))
    assert tiers_of(cache, KEYS[0]) == (["device", "host"] if tier == "both" else [tier])
    with cache.get(KEYS[0]) as lease:
        assert lease.tier == ("host" if tier == "host" else "device")
        assert torch.equal(lease.to_tensor(), expected)
    stats = cache.stats()
    assert (stats.writebacks, stats.demotions) == ((tier == "both") + (before == "both"), 0)
    assert stats.entries == 1
    cache.check_integrity()


def test_host_rows_evict_no_device_entry_and_can_be_promoted() -> None:
    cache = make_full(2, 1)
    assert cache.put(KEYS[5], make_rows(1, 5.0), tier="host")
    assert present(cache) == [0, 1, 5]
    with cache.get(KEYS[5]) as lease, cache.promote(lease) as reservation:
        reservation.write(lease.to_tensor())
        assert reservation.commit()
    assert torch.equal(read(cache, KEYS[5]), make_rows(1, 5.0))
    assert tiers_of(cache, KEYS[5]) == ["device", "host"]


def test_rows_in_both_tiers_are_demoted_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(1, 1)
    cache.put(KEYS[0], make_rows(1, 3.0), tier="both")
    with monkeypatch.context() as patch:
        patch.setattr(PagePool, "copy_pages", fail)
        assert cache.put(KEYS[1], make_rows(1))
    assert torch.equal(read(cache, KEYS[0]), make_rows(1, 3.0))
    stats = cache.stats()
    assert (stats.demotions, stats.writebacks) == (1, 1)


def test_demotions_for_rows_in_both_tiers_get_the_host_pages_that_are_left() -> None:
    cache = make_full(2, 2)
    assert cache.put(KEYS[5], make_rows(2), tier="both")  # the host copy takes both host pages
    assert present(cache) == [5]
    assert cache.stats().evictions == 2
    cache = make_full(2, 3)
    assert cache.put(KEYS[5], make_rows(2), tier="both")
    assert present(cache) == [1, 5]
    cache.check_integrity()


@pytest.mark.parametrize(
    ("tier", "leased", "reason"),
    [
        ("host", 1, "the host tier has 64 bytes, 32 of them free or evictable; raise host_bytes or release"),
        ("both", 1, "the host tier has 64 bytes, 32 of them free or evictable; raise host_bytes or release"),
        ("both", 0, "the device tier has 64 bytes, 32 of them free or evictable; raise device_bytes or"),
    ],
)
def test_rows_without_room_in_one_tier_change_nothing(
    tier: str, leased: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_cache(2, 2)
    cache.put(KEYS[0], make_rows(1))
    cache.put(KEYS[1], make_rows(1), tier="host")
    with cache.get(KEYS[leased]):
        before = cache.stats()
        assert cache.put(KEYS[5], make_rows(2), tier=tier) is False
        after = cache.stats()
    assert present(cache) == [0, 1]
    assert (after.rejections, after.evictions, after.demotions) == (1, 0, 0)
    assert (after.device_bytes, after.host_bytes) == (before.device_bytes, before.host_bytes)
    assert reason in caplog.text
    cache.check_integrity()


def test_rows_that_a_tier_cannot_hold_are_rejected(caplog: pytest.LogCaptureFixture) -> None:
    cache = make_cache(4, 1)
    for tier in ("host", "both", "host"):
        assert not cache.put(KEYS[0], make_rows(2), tier=tier)
    assert not make_cache(1, 4).put(KEYS[0], make_rows(2), tier="both")
    messages = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert ["raise host_bytes;" in message for message in messages] == [True, False]
    assert "raise device_bytes;" in messages[1]
    assert cache.stats().rejections == 3


def test_rows_of_an_earlier_epoch_are_rejected_in_every_tier() -> None:
    cache = make_cache(2, 2)
    cache.advance_epoch()
    for tier in ("host", "both"):
        assert not cache.put(KEYS[0], make_rows(1), epoch=0, tier=tier)
    assert len(cache) == 0


@pytest.mark.parametrize("tier", ["host", "both"])
@pytest.mark.parametrize("method", ["write", "copy_pages"])
def test_failed_copy_inserts_nothing_and_loses_no_page(
    tier: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(2, 2)
    cache.put(KEYS[0], make_rows(1))
    with monkeypatch.context() as patch:
        patch.setattr(PagePool, method, fail)
        if (tier, method) == ("host", "copy_pages"):
            assert cache.put(KEYS[1], make_rows(1), tier=tier)  # copies no pages
            cache.discard(KEYS[1])
        else:
            with pytest.raises(Failure):
                cache.put(KEYS[1], make_rows(1), tier=tier)
    assert present(cache) == [0]
    assert inspect(cache).host_pool.num_free == 2
    cache.check_integrity()


@pytest.mark.parametrize("tier", ["host", "both"])
def test_epoch_that_ends_during_the_copy_rejects_the_rows(tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, write = make_cache(2, 2), PagePool.write

    def write_and_advance(*arguments: Any, **options: Any) -> None:
        write(*arguments, **options)
        cache.advance_epoch()

    with monkeypatch.context() as patch:
        patch.setattr(PagePool, "write", write_and_advance)
        assert not cache.put(KEYS[0], make_rows(1), tier=tier)
    assert (len(cache), cache.stats().rejections) == (0, 1)
    assert (inspect(cache).device_pool.num_free, inspect(cache).host_pool.num_free) == (2, 2)
    cache.check_integrity()


@pytest.mark.parametrize("tier", ["host", "both"])
def test_checksums_cover_rows_that_put_writes_to_the_host_tier(tier: str) -> None:
    cache = make_cache(1, 1, checksum=True)
    cache.put(KEYS[0], make_rows(1), tier=tier)
    if tier == "both":
        cache.put(KEYS[1], make_rows(1))  # demotes entry 0
    with cache.get(KEYS[0]) as lease:
        assert lease.tier == "host"
        lease.pool[lease.pages[0] * 2] += 1
    assert cache.get(KEYS[0]) is None
    assert cache.stats().corruptions == 1


class GpuRows(torch.Tensor):
    """Rows that say they are on a GPU. They are on the CPU."""

    is_cuda = True  # type: ignore[assignment]

    def record_stream(self, stream: Any) -> None:
        """Do nothing: memory of the CPU is not reused by a stream."""


@pytest.mark.parametrize("tier", ["host", "both"])
def test_copies_of_gpu_rows_to_the_host_tier_are_ordered(tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    model = StreamModel()
    cache = model.make_cache(2, 2)
    for number in range(8):
        with model.on("ab"[number % 2]):
            rows = torch.full((1, 2), float(number)).as_subclass(GpuRows)
            assert cache.put(KEYS[number % 3], rows, tier=tier)
            assert model.clocks[model.stream]["copy"] == 0 or tier == "both" or number > 1
        with model.on("cd"[number % 2]), cache.get(KEYS[number % 3]) as lease:
            lease.use()
            for page in lease.pages:
                model.access((lease.tier, page), write=False)
            assert torch.equal(lease.to_tensor(), torch.full((1, 2), float(number)))
    assert model.num_synchronizations == 1  # when the cache was made
    assert (model.races, model.inconsistent_calls) == ([], [])


@pytest.mark.parametrize(
    ("tier", "error", "match"),
    [
        ("disk", ValueError, "tier is 'disk', it must be one of 'device', 'host', 'both'"),
        (None, TypeError, "tier must be a str, got NoneType"),
        (True, TypeError, "tier must be a str, got bool"),
        (b"host", TypeError, "tier must be a str, got bytes"),
    ],
)
def test_unknown_tier_raises_and_changes_nothing(tier: Any, error: type[Exception], match: str) -> None:
    cache = make_full(2, 2)
    before = cache.stats()
    with pytest.raises(error, match=match):
        cache.put(KEYS[0], make_rows(1), tier=tier)
    assert cache.stats() == before


@pytest.mark.parametrize("tier", ["host", "both"])
def test_host_rows_without_a_host_tier_or_in_a_closed_cache_raise(tier: str) -> None:
    cache = make_full(2)
    with pytest.raises(ValueError, match=f"tier is '{tier}', but the cache has no host tier"):
        cache.put(KEYS[5], make_rows(1), tier=tier)
    assert present(cache) == [0, 1]
    cache = make_full(2, 2)
    cache.close()
    with pytest.raises(RuntimeError, match="closed"):
        cache.put(KEYS[5], make_rows(1), tier=tier)
