"""Checksums of what lies in host memory: taken once a copy is over, compared at each look-up."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from vitcache.device.streams import Fence, Timeline
from vitcache.pages.entry import Entry
from vitcache.pages.pool import PagePool


class Checksums:
    """Takes checksums of host pages on a thread of its own, which waits for the copies there.

    The CRC-32 of the rows: it finds every change of up to 32 adjacent bits, and one in 2^32 of others slips
    through. Against who writes what he likes it is no help. Any thread may call. The thread ends with this
    object.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._executor = ThreadPoolExecutor(1, "vitcache-checksums")

    def take(self, pool: PagePool, pages: Sequence[int], num_rows: int, copied: Fence) -> Future[int]:
        """Return at once; the future has the checksum of rows that are there once `copied` was passed.

        If the pages have gone to others by then, it is of nothing, and nobody asks for it.
        """
        return self._executor.submit(self._take, pool, pages, num_rows, copied)

    def _take(self, pool: PagePool, pages: Sequence[int], num_rows: int, copied: Fence) -> int:
        self._timeline.wait_on_host(copied)
        return checksum(pool, pages, num_rows)


def is_intact(entry: Entry) -> bool:
    """Whether an entry is as its checksum has it, or has none; waits for the copy to it and its checksum."""
    taken = entry.checksum
    return taken is None or taken.result() == checksum(entry.pool, entry.pages, entry.num_rows)


def checksum(pool: PagePool, pages: Sequence[int], num_rows: int) -> int:
    """Return the CRC-32 of rows in host memory."""
    value = 0
    for segment in pool.segments(pages, num_rows):
        value = zlib.crc32(segment.view(torch.uint8).numpy().data, value)
    return value
