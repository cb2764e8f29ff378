"""The ledger as threads share it: behind a lock, outside of which all copies and fences are made."""

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
from vitcache.pages.reservation import Abandoned, Outcome, Reservation, abandon, logger


class CacheCoordinator:
    """A ledger, what leases and reservations give back to it, and the copies of what makes room.

    Attributes
    ----------
    lock
        Guards what `open` releases.
    handle
        What its leases have of it.

    Notes
    -----
    Any thread may call anything, without the lock; `open` with it.
    """

    def __init__(self, ledger: Ledger, handle: CacheHandle, checksums: Checksums | None) -> None:
        self.lock = threading.Lock()
        self.handle = handle
        self._ledger: Ledger | None = ledger
        self._timeline = handle.timeline
        self._checksums = checksums
        self._drain_lock = threading.Lock()  # taken before `lock` where both are
        self._forgotten: deque[Abandoned] = deque()
        self._copying = frozenset({self._timeline.copy_stream})  # where copies of what failed may be queued

    def open(self) -> Ledger:
        """Return the ledger.

        Raises
        ------
        RuntimeError
            If the cache was closed.
        """
        if self._ledger is None:
            raise RuntimeError("the cache was closed")
        return self._ledger

    def drain(self) -> None:
        """Take back released leases and forgotten reservations. What a caller gave up before is taken back
        when this returns.
        """
        with self._drain_lock:
            while self._forgotten:
                abandon(*self._forgotten.popleft())
            releases = self.handle.releases.take()
            if not releases:
                return
            streams = {stream for _, read_on in releases for stream in read_on}
            outdated = []  # kept, so that their events are destroyed without the lock
            try:
                # One fence per stream for all of them, behind everything that they gave it.
                fences = {stream: self._timeline.record(stream) for stream in streams}
                with self.lock:
                    ledger = self.open()
                    while releases:
                        entry, read_on = releases.pop()
                        for stream in read_on:
                            outdated.append(entry.reads.get(stream))
                            entry.reads[stream] = fences[stream]
                        ledger.unpin(entry)
            finally:
                for done in releases:
                    self.handle.releases.add(done)

    def reserve(self, begin: Callable[[Ledger], PendingWrite | None]) -> Reservation | None:
        """Copy away what makes room for a pending write, if one begins."""
        self.drain()
        pending: PendingWrite | None = None
        try:
            with self.lock:
                ledger = self.open()
                pending = begin(ledger)
            if pending is None:
                return None
            self._copy_to_host(pending.copies)
            finish = partial(self._finish, ledger)
            return Reservation(pending, self.handle.device, self._timeline, finish, self._forgotten)
        except BaseException:
            if pending is not None:
                abandon(pending, self._timeline, partial(self._finish, ledger), self._copying)
            raise

    def expect(self, num_rows: Sequence[int]) -> None:
        """Begin to copy away what would make room for items of so many rows, and leave it where it is."""
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
                abandon(copies, self._timeline, partial(self._finish_early_copies, ledger), self._copying)
            raise

    def is_intact(self, entry: Entry) -> bool:
        """Compare the checksum of a leased entry; one that has changed is dropped, counted and logged."""
        if is_intact(entry):
            return True
        with self.lock:
            self.open().report_corrupt(entry)
        logger.error(
            "%d rows in the host tier are not those that came there: their checksum is another one; the "
            "entry was dropped",
            entry.num_rows,
        )
        return False

    def close(self) -> None:
        """Drop every entry. A second call does nothing."""
        with self._drain_lock, self.lock:
            ledger, self._ledger = self._ledger, None
            if ledger is not None:
                ledger.advance()  # so that no put under way is admitted
            self.handle.releases.close()
        # The ledger dies here, without the lock, as its pools wait for the device.

    def _copy_to_host(self, copies: PendingCopies) -> None:
        """Copy the victims to the host tier, on the copy stream: who writes their pages waits for that."""
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
                demotion.checksum = self._checksums.take(
                    demotion.pool, demotion.pages, demotion.entry.num_rows, copies.copied
                )

    def _finish(self, ledger: Ledger, pending: PendingWrite, fence: Fence | None, *, failed: bool) -> Outcome:
        with self.lock:
            admitted = ledger.finish(pending, fence, failed=failed)
            return Outcome(admitted, ledger.epoch, ledger.device.num_available)

    def _finish_early_copies(
        self, ledger: Ledger, copies: PendingCopies, fence: Fence | None, *, failed: bool
    ) -> None:
        with self.lock:
            ledger.finish_early_copies(copies, fence, failed=failed)
