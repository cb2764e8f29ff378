"""The private state of an `EmbeddingCache`, for tests: its ledger, tiers, timeline and claims.

Tests read and change this state only through `inspect`. So if the cache renames or moves a private attribute,
only this file changes, and no test.
"""

from __future__ import annotations

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
    Any thread may read any property. Each one is one step of the cache. If other threads use the cache, it
    may change between two steps.
    """

    __slots__ = ("_cache",)

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    @property
    def ledger(self) -> Any:
        """The `_native.Ledger`.

        Raises
        ------
        RuntimeError
            If the cache was closed.
        """
        ledger = self._cache._ledger
        ledger.check_open()
        return ledger

    @property
    def coordinator(self) -> Any:
        """The `cache.coordinator.CacheCoordinator`."""
        return self._cache._coordinator

    @property
    def device_pool(self) -> Any:
        """The `_native.Tier` of the device tier: its counts of pages. A test may take or free its pages."""
        return self._cache._device_tier

    @property
    def host_pool(self) -> Any:
        """The `_native.Tier` of the host tier; None if the cache has no host tier."""
        tiers = self._cache._coordinator.tiers
        return tiers[1] if len(tiers) > 1 else None

    @property
    def num_stale_indexes(self) -> int:
        """Number of indexes of earlier epochs whose pages are not all free."""
        return int(self.ledger.num_stale_indexes())

    @property
    def violations(self) -> list[str]:
        """The violations that `check_integrity` of the cache finds. Processes no released leases first.

        Raises
        ------
        RuntimeError
            If the cache was closed.
        """
        found: list[str] = self.ledger.find_violations()
        return found

    @property
    def is_closed(self) -> bool:
        """Whether the cache was closed."""
        try:
            self._cache._ledger.check_open()
        except RuntimeError:
            return True
        return False

    @property
    def is_draining(self) -> bool:
        """Whether this thread holds the lock of `CacheCoordinator.drain`, the only lock of the cache."""
        return bool(self.drain_lock._is_owned())

    @property
    def drain_lock(self) -> Any:
        """The lock of `CacheCoordinator.drain`."""
        return self._cache._coordinator._drain_lock

    @property
    def timeline(self) -> Any:
        """The `device.streams.Timeline` that records and waits for fences; a test may replace its methods."""
        return self._cache._coordinator.timeline

    @property
    def num_pending_releases(self) -> int:
        """Number of leases that were released and that the ledger has not unpinned yet."""
        return int(self.ledger.num_releases)

    @property
    def num_claims(self) -> int:
        """Number of claimed keys."""
        return int(self._cache._ledger.num_claims)

    @staticmethod
    def num_waiting(claim: Any) -> int:
        """Return the number of threads that wait for the owner of the key of a `Claim`."""
        return int(claim._claim.num_waiting)

    @property
    def evicted(self) -> list[bytes]:
        """The keys that `EmbeddingCache.take_evicted` would return now; empty if the cache records none."""
        keys: list[bytes] = self.ledger.evicted
        return keys

    @property
    def logged_rejections(self) -> list[str]:
        """The reasons of the rejections that were logged, which are not logged again."""
        return list(self._cache._coordinator.refusals.logged)

    def entry(self, key: bytes, tier: str = "device") -> Any:
        """Return the `_native.Entry` of a key in a tier, ``"device"`` or ``"host"``.

        A host copy is an entry of the host tier.

        Raises
        ------
        KeyError
            If the tier has no entry under `key`.
        """
        found = self.ledger.find_entry(key, tier)
        if found is None:
            raise KeyError(key)
        return found

    def lease_entry(self, lease: Any) -> Any:
        """Return the `_native.Entry` that an unreleased lease of the cache pins."""
        return self.ledger.lease_entry(lease)

    def pages_of(self, reservation: Any) -> list[int]:
        """Return the page numbers, in row order, of an open `Reservation`."""
        return list(reservation._pending[0].pages)

    def eviction_order(self, tier: str) -> list[bytes]:
        """Return the keys in the policy of a tier, the next victim first."""
        order: list[bytes] = self.ledger.eviction_order(tier)
        return order


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
