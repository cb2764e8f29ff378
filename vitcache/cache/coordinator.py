"""Runs a ledger: CUDA calls and copies happen here, between two steps of the native ledger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from vitcache._native import Entry, Ledger, Pending, Tier
from vitcache.cache.call_arguments import tenant_label, to_cost
from vitcache.cache.checksums import Checksums, is_intact
from vitcache.cache.host_copies import HostCopies
from vitcache.cache.python_policy import PythonPolicies
from vitcache.cache.refusals import RefusalLog
from vitcache.device.locks import new_lock
from vitcache.device.streams import Fence, Timeline, check_current_stream
from vitcache.pages.host_reservation import HostReservation
from vitcache.pages.lease import Lease
from vitcache.pages.reservation import Reservation, WriteResult, abort, logger

if TYPE_CHECKING:
    from vitcache.cache.offers import Offers


class CacheCoordinator:
    """A ledger with its copies between the tiers, and the leases and reservations to be released.

    Attributes
    ----------
    ledger
        The native ledger (csrc/cache/ledger.h). Every call is one step under the GIL, so no lock guards
        it. After `close` its methods raise RuntimeError.
    tiers
        The native device tier, and the host tier if there is one.
    timeline
        The streams of the cache's device.
    has_checksums
        Whether rows in the host tier have checksums.
    refusals
        Logs the rows that the ledger refused.
    host_memory
        The rows of all pages in host memory, one tensor per tier.
    offers
        Takes the entries that are worth a copy in the tiers below; None: the cache has none.

    Notes
    -----
    Any thread may call any method, also in the middle of another call of the same thread. No lock is held
    during a copy. After an interrupt, native objects return their pages when they are freed.
    """

    def __init__(
        self,
        ledger: Ledger,
        tiers: list[Tier],
        timeline: Timeline,
        device: torch.device,
        policies: PythonPolicies | None,
        checksums: Checksums | None,
        host_memory: list[torch.Tensor],
    ) -> None:
        self.ledger = ledger
        self.timeline = timeline
        self.tiers = tiers
        self._device = device
        self._policies = policies
        self._host_copies = HostCopies(timeline, checksums)
        self.has_checksums = checksums is not None
        self.refusals = RefusalLog()
        self.host_memory = host_memory
        self.offers: Offers | None = None
        self._drain_lock = new_lock()
        # After a failure, copies may still be queued on this stream.
        self._copy_streams = (timeline.copy_stream,)

    def drain(self) -> None:
        """Unpin the pages of released leases, free those of abandoned reservations, and call Python policies.

        Hand entries that are worth a copy in the tiers below to their workers, and do not wait for them.

        When `drain` returns, all leases and reservations that were released or abandoned before the call are
        processed, even if another thread's `drain` took them from the queue.

        Raises
        ------
        RuntimeError
            If the cache was closed.
        """
        self.ledger.check_open()
        with self._drain_lock:
            if self.ledger.num_abandoned:
                # A write that is not finished, after an interrupt or a failure, returns to the ledger.
                for pending in self.ledger.take_abandoned():
                    abort(pending, self.timeline, self._finish, pending.streams)
            if self.ledger.num_releases:
                # Until it is finished, a batch that is destroyed returns its releases to the queue.
                batch = self.ledger.take_releases()
                # All releases share one fence per stream, which is behind their reads.
                batch.finish([self.timeline.record(stream) for stream in batch.streams()])
        if self._policies is not None:
            self._policies.update(self.ledger)
        if self.offers is not None:
            self.offers.take(self.ledger)

    def reserve(self, begin: Callable[[Ledger], Pending | None]) -> Reservation | None:
        """Call `begin`, and queue the demotions of the pending write that it returns."""
        check_current_stream(self._device)  # before an eviction
        self.drain()
        pending = begin(self.ledger)
        if pending is None:
            return None
        try:
            if pending.demotions:
                self._host_copies.demote(pending)
            kind = HostReservation if pending.memory.tier == "host" else Reservation
            return kind(pending, self._device, self.timeline, self._finish)
        except BaseException:
            abort(pending, self.timeline, self._finish, self._copy_streams)
            raise

    def write(
        self,
        key: bytes,
        num_rows: int,
        row_width: int,
        cost: float,
        epoch: int | None,
        tier: str,
        tenant: str = "",
        offer: bool = False,
    ) -> Reservation | None:
        """Reserve pages for new rows in a tier, ``"both"`` included; log it if they are rejected.

        `offer`: whether the entry is offered to the tiers below when it is inserted.
        """
        label = tenant_label(tenant)

        def begin(ledger: Ledger) -> Pending | None:
            pending = ledger.begin_write(key, num_rows, row_width, cost, epoch, tier, label, offer)
            if pending is None:
                tiers = [each for each in self.tiers if tier in (each.name, "both")]
                self.refusals.warn_write(ledger, tiers, num_rows, row_width, epoch)
            return pending

        return self.reserve(begin)

    def write_contiguous(
        self,
        key: bytes,
        num_rows: int,
        row_width: int,
        cost: float,
        epoch: int | None,
        tenant: str = "",
        offer: bool = False,
    ) -> Reservation | None:
        """Reserve one run of free device pages, as `write` does; log it if the rows are rejected."""
        label = tenant_label(tenant)

        def begin(ledger: Ledger) -> Pending | None:
            pending = ledger.begin_contiguous_write(key, num_rows, row_width, cost, epoch, label, offer)
            if pending is None:
                self.refusals.warn_write(ledger, self.tiers[:1], num_rows, row_width, epoch, of_room=False)
            return pending

        return self.reserve(begin)

    def begin_fetch(
        self,
        key: bytes,
        num_rows: int,
        row_width: int,
        epoch: int,
        tenant_digest: bytes,
        may_evict: bool = True,
    ) -> HostReservation | None:
        """Reserve host pages for an entry that is copied from a tier below the host tier.

        Makes no CUDA call and queues nothing: released leases keep their pages until the next `drain`. The
        caller writes `HostReservation.host_parts` on the host. `HostReservation.commit` inserts nothing, and
        logs nothing, if the key is in the cache by then, was discarded or forgotten, or the epoch changed.

        Returns
        -------
        HostReservation or None
            None if the key is in the cache, too few host pages are free or evictable, or free without
            `may_evict`, `epoch` is not the current epoch, the cache has no host tier, or it was closed.
            Nothing is counted or logged.
        """
        cost = to_cost(None, num_rows)
        pending = self.ledger.begin_fetch(key, num_rows, row_width, cost, epoch, tenant_digest, may_evict)
        if pending is None:
            return None
        return HostReservation(pending, self._device, self.timeline, self._finish)

    def forget(self, key: bytes) -> int:
        """Drop the entry of a key, and reject its pending writes; return how many entries were dropped."""
        return self.ledger.forget(key)

    def forget_tenant(self, tenant: str) -> int:
        """Drop the entries of a tenant, and reject its pending writes; return how many were dropped."""
        return self.ledger.forget_tenant(tenant_label(tenant))

    def promote(self, source: Entry, contiguous: bool = False) -> Reservation | None:
        """Reserve device pages for a copy of a host entry; see `EmbeddingCache.promote`."""
        return self.reserve(lambda ledger: ledger.begin_promotion(source, contiguous))

    def expect(self, num_pages: Sequence[int]) -> None:
        """Queue early copies of the device entries that items of `num_pages` pages would evict."""
        self._copy_early(lambda ledger: ledger.begin_early_copies(num_pages))

    def copy_to_host(self, key: bytes) -> bool:
        """Queue an early copy of a device entry to free host pages; see `EmbeddingCache.copy_to_host`."""
        self._copy_early(lambda ledger: ledger.begin_copy_to_host(key))
        return self.ledger.has_host_copy(key)

    def demote(self, key: bytes) -> bool:
        """Demote a device entry to its host copy, which is made if it has none."""
        check_current_stream(self._device)
        self.drain()
        if not self.ledger.is_demotable(key):
            return False
        self._copy_early(lambda ledger: ledger.begin_copy_to_host(key))
        return self.ledger.demote_to_copy(key)

    def compact(self) -> bool:
        """Move the device entries to the lowest pages, on the current stream."""
        check_current_stream(self._device)
        self.drain()
        compaction = self.ledger.begin_compaction()
        if compaction is None:
            return False
        try:
            stream = self.timeline.current()
            for fence in map(Fence._make, compaction.fences):
                if fence.stream != stream:
                    self.timeline.wait(fence)
            compaction.use(stream)
            compaction.memory.move_pages(compaction.page_moves)
            self.ledger.finish(compaction, self.timeline.record(stream), False)
        except BaseException:
            abort(compaction, self.timeline, self._finish)
            raise
        return True

    def _copy_early(self, begin: Callable[[Ledger], Pending | None]) -> None:
        """Queue the early copies that `begin` returns."""
        check_current_stream(self._device)
        self.drain()
        copies = begin(self.ledger)
        if copies is None:
            return
        try:
            self._host_copies.demote(copies)
            self.ledger.finish(copies, Fence._make(copies.copied), False)
        except BaseException:
            abort(copies, self.timeline, self._finish, self._copy_streams)
            raise

    def is_intact(self, entry: Entry) -> bool:
        """Compare the rows of a leased entry with their checksum.

        If they differ, drop the entry, count and log it.
        """
        if is_intact(entry):
            return True
        if self.ledger.report_corrupt(entry):
            logger.error(
                "%d rows in the host tier have changed: they do not match their checksum; "
                "the entry was dropped",
                entry.num_rows,
            )
        return False

    def check_intact(self, lease: Lease) -> Lease | None:
        """Return the lease; or release it and return None if its rows do not match their checksum."""
        is_intact = False
        try:
            entry = self.ledger.lease_entry(lease)
            is_intact = entry is None or self.is_intact(entry)
        finally:
            if not is_intact:
                lease.release()  # also if the comparison fails: the traceback would keep the lease
        return lease if is_intact else None

    def close(self) -> None:
        """Drop every entry. A second call does nothing."""
        self.ledger.close()

    def _finish(
        self, pending: Pending, fence: Fence | None, *, failed: bool, leased: bool = False
    ) -> WriteResult:
        if fence is not None and not failed:
            if pending.has_host_copy:
                self._host_copies.write_through(pending, fence)
            elif pending.memory.tier == "host":
                self._host_copies.add_checksum(pending, pending.pages, fence)
        if leased:
            lease = self.ledger.finish_leased(pending, fence)
            result = WriteResult(lease is not None, lease)
        else:
            result = WriteResult(self.ledger.finish(pending, fence, failed))
        if not (result.inserted or failed or pending.is_promotion or pending.is_fetch):
            self.refusals.warn_commit(pending, self.ledger.last_epoch)
        return result
