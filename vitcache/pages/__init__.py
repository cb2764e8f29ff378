"""Memory in pages, and the handles on it: entries, leases, reservations."""

from vitcache.pages.lease import Lease
from vitcache.pages.reservation import Reservation

__all__ = ["Lease", "Reservation"]
