"""Shares a ledger between threads: the ledger is used under a lock, and copies are queued without it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from vitcache.cache.checksums import Checksums, is_intact
from vitcache.cache.ledger import Ledger
from vitcache.device.streams import Fence
from vitcache.pages.entry import Entry
from vitcache.pages.lease import CacheHandle
from vitcache.pages.pending import PendingCopies, PendingWrite
from vitcache.pages.reservation import AbandonedWrite, Reservation, WriteResult, abort, logger


class CacheCoordinator:
    """A ledger with its lock, its copies between the tiers, and the leases and reservations to be released.

    Attributes
    ----------
    lock
        Guards the ledger that `open` returns.
    handle
        The parts of the cache that its leases use.

    Notes
    -----
    Any thread may call any method. Call `open` with the lock held, and all other methods without it.
    """

    def __init__(self, ledger: Ledger, handle: CacheHandle, checksums: Checksums | None) -> None:
        self.lock = threading.Lock()
        self.handle = handle
        self._ledger: Ledger | None = ledger
        self._timeline = handle.timeline
        self._checksums = checksums
        self._drain_lock = threading.Lock()  # always taken before `lock`
        self._abandoned: deque[AbandonedWrite] = deque()
        # After a failure, copies may still be queued on this stream.
        self._copy_streams = frozenset({self._timeline.copy_stream})

    def open(self) -> Ledger:
        """Return the ledger. The caller must have the lock.

        Raises
        ------
        RuntimeError
            If the cache was closed.
        """
        if self._ledger is None:
            raise RuntimeError("the cache was closed")
        return self._ledger

    def drain(self) -> None:
        """Unpin the pages of released leases, and free those of abandoned reservations.

        When `drain` returns, all leases and reservations that were released or abandoned before the call are
        processed, even if another thread's `drain` took them from the queue.
        """
        with self._drain_lock:
            while self._abandoned:
                abort(*self._abandoned.popleft())
            releases = self.handle.releases.take()
            if not releases:
                return
            streams = {stream for _, read_streams in releases for stream in read_streams}
            replaced = []  # kept alive here, because a CUDA event must not be destroyed under the lock
            try:
                # All releases share one fence per stream, which is behind their reads.
                fences = {stream: self._timeline.record(stream) for stream in streams}
                with self.lock:
                    ledger = self.open()
                    while releases:
                        entry, read_streams = releases.pop()
                        for stream in read_streams:
                            replaced.append(entry.reads.get(stream))
                            entry.reads[stream] = fences[stream]
                        ledger.unpin(entry)
            finally:
                for release in releases:  # empty unless an error was raised
                    self.handle.releases.add(release)

    def reserve(self, begin: Callable[[Ledger], PendingWrite | None]) -> Reservation | None:
        """Call `begin` under the lock, and queue the demotions of the pending write that it returns."""
        self.drain()
        pending: PendingWrite | None = None
        try:
            with self.lock:
                ledger = self.open()
                pending = begin(ledger)
            if pending is None:
                return None
            self._copy_to_host(pending.copies)
            finish = partial(self._finish_write, ledger)
            return Reservation(pending, self.handle.device, self._timeline, finish, self._abandoned)
        except BaseException:
            if pending is not None:
                abort(pending, self._timeline, partial(self._finish_write, ledger), self._copy_streams)
            raise

    def expect(self, num_rows: Sequence[int]) -> None:
        """Queue early copies of the device entries that items of `num_rows` rows would evict."""
        self.drain()
        copies: PendingCopies | None = None
        try:
            with self.lock:
                ledger = self.open()
                copies = ledger.begin_early_copies(num_rows)
            if copies is not None:
                self._copy_to_host(copies)
                self._finish_early_copies(ledger, copies, copies.copied, failed=False)
        except BaseException:
            if copies is not None:
                abort(copies, self._timeline, partial(self._finish_early_copies, ledger), self._copy_streams)
            raise

    def is_intact(self, entry: Entry) -> bool:
        """Compare a leased entry with its checksum. If they differ, drop the entry, count and log it."""
        if is_intact(entry):
            return True
        with self.lock:
            self.open().report_corrupt(entry)
        logger.error(
            "%d rows in the host tier have changed: they do not match their checksum; the entry was dropped",
            entry.num_rows,
        )
        return False

    def close(self) -> None:
        """Drop every entry. A second call does nothing."""
        with self._drain_lock, self.lock:
            ledger, self._ledger = self._ledger, None
            if ledger is not None:
                ledger.advance()  # pending writes are of an earlier epoch now, so they are rejected
            self.handle.releases.close()
        # The ledger is freed here, without the lock, because the finalizers of its pools wait for the device.

    def _copy_to_host(self, copies: PendingCopies) -> None:
        """Queue the copies on the copy stream. Then `copies.fences` contains only the fence behind them."""
        demotions = copies.demotions
        if not demotions:
            return
        with self._timeline.on_copy_stream():
            stream = self._timeline.copy_stream
            for fence in copies.fences:
                if fence.stream != stream:
                    self._timeline.wait(fence)
            pages = [page for demotion in demotions for page in demotion.pages]
            source_pages = [page for demotion in demotions for page in demotion.entry.pages]
            demotions[0].pool.copy_pages(pages, demotions[0].entry.pool, source_pages)
            copies.copied = self._timeline.record(stream)
        copies.fences = {copies.copied}
        if self._checksums is not None:
            for demotion in demotions:
                demotion.checksum = self._checksums.compute(
                    demotion.pool, demotion.pages, demotion.entry.num_rows, copies.copied
                )

    def _finish_write(
        self, ledger: Ledger, pending: PendingWrite, fence: Fence | None, *, failed: bool
    ) -> WriteResult:
        with self.lock:
            inserted = ledger.finish_write(pending, fence, failed=failed)
            return WriteResult(inserted, ledger.epoch, ledger.device.num_available)

    def _finish_early_copies(
        self, ledger: Ledger, copies: PendingCopies, fence: Fence | None, *, failed: bool
    ) -> None:
        with self.lock:
            ledger.finish_early_copies(copies, fence, failed=failed)
