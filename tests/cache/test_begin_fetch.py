"""Host pages for rows that are copied from a tier below the host tier, and rows that are forgotten."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from caches import make_cache

from vitcache import EmbeddingCache
from vitcache.cache.call_arguments import tenant_label
from vitcache.pages.host_reservation import HostReservation
from vitcache.pages.pool import HOST_ALIGNMENT
from vitcache.testing import inspect

KEYS = [bytes([number]) * 32 for number in range(6)]
WIDTH = 4


def cache_of(host_pages: int = 4, **options: object) -> EmbeddingCache:
    return make_cache(4, host_pages, width=WIDTH, page_rows=2, **options)


def begin(cache: EmbeddingCache, key: bytes, num_rows: int, width: int = WIDTH) -> HostReservation | None:
    return inspect(cache).coordinator.begin_fetch(key, num_rows, width, cache.epoch, tenant_label("one"))


def fill(reservation: HostReservation, rows: torch.Tensor) -> None:
    data = rows.contiguous().view(torch.uint8).view(-1).numpy()
    first = 0
    for part in reservation.host_parts():
        part[:] = data[first : first + len(part)]
        first += len(part)
    assert first == len(data)


@pytest.mark.parametrize("num_rows", [0, 1, 2, 5])
@pytest.mark.parametrize("width", [WIDTH, 2])
def test_parts_are_the_bytes_of_the_rows_in_order(num_rows: int, width: int) -> None:
    cache = cache_of()
    rows = torch.arange(num_rows * width, dtype=torch.float32).view(num_rows, width)
    reservation = begin(cache, KEYS[0], num_rows, width)
    parts = reservation.host_parts()
    assert all(part.dtype == np.uint8 and part.flags.c_contiguous and part.flags.writeable for part in parts)
    assert sum(map(len, parts)) == num_rows * width * 4
    fill(reservation, rows)
    assert KEYS[0] not in cache
    assert reservation.commit()
    with cache.get(KEYS[0], num_rows=num_rows, row_width=width) as lease:
        assert lease.tier == "host"
        assert torch.equal(lease.to_tensor(), rows)
    assert (cache.stats().insertions, cache.stats().rejections) == (1, 0)
    cache.check_integrity()


def test_adjacent_pages_are_one_part_that_begins_at_the_alignment() -> None:
    cache = cache_of()
    [part] = begin(cache, KEYS[0], 8).host_parts()
    assert part.ctypes.data % HOST_ALIGNMENT == 0
    assert len(part) == 8 * WIDTH * 4


def test_pages_that_are_apart_are_several_parts() -> None:
    cache = cache_of()
    for key in KEYS[:4]:
        assert cache.put(key, torch.ones(2, WIDTH), tier="host")
    assert cache.discard(KEYS[0])
    assert cache.discard(KEYS[2])
    reservation = begin(cache, KEYS[4], 4)
    assert [len(part) for part in reservation.host_parts()] == [32, 32]
    rows = torch.rand(4, WIDTH)
    fill(reservation, rows)
    assert reservation.commit()
    with cache.get(KEYS[4]) as lease:
        assert torch.equal(lease.to_tensor(), rows)


def test_fetched_rows_have_a_checksum() -> None:
    cache = cache_of(checksum=True)
    reservation = begin(cache, KEYS[0], 2)
    fill(reservation, torch.ones(2, WIDTH))
    assert reservation.commit()
    with cache.get(KEYS[0]) as lease:
        lease.segments()[0][0, 0] = 7
    assert cache.get(KEYS[0]) is None
    assert cache.stats().corruptions == 1


def test_fetch_is_refused_without_room_or_need_and_counts_nothing(caplog: pytest.LogCaptureFixture) -> None:
    cache = cache_of(2)
    assert cache.put(KEYS[0], torch.ones(1, WIDTH))
    assert begin(cache, KEYS[0], 1) is None
    assert begin(cache, KEYS[1], 5) is None
    assert begin(make_cache(2), KEYS[0], 1) is None
    late = begin(cache, KEYS[1], 1)
    cache.advance_epoch()
    assert not late.commit()
    assert inspect(cache).coordinator.begin_fetch(KEYS[1], 1, WIDTH, 0, bytes(32)) is None
    assert cache.stats().rejections == 0
    cache.close()
    assert inspect(cache).coordinator.begin_fetch(KEYS[1], 1, WIDTH, 1, bytes(32)) is None
    assert not caplog.records


@pytest.mark.parametrize("end", ["cancel", "garbage"])
def test_pages_of_a_fetch_that_ends_early_are_free(end: str) -> None:
    cache = cache_of()
    reservation = begin(cache, KEYS[0], 8)
    assert begin(cache, KEYS[1], 1) is None
    assert cache.stats().host_bytes == cache.stats().host_capacity_bytes
    if end == "cancel":
        reservation.cancel()
        with pytest.raises(RuntimeError, match="committed or cancelled"):
            reservation.host_parts()
    del reservation
    gc.collect()
    assert cache.stats().host_bytes == 0
    cache.check_integrity()


def test_pages_that_are_kept_stay_alive_after_close() -> None:
    cache = cache_of()
    reservation = begin(cache, KEYS[0], 8)
    parts = reservation.host_parts()
    cache.clear()
    assert cache.stats().host_bytes == cache.stats().host_capacity_bytes
    cache.close()
    for part in parts:
        part[:] = 3
    assert not reservation.commit()


def test_forgotten_rows_are_dropped_and_not_inserted_later(caplog: pytest.LogCaptureFixture) -> None:
    cache = cache_of(record_evictions=8)
    assert cache.put(KEYS[0], torch.ones(1, WIDTH), tier="both", tenant="one")
    assert cache.put(KEYS[1], torch.ones(1, WIDTH), tenant="two")
    assert cache.put(KEYS[2], torch.ones(1, WIDTH), tier="host", tenant="one")
    reservation = cache.reserve(KEYS[3], 1, tenant="one")
    fetch = begin(cache, KEYS[4], 1)
    assert cache.forget_tenant("three") == cache.forget_tenant("") == 0
    assert cache.forget_tenant("one") == 2
    assert cache.take_evicted() == [KEYS[0], KEYS[2]]
    assert not reservation.commit()
    assert "were forgotten" in caplog.text or "was forgotten" in caplog.text
    assert not fetch.commit()
    assert cache.stats().rejections == 1
    assert (len(cache), cache.forget(KEYS[1]), cache.forget(KEYS[1])) == (1, 1, 0)
    assert cache.put(KEYS[3], torch.ones(1, WIDTH), tenant="one")
    cache.check_integrity()


def test_claim_labels_its_rows_with_a_tenant() -> None:
    cache = cache_of()
    with cache.claim(KEYS[0]) as claim:
        assert claim.put(torch.ones(1, WIDTH), tenant="one")
    with cache.claim(KEYS[1]) as claim, claim.reserve(1, tenant="one") as reservation:
        reservation.write(torch.ones(1, WIDTH))
        assert reservation.commit()
    assert inspect(cache).entry(KEYS[0]).tenant == tenant_label("one")
    assert cache.forget_tenant("one") == 2
