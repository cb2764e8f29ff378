"""Checksums of rows in host memory: computed when the copy is complete, and compared at each look-up."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial

import torch

from vitcache._native import Entry
from vitcache.device.jobs import JobLostError
from vitcache.device.streams import Fence, Timeline
from vitcache.device.worker_threads import WorkerThreads
from vitcache.pages.pool import PagePool


class Checksums:
    """Computes checksums of host pages on its own thread, which waits for the copies into the pages.

    A checksum is the CRC-32 of the rows. It detects every change within 32 adjacent bits, and misses one in
    2^32 of all other changes. It does not protect against an attacker who can write host memory. Any thread
    may call `compute`. The thread ends when this object is garbage-collected. If the process cannot start it,
    the caller of `compute` waits for the copy and computes the checksum.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._threads = WorkerThreads("vitcache-checksums", 1)

    def compute(
        self, pool: PagePool, pages: Sequence[int], num_rows: int, copied: Fence | None
    ) -> Future[int]:
        """Return a future of the rows' checksum, computed once `copied` is complete.

        None: the rows are complete.

        If the entry is dropped before that, the pages may contain other rows when the checksum is computed.
        But the checksum of a dropped entry is not read.
        """
        [future] = self._threads.submit([partial(self._compute, pool, pages, num_rows, copied)])
        return future

    def _compute(self, pool: PagePool, pages: Sequence[int], num_rows: int, copied: Fence | None) -> int:
        if copied is not None:
            self._timeline.wait_on_host(copied)
        return checksum(pool, pages, num_rows)


def is_intact(entry: Entry) -> bool:
    """Whether the rows match the entry's checksum, if it has one. The host waits for the copy of the rows.

    Rows whose checksum was not computed before this process was forked have nothing to match, and are intact.
    """
    if entry.checksum is None:
        return True
    try:
        expected = entry.checksum.result()
    except JobLostError:
        return True
    return bool(expected == checksum(entry.memory.at(entry.row_width), entry.pages, entry.num_rows))


def checksum(pool: PagePool, pages: Sequence[int], num_rows: int) -> int:
    """Return the CRC-32 of rows in host memory."""
    value = 0
    for segment in pool.segments(pages, num_rows):
        value = zlib.crc32(segment.view(torch.uint8).numpy().data, value)
    return value
