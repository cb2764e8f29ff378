"""`Reservation.commit_lease`: the rows are inserted and leased in one step."""

from __future__ import annotations

import gc

import pytest
import torch
from caches import make_cache

from vitcache import EmbeddingCache
from vitcache.cache.coordinator import CacheCoordinator

KEY, OTHER = bytes(32), bytes([1]) * 32
ROWS = torch.arange(12.0).view(3, 4)


def test_commit_lease_inserts_the_rows_and_leases_them_without_a_hit() -> None:
    cache = make_cache(4)
    with cache.reserve(KEY, 3) as reservation:
        reservation.write(ROWS)
        lease = reservation.commit_lease()
    assert lease is not None
    assert (lease.num_rows, lease.hits, lease.tier, lease.released) == (3, 0, "device", False)
    assert torch.equal(lease.to_tensor(), ROWS)
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.insertions, stats.leased_pages) == (0, 0, 1, 2)
    with cache.get(KEY) as again:
        assert again.hits == 1
    cache.check_integrity()
    lease.release()
    lease.release()
    assert cache.stats().leased_pages == 0
    cache.check_integrity()


def test_leased_entry_is_not_evicted_and_its_lease_outlives_a_replacement() -> None:
    cache = make_cache(2)
    with cache.reserve(KEY, 3) as reservation:
        reservation.write(ROWS)
        lease = reservation.commit_lease()
    assert not cache.put(OTHER, ROWS)
    assert cache.discard(KEY)
    assert torch.equal(lease.to_tensor(), ROWS)
    del lease
    gc.collect()
    assert cache.put(OTHER, ROWS)


def test_commit_lease_of_a_promotion_leases_the_device_rows() -> None:
    cache = make_cache(2, 2)
    cache.put(KEY, ROWS)
    cache.put(OTHER, ROWS + 1)  # demotes KEY
    with cache.get(KEY) as lease, cache.promote(lease) as reservation:
        reservation.write(lease.to_tensor())
        promoted = reservation.commit_lease()
    assert promoted is not None
    assert (promoted.tier, promoted.hits) == ("device", 0)
    assert torch.equal(promoted.to_tensor(), ROWS)
    assert (cache.stats().hits, cache.stats().promotions) == (1, 1)
    promoted.release()
    cache.check_integrity()


@pytest.mark.parametrize("end", [EmbeddingCache.clear, EmbeddingCache.advance_epoch, EmbeddingCache.close])
def test_commit_lease_after_the_epoch_ended_returns_none(end, caplog: pytest.LogCaptureFixture) -> None:
    cache = make_cache(4)
    with cache.reserve(KEY, 3) as reservation:
        reservation.write(ROWS)
        end(cache)
        assert reservation.commit_lease() is None
    assert "the rows are of epoch 0, the cache is in epoch 1" in caplog.text
    if end is not EmbeddingCache.close:
        assert (len(cache), cache.stats().rejections, cache.stats().device_bytes) == (0, 1, 0)
        cache.check_integrity()


def test_ended_reservation_raises() -> None:
    cache = make_cache(4)
    for end in ("commit", "commit_lease", "cancel"):
        reservation = cache.reserve(KEY, 3)
        assert reservation is not None
        getattr(reservation, end)()
        with pytest.raises(RuntimeError, match="this reservation of 3 rows was committed or cancelled"):
            reservation.commit_lease()
    cache.check_integrity()


def test_failed_commit_lease_cancels_the_reservation(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(4)
    finish = CacheCoordinator._finish

    def fail_first(coordinator, pending, fence, *, failed, leased=False):
        if not failed:
            raise KeyboardInterrupt
        return finish(coordinator, pending, fence, failed=failed)

    with monkeypatch.context() as patch:
        patch.setattr(CacheCoordinator, "_finish", fail_first)
        reservation = cache.reserve(KEY, 3)
        assert reservation is not None
        with pytest.raises(KeyboardInterrupt):
            reservation.commit_lease()
    assert (len(cache), cache.stats().device_bytes) == (0, 0)
    cache.check_integrity()
