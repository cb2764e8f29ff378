"""The pinned ring: it copies features from pageable memory to the device."""

from typing import TYPE_CHECKING

from vitcache.lazy import lazy_names

if TYPE_CHECKING:
    from vitcache.ring.pinned_ring import PinnedRing, RingStats
    from vitcache.ring.ticket import Ticket

__all__ = ["PinnedRing", "RingStats", "Ticket"]

if not TYPE_CHECKING:  # with `__getattr__`, a type checker would accept every name
    __getattr__ = lazy_names(
        __name__,
        {
            "vitcache.ring.pinned_ring": ("PinnedRing", "RingStats"),
            "vitcache.ring.ticket": ("Ticket",),
        },
    )
