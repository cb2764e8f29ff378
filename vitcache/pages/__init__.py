"""The memory of a tier in pages, and the objects that own or pin pages: entries, leases, reservations."""

from typing import TYPE_CHECKING

from vitcache.lazy import lazy_names

if TYPE_CHECKING:
    from vitcache.pages.lease import Lease
    from vitcache.pages.reservation import Reservation

__all__ = ["Lease", "Reservation"]

if not TYPE_CHECKING:  # with `__getattr__`, a type checker would accept every name
    __getattr__ = lazy_names(
        __name__,
        {
            "vitcache.pages.lease": ("Lease",),
            "vitcache.pages.reservation": ("Reservation",),
        },
    )
