"""Runs a ledger: CUDA calls and copies happen here, between two steps of the native ledger."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from vitcache._native import Entry, Ledger, Pending
from vitcache.cache.checksums import Checksums, is_intact
from vitcache.cache.python_policy import PythonPolicies
from vitcache.device.streams import Fence, Timeline
from vitcache.pages.pool import PagePool
from vitcache.pages.reservation import AbandonedWrite, Reservation, WriteResult, abort, logger


class CacheCoordinator:
    """A ledger with its copies between the tiers, and the leases and reservations to be released.

    Attributes
    ----------
    ledger
        The native ledger (csrc/cache/ledger.h). Every call is one step under the GIL, so no lock guards
        it. After `close` its methods raise RuntimeError.
    timeline
        The streams of the cache's device.
    has_checksums
        Whether rows in the host tier have checksums.

    Notes
    -----
    Any thread may call any method. No lock is held during a copy.
    """

    def __init__(
        self,
        ledger: Ledger,
        timeline: Timeline,
        device_pool: PagePool,
        policies: PythonPolicies | None,
        checksums: Checksums | None,
    ) -> None:
        self.ledger = ledger
        self.timeline = timeline
        self._device = device_pool.rows.device
        self._policies = policies
        self._checksums = checksums
        self.has_checksums = checksums is not None
        self._drain_lock = threading.Lock()
        self._abandoned: deque[AbandonedWrite] = deque()
        # After a failure, copies may still be queued on this stream.
        self._copy_streams = frozenset({timeline.copy_stream})

    def drain(self) -> None:
        """Unpin the pages of released leases, free those of abandoned reservations, and call Python policies.

        When `drain` returns, all leases and reservations that were released or abandoned before the call are
        processed, even if another thread's `drain` took them from the queue.

        Raises
        ------
        RuntimeError
            If the cache was closed.
        """
        self.ledger.check_open()
        with self._drain_lock:
            while self._abandoned:
                abort(*self._abandoned[0])
                self._abandoned.popleft()  # last: if an interrupt comes before, the next call aborts again
            if self.ledger.num_releases:
                # Until it is finished, a batch that is destroyed returns its releases to the queue.
                batch = self.ledger.take_releases()
                # All releases share one fence per stream, which is behind their reads.
                batch.finish([self.timeline.record(stream) for stream in batch.streams()])
        if self._policies is not None:
            self._policies.update(self.ledger)

    def reserve(self, begin: Callable[[Ledger], Pending | None]) -> Reservation | None:
        """Call `begin`, and queue the demotions of the pending write that it returns."""
        self.drain()
        pending = begin(self.ledger)
        if pending is None:
            return None
        try:
            self._copy_to_host(pending)
            return Reservation(pending, self._device, self.timeline, self._finish, self._abandoned)
        except BaseException:
            abort(pending, self.timeline, self._finish, self._copy_streams)
            raise

    def promote(self, source: Entry) -> Reservation | None:
        """Reserve device pages for a copy of a host entry; see `EmbeddingCache.promote`."""
        return self.reserve(lambda ledger: ledger.begin_promotion(source))

    def expect(self, num_rows: Sequence[int]) -> None:
        """Queue early copies of the device entries that items of `num_rows` rows would evict."""
        self.drain()
        copies = self.ledger.begin_early_copies(num_rows)
        if copies is None:
            return
        try:
            self._copy_to_host(copies)
            self._finish(copies, Fence._make(copies.copied), failed=False)
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

    def close(self) -> None:
        """Drop every entry. A second call does nothing."""
        self.ledger.close()

    def _copy_to_host(self, pending: Pending) -> None:
        """Queue the copies on the copy stream. Then `pending.fences` contains only the fence behind them."""
        demotions = pending.demotions
        if not demotions:
            return
        with self.timeline.on_copy_stream():
            stream = self.timeline.copy_stream
            for fence in map(Fence._make, pending.fences):
                if fence.stream != stream:
                    self.timeline.wait(fence)
            pages = [page for demotion in demotions for page in demotion.pages]
            source_pages = [page for demotion in demotions for page in demotion.entry.pages]
            demotions[0].memory.copy_pages(pages, demotions[0].entry.memory, source_pages)
            copied = self.timeline.record(stream)
        pending.set_copied(copied)
        if self._checksums is not None:
            for demotion in demotions:
                demotion.set_checksum(
                    self._checksums.compute(demotion.memory, demotion.pages, demotion.entry.num_rows, copied)
                )

    def _finish(self, pending: Pending, fence: Fence | None, *, failed: bool) -> WriteResult:
        inserted = self.ledger.finish(pending, fence, failed)
        return WriteResult(inserted, self.ledger.last_epoch, self.ledger.num_available)
