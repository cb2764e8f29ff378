"""The copies from the device tier to the host tier, on the cache's own stream, and their checksums."""

from __future__ import annotations

from vitcache._native import Pending
from vitcache.cache.checksums import Checksums
from vitcache.device.streams import Fence, Timeline


class HostCopies:
    """Queues copies to the host tier. No lock is held and no stream of a caller waits.

    Parameters
    ----------
    checksums
        Computes the checksums of the copies; None: they have none.
    """

    def __init__(self, timeline: Timeline, checksums: Checksums | None) -> None:
        self._timeline = timeline
        self._checksums = checksums

    def demote(self, pending: Pending) -> None:
        """Queue the demotions of a pending write, at least one.

        Then `pending.fences` has only the fence behind them.
        """
        demotions = pending.demotions
        with self._timeline.on_copy_stream():
            stream = self._timeline.copy_stream
            for fence in map(Fence._make, pending.fences):
                if fence.stream != stream:
                    self._timeline.wait(fence)
            pages = [page for demotion in demotions for page in demotion.pages]
            source_pages = [page for demotion in demotions for page in demotion.entry.pages]
            pending.begin_copies(stream)
            demotions[0].memory.copy_pages(pages, demotions[0].entry.memory, source_pages)
            copied = self._timeline.record(stream)
        pending.set_copied(copied)
        if self._checksums is not None:
            for demotion in demotions:
                entry = demotion.entry
                pool = demotion.memory.at(entry.row_width)
                demotion.set_checksum(self._checksums.compute(pool, demotion.pages, entry.num_rows, copied))

    def write_through(self, pending: Pending, written: Fence) -> None:
        """Queue the host copy of rows that were written to the device tier before `written`."""
        memory, pages, fences = pending.host_copy
        stream = self._timeline.copy_stream
        try:
            with self._timeline.on_copy_stream():
                for fence in (written, *map(Fence._make, fences)):
                    if fence.stream != stream:
                        self._timeline.wait(fence)
                pending.begin_copies(stream)
                memory.copy_pages(pages, pending.memory, pending.pages)
                copied = self._timeline.record(stream)
            pending.set_host_copied(copied)
        except BaseException:
            # The copy may be queued, without a fence behind it.
            self._timeline.synchronize()
            raise
        self.add_checksum(pending, pages, copied)

    def add_checksum(self, pending: Pending, pages: tuple[int, ...], written: Fence) -> None:
        """Compute the checksum of rows that are in host pages once `written` is complete."""
        if self._checksums is not None:
            memory = pending.host_copy[0] if pending.host_copy is not None else pending.memory
            pool = memory.at(pending.row_width)
            copied = None if written.event is None else written  # None: the CPU wrote the rows
            pending.set_checksum(self._checksums.compute(pool, pages, pending.num_rows, copied))
