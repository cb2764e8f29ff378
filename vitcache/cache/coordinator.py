"""The cache's books as threads share them: behind a lock, outside of which all copies and fences are made."""

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
from vitcache.pages.pending import Flight
from vitcache.pages.reservation import Abandoned, Landing, Reservation, abandon, logger


class SharedLedger:
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

    def reserve(self, depart: Callable[[Ledger], Flight | None]) -> Reservation | None:
        """Copy away what makes room for a flight, if it departs."""
        self.drain()
        flight: Flight | None = None
        try:
            with self.lock:
                ledger = self.open()
                flight = depart(ledger)
            if flight is None:
                return None
            self._copy_aside(flight)
            land = partial(self._land, ledger)
            return Reservation(flight, self.handle.device, self._timeline, land, self._forgotten)
        except BaseException:
            if flight is not None:
                self._abandon(ledger, flight)
            raise

    def expect(self, num_rows: Sequence[int]) -> None:
        """Begin to copy away what would make room for items of so many rows, and leave it where it is."""
        self.drain()
        flight: Flight | None = None
        try:
            with self.lock:
                ledger = self.open()
                flight = ledger.depart_ahead(num_rows)
            if flight is not None:
                self._copy_aside(flight)
                self._land(ledger, flight, flight.copied, failed=False)
        except BaseException:
            if flight is not None:
                self._abandon(ledger, flight)
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

    def _copy_aside(self, flight: Flight) -> None:
        """Copy the victims to the host tier, on the copy stream: who writes their pages waits for that."""
        if not flight.demotions:
            return
        with self._timeline.on_copy_stream():
            stream = self._timeline.copy_stream
            for fence in flight.fences:
                if fence.stream != stream:
                    self._timeline.wait(fence)
            pool = flight.demotions[0].pool
            pages = [page for demotion in flight.demotions for page in demotion.pages]
            source_pages = [page for demotion in flight.demotions for page in demotion.entry.pages]
            pool.copy_pages(pages, flight.pool, source_pages)
            flight.copied = self._timeline.record(stream)
        flight.fences = {flight.copied}
        if self._checksums is not None:
            for demotion in flight.demotions:
                demotion.checksum = self._checksums.take(
                    demotion.pool, demotion.pages, demotion.entry.num_rows, flight.copied
                )

    def _abandon(self, ledger: Ledger, flight: Flight) -> None:
        """Give back the pages of a flight that failed, of whose copies some may be queued."""
        copying = frozenset({self._timeline.copy_stream})
        abandon(flight, self._timeline, partial(self._land, ledger), copying)

    def _land(self, ledger: Ledger, flight: Flight, fence: Fence | None, *, failed: bool) -> Landing:
        with self.lock:
            admitted = ledger.land(flight, fence, failed=failed)
            return Landing(admitted, ledger.epoch, ledger.device.num_available)
