"""The pinned ring: features from pageable memory to the device."""

from vitcache.ring.pinned_ring import PinnedRing, RingStats
from vitcache.ring.ticket import Ticket

__all__ = ["PinnedRing", "RingStats", "Ticket"]
