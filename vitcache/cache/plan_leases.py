"""The leases of a step's items: one look-up, one object and one release for all items of a plan."""

from __future__ import annotations

from collections.abc import Sequence

from vitcache._native import Destination as NativeDestination
from vitcache._native import LeaseSet, Placement, StepPlan
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.device.streams import Fence
from vitcache.pages.lease import Lease, release_all
from vitcache.pages.reservation import Reservation


class PlanLeases:
    """Leases on the entries of a plan's items, by the number of the item. An item without an entry is a miss.

    The constructor looks up every item that has a key, with the same counts and the same order of eviction as
    one `EmbeddingCache.get` per item. No Python object is made for an item.

    Parameters
    ----------
    row_widths
        Row width that each item expects, -1 for any width. An entry of another width is dropped, and the
        look-up is a miss. None: the widths of the plan.

    Attributes
    ----------
    num_hits
        Number of items that have a lease.

    Notes
    -----
    One thread uses the object, and calls `release` when the last read is queued. An object that is
    garbage-collected releases its leases, too.
    """

    __slots__ = ("_coordinator", "_handed_out", "_leases", "num_hits")

    def __init__(
        self, cache: EmbeddingCache, plan: StepPlan, row_widths: Sequence[int] | None = None
    ) -> None:
        self._coordinator = coordinator = cache._coordinator
        self._handed_out: list[Lease] = []
        if coordinator.ledger.is_due:
            coordinator.drain()
        self._leases = coordinator.ledger.pin_plan(plan, row_widths)
        self.num_hits: int = self._leases.num_hits
        if coordinator.has_checksums:
            self._drop_corrupt(self._leases)

    def misses(self) -> list[int]:
        """Return the numbers of the items that have no lease."""
        return self._leases.misses()

    def has_host_hits(self) -> bool:
        """Whether an item has a lease in the host tier."""
        return bool(self._leases.host_hits())

    def look_up_again(
        self,
        keys: Sequence[bytes | None],
        num_rows: Sequence[int],
        row_widths: Sequence[int] | None = None,
    ) -> None:
        """Look up items that were misses; `keys` is None for all other items."""
        again = self._coordinator.ledger.pin_all(list(keys), list(num_rows), row_widths)
        if self._coordinator.has_checksums:
            self._drop_corrupt(again)
        self._leases.take(again)
        self.num_hits = self._leases.num_hits

    def add_sources(self, placement: Placement, destination: NativeDestination) -> list[int]:
        """Add the leased rows to a native placement. Return the items whose sources Python must add.

        These are misses, and rows in the host tier of a GPU. The current stream is ordered after the writes
        of the leased rows, and before the reuse of their pages.
        """
        timeline = self._coordinator.timeline
        stream = timeline.current()
        fences = self._leases.use(stream, False)
        if fences:
            passed = {fence[1] for fence in fences if timeline.wait(Fence(*fence))}
            if passed:
                self._leases.forget_fences(passed)
            self._leases.use(stream, True)
        return self._leases.add_sources(placement, destination)

    def lease(self, item: int) -> Lease | None:
        """Return a further lease on an item's rows, or None for a miss. It counts no hit."""
        lease: Lease | None = self._coordinator.ledger.lease_one(self._leases, item)
        if lease is not None:
            self._handed_out.append(lease)
        return lease

    def promote(self) -> dict[int, Reservation]:
        """Reserve device pages for the items that were hit in the host tier before, by item.

        The second hit in the host tier promotes an entry: the placement writes its rows to these pages.
        """
        reservations: dict[int, Reservation] = {}
        for item in self._leases.host_hits():
            entry = self._leases.entry(item)
            if entry.hits > 1:
                reservation = self._coordinator.promote(entry)
                if reservation is not None:
                    reservations[item] = reservation
        return reservations

    def forget(self, item: int) -> None:
        """Release the lease of one item, which then is a miss."""
        self._leases.release_one(item)
        self.num_hits = self._leases.num_hits

    def release(self) -> None:
        """Release all leases, also those that `lease` returned. A second call does nothing."""
        self._leases.release()
        release_all(self._handed_out)

    def _drop_corrupt(self, leases: LeaseSet) -> None:
        try:
            for item in leases.host_hits():
                if not self._coordinator.is_intact(leases.entry(item)):
                    leases.release_one(item)
        except BaseException:
            leases.release()
            raise
        self.num_hits = leases.num_hits
