"""The private state of an `EmbeddingCache`, for tests: its ledger, locks, timeline and counts.

Tests read and change this state only through `inspect`. So if the cache renames or moves a private attribute,
only this file changes, and no test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class CacheInspection:
    """The private state of one `EmbeddingCache`.

    Every property reads the cache at each access, so an inspection is never outdated. This room does not
    import the room of a property's type: the property returns `Any`, and its docstring names the type.

    Parameters
    ----------
    cache
        The `EmbeddingCache`. The inspection keeps it alive.

    Notes
    -----
    No property takes a lock. If other threads use the cache, enter `lock` first.
    """

    __slots__ = ("_cache",)

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    @property
    def ledger(self) -> Any:
        """The `cache.ledger.Ledger`: counts, pools and index.

        Raises
        ------
        RuntimeError
            If the cache was closed.
        """
        return self._coordinator.open()

    @property
    def index(self) -> Any:
        """The `cache.index.Index` of the current epoch: entries by key."""
        return self.ledger.index

    @property
    def counts(self) -> Any:
        """The `Counts` that `EmbeddingCache.stats` copies; a test may change them."""
        return self.ledger.counts

    @property
    def device_pool(self) -> Any:
        """The `pages.pool.PagePool` of the device tier."""
        return self.ledger.device

    @property
    def host_pool(self) -> Any:
        """The `pages.pool.PagePool` of the host tier; None if the cache has no host tier."""
        return self.ledger.host

    @property
    def dropped(self) -> set[Any]:
        """Entries that are in no index and that a lease pins."""
        found: set[Any] = self.ledger._dropped
        return found

    @property
    def pending_demotions(self) -> dict[bytes, Any]:
        """The `pages.pending.Demotion` of each entry that is being copied to the host tier, by key."""
        found: dict[bytes, Any] = self.ledger._pending_demotions
        return found

    @property
    def stale_indexes(self) -> list[Any]:
        """Indexes of earlier epochs whose pages are not all free."""
        found: list[Any] = self.ledger._stale
        return found

    @property
    def lock(self) -> Any:
        """The lock that guards the ledger; a test may assign another lock, such as one that raises."""
        return self._coordinator.lock

    @lock.setter
    def lock(self, lock: Any) -> None:
        self._coordinator.lock = lock

    @contextmanager
    def all_locks(self) -> Iterator[None]:
        """Hold both locks of the cache: the lock of `CacheCoordinator.drain`, and the ledger's lock."""
        with self._coordinator._drain_lock, self._coordinator.lock:
            yield

    @property
    def handle(self) -> Any:
        """The `pages.lease.CacheHandle` that each lease of the cache refers to."""
        return self._coordinator.handle

    @property
    def timeline(self) -> Any:
        """The `device.streams.Timeline` that records and waits for fences; a test may replace its methods."""
        return self.handle.timeline

    @property
    def num_pending_releases(self) -> int:
        """Number of leases that were released and that the ledger has not unpinned yet."""
        return len(self.handle.releases.queue)

    @property
    def num_claims(self) -> int:
        """Number of claimed keys."""
        return int(self._cache._ledger.num_claims)

    def entry(self, key: bytes, tier: str = "device") -> Any:
        """Return the `pages.entry.Entry` of a key in a tier, ``"device"`` or ``"host"``.

        A host copy is an entry of the host tier.

        Raises
        ------
        KeyError
            If the tier has no entry under `key`.
        """
        index = self.index
        entries = {"device": index.device, "host": index.host_copies | index.host}
        return entries[tier][key]

    @property
    def _coordinator(self) -> Any:
        return self._cache._coordinator


def inspect(cache: Any) -> CacheInspection:
    """Return an inspection of the private state of a cache.

    Parameters
    ----------
    cache
        The `EmbeddingCache`, open or closed.

    Examples
    --------
    >>> import torch
    >>> from vitcache import EmbeddingCache
    >>> from vitcache.testing import inspect
    >>> cache = EmbeddingCache(4, dtype=torch.float32, device="cpu", device_bytes=64, page_rows=2)
    >>> inspect(cache).device_pool.num_free
    2
    """
    return CacheInspection(cache)


def forget_streams(lease: Any) -> None:
    """Inject a fault: the `Lease` forgets the streams that read its pages, so its release names no stream."""
    lease._streams = frozenset()
