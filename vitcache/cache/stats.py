"""Counts of an `EmbeddingCache`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass
class Counts:
    """What has happened so far. Guarded by the cache's lock."""

    misses: int = 0
    insertions: int = 0
    evictions: int = 0
    demotions: int = 0
    writebacks: int = 0
    promotions: int = 0
    rejections: int = 0
    corruptions: int = 0


class TierHits(NamedTuple):
    """What was found in one tier: look-ups, bytes of their rows, milliseconds of encoding that they saved.

    The milliseconds are those that `put` was told as `encode_ms`, or else its estimate.
    """

    hits: int
    hit_bytes: int
    saved_ms: float


@dataclass
class HitCounts:
    """Look-ups that found their rows in one tier, these rows, and the encode time that they saved.

    Guarded by the cache's lock.
    """

    hits: int = 0
    rows: int = 0
    saved_ms: float = 0.0

    def tier_hits(self, row_bytes: int) -> TierHits:
        """Return them as a caller sees them, for rows of so many bytes."""
        return TierHits(self.hits, self.rows * row_bytes, self.saved_ms)


@dataclass(frozen=True)
class CacheStats:
    """A snapshot of a cache.

    Attributes
    ----------
    hits, misses
        Calls of `get` that returned a lease, and that returned None.
    insertions, evictions
        Entries that came in by `put`, and that left: for room, replaced, of another length than expected,
        cleared, or of an earlier epoch. While no `put` is under way, ``entries == insertions - evictions``.
    demotions
        Entries that moved from the device tier to the host tier.
    writebacks
        Copies of entries to the host tier: as they moved there, or ahead of that for `expect`. Other
        demotions had a copy there, made ahead or from before they were promoted.
    promotions
        Entries of the host tier that came to the device tier, too.
    rejections
        Calls of `put` that returned False.
    corruptions
        Look-ups that were misses because the checksum in the host tier was another one.
    entries
        Entries that can be looked up.
    leased_pages
        Pages, of both tiers, that at least one lease holds.
    device_bytes, host_bytes
        Bytes of the pages in use: of entries, of leases on dropped entries, and of copies under way.
    device_capacity_bytes, host_capacity_bytes
        Bytes of all pages.
    device, host
        Hits by tier, and what they saved.
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
