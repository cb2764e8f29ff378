"""Counts and sizes of an `EmbeddingCache`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from vitcache._native import TierUse


class TierHits(NamedTuple):
    """The hits of one tier, the bytes of their rows, and the encode time in milliseconds that they saved.

    `saved_ms` is the sum, over the hits, of the `encode_ms` that `put` received, or of its estimate.

    Examples
    --------
    >>> from vitcache import EmbeddingCache
    >>> with EmbeddingCache(4, device="cpu", device_bytes="1MiB") as cache:
    ...     cache.stats().device  # no look-up has hit
    TierHits(hits=0, hit_bytes=0, saved_ms=0.0)
    """

    hits: int
    hit_bytes: int
    saved_ms: float


@dataclass(frozen=True)
class TierStats:
    """The counts of one tier below the host tier, in `CacheStats.tiers`.

    Attributes
    ----------
    name, capacity_bytes
        Those of the tier.
    hits, misses
        Number of entries that a fetch copied from the tier, and that it asked the tier for in vain.
    damaged
        Number of entries that did not match their header, and that the tier dropped.
    late
        Number of entries that were not there at the deadline of their fetch.
    refused
        Number of entries that a fetch did not ask the tier for: the breaker was open, too many fetches
        waited, or the cache was closed.
    not_admitted
        Number of entries of the tier for which the host tier had too few pages, or which were not needed any
        more.
    not_worth
        Number of entries that were not fetched, or not stored, because the expected transfer takes more than
        the part `Tier.worth` of the expected encode time.
    failures
        Number of calls of the tier that raised an exception, or left memory that the tier may still write.
    stored, store_failures, skipped_stores
        Number of entries that were stored; that the tier did not store; and whose store was left out, because
        the entry had left the cache, another process stores it, the breaker was open, or too much waited.
    erased
        Number of entries that `discard`, `forget` and `forget_tenant` erased.
    fetched_bytes, stored_bytes
        Bytes of the rows of `hits` and of `stored`.
    fetch_seconds
        Seconds of the calls of the tier that returned `fetched_bytes`.
    bytes_per_second, latency_seconds
        The bandwidth of fetches, and the time of a call beside that of its bytes, as the last fetches show
        them. The rule of `Tier.worth` uses both. They are 0.0 before the second fetch that returns rows.
    quarantined_bytes
        Bytes of rows whose memory the tier may still use after a failure, now.
    is_open
        Whether the breaker is open: the tier is late or fails, and is not asked.
    openings
        How many times the breaker has opened.
    own
        The tier's own counts, such as ``entries`` and ``bytes``, as its worker has read them last.

    Examples
    --------
    >>> from vitcache import EmbeddingCache
    >>> from vitcache.tiers import MemoryTier
    >>> tiers = [MemoryTier("1MiB")]
    >>> with EmbeddingCache(4, device="cpu", device_bytes=4096, host_bytes=4096, tiers=tiers) as cache:
    ...     cache.fetch([bytes(32)], 2, timeout_s=60)
    ...     cache.stats().tiers[0].misses
    [False]
    1
    """

    name: str
    capacity_bytes: int
    hits: int
    misses: int
    damaged: int
    late: int
    refused: int
    not_admitted: int
    not_worth: int
    failures: int
    stored: int
    store_failures: int
    skipped_stores: int
    erased: int
    fetched_bytes: int
    stored_bytes: int
    fetch_seconds: float
    bytes_per_second: float
    latency_seconds: float
    quarantined_bytes: int
    is_open: bool
    openings: int
    own: Mapping[str, int]


@dataclass(frozen=True)
class CacheStats:
    """A snapshot of an `EmbeddingCache`, from `EmbeddingCache.stats`. Counts begin when the cache is made.

    Attributes
    ----------
    hits, misses
        Number of calls of `get` that returned a lease, and that returned None.
    insertions
        Number of entries that `put`, `Reservation.commit` or `commit_lease` inserted. Promotions are not
        counted.
    evictions
        Number of entries that left the cache: they were evicted and not demoted, were replaced or discarded,
        did not have the expected number or width of rows, did not match their checksum, or were in the cache
        when `clear` or `advance_epoch` was called. While no write is pending, ``entries == insertions -
        evictions``.
    demotions
        Number of entries that were evicted from the device tier and whose rows are kept in the host tier.
    writebacks
        Number of copies of device entries to the host tier: for a demotion, early copies for `expect`, or
        the host copy of a `put` in both tiers. If an entry has a host copy, its demotion needs no writeback.
    promotions
        Number of host entries that were copied to the device tier.
    rejections
        Number of calls of `put`, `reserve`, `Reservation.commit` and `commit_lease` that rejected rows.
    corruptions
        Number of misses because the rows in the host tier did not match their checksum.
    entries
        Number of entries that can be looked up.
    leased_pages
        Number of pages of both tiers that have at least one lease.
    device_bytes, host_bytes
        Bytes of the pages in use: of entries, of dropped entries that are leased, and of pending writes and
        copies.
    device_capacity_bytes, host_capacity_bytes
        Bytes of all pages.
    device, host
        `TierHits` of each tier: ``hits``, ``hit_bytes`` and ``saved_ms``.
    tiers
        `TierStats` of each tier below the host tier, the nearest first.
    encode_ms_per_row
        The measured encode time of a row in milliseconds, by the width of the row. Empty unless a tier has a
        `worth`: nothing else needs it.
    hit_rate
        Hits per look-up, between 0.0 and 1.0. Without look-ups 0.0.

    Examples
    --------
    >>> import torch
    >>> from vitcache import EmbeddingCache
    >>> cache = EmbeddingCache(2, dtype=torch.float32, device="cpu", device_bytes=64, page_rows=2)
    >>> cache.put(bytes(32), torch.ones(2, 2), encode_ms=27.0)
    True
    >>> with cache.get(bytes(32)):
    ...     stats = cache.stats()
    >>> stats.hits, stats.misses, stats.leased_pages, stats.device
    (1, 0, 1, TierHits(hits=1, hit_bytes=16, saved_ms=27.0))
    >>> stats.hit_rate
    1.0
    """

    hits: int
    misses: int
    insertions: int
    evictions: int
    demotions: int
    writebacks: int
    promotions: int
    rejections: int
    corruptions: int
    entries: int
    leased_pages: int
    device_bytes: int
    host_bytes: int
    device_capacity_bytes: int
    host_capacity_bytes: int
    device: TierHits
    host: TierHits
    tiers: tuple[TierStats, ...] = ()
    encode_ms_per_row: Mapping[int, float] = field(default_factory=dict, hash=False)

    @property
    def hit_rate(self) -> float:
        lookups = self.hits + self.misses
        return self.hits / lookups if lookups else 0.0


def make_stats(
    counts: dict[str, int],
    tiers: list[TierUse],
    lower: tuple[TierStats, ...] = (),
    encode_ms_per_row: Mapping[int, float] = MappingProxyType({}),
) -> CacheStats:
    """Return the counts of the native ledger in their public form. `tiers`: device tier, then host tier.

    `counts` has the ledger's counts by the names of `CacheStats`, and its number of entries.
    """
    hits = [TierHits(tier.hits, tier.hit_bytes, tier.saved_ms) for tier in tiers]
    return CacheStats(
        hits=sum(tier.hits for tier in tiers),
        **counts,
        leased_pages=sum(tier.leased_pages for tier in tiers),
        device_bytes=tiers[0].used_bytes,
        host_bytes=sum(tier.used_bytes for tier in tiers[1:]),
        device_capacity_bytes=tiers[0].capacity_bytes,
        host_capacity_bytes=sum(tier.capacity_bytes for tier in tiers[1:]),
        device=hits[0],
        host=hits[1] if len(hits) > 1 else TierHits(0, 0, 0.0),
        tiers=lower,
        encode_ms_per_row=dict(encode_ms_per_row),
    )
