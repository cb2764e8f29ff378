"""A reservation of host pages: for rows that `put` writes to the host tier only, or from a tier below."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vitcache._native import Pending
from vitcache.device.streams import CPU_STREAM, Fence
from vitcache.pages.pool import PagePool
from vitcache.pages.reservation import Reservation
from vitcache.rows import check_extent


class HostReservation(Reservation):
    """Pages of the host tier. Rows of a GPU are copied into them on the cache's own stream.

    The current stream never waits for that copy. It only copies the rows, rounded to the cache's dtype, to
    memory of the GPU, so that the caller may change its tensor. This memory is freed after the copy.
    """

    __slots__ = ()

    def host_parts(self) -> list[np.ndarray]:
        """Return the reserved memory, for a caller that writes the rows itself, on the host.

        Waits on the host until all work on the pages is complete. Queues nothing on any stream. Write the
        parts, then call `commit` or `cancel`; afterwards other rows may be written to them.

        Returns
        -------
        list of numpy.ndarray
            Writable uint8 views ``(num_bytes,)`` of the pages in row order, contiguous, one per run of
            adjacent pages: together ``num_rows * row_width * dtype.itemsize`` bytes. They keep the memory
            alive.

        Raises
        ------
        RuntimeError
            If the reservation was committed or cancelled.
        """
        self._wait_on_host(self._check_pending())
        return [segment.view(torch.uint8).view(-1).numpy() for segment in self.segments() if segment.numel()]

    def cancel(self) -> None:
        """Free the pages, and insert nothing. After `commit` or `cancel`, does nothing."""
        if self._pending and not self._pending[0].is_used:
            # No stream was allowed to write the pages, so no fence is needed behind them.
            self._finish(self._pending[0], Fence(CPU_STREAM, None), failed=True)
            self._clear_pending()
            return
        super().cancel()

    def write_checked(self, rows: Tensor) -> None:
        """Write rows whose shape and dtype were checked and that need no gradient."""
        pending = self._pending[0]
        pool: PagePool = pending.memory.at(pending.row_width)
        if not rows.is_cuda or self._timeline.copy_stream == CPU_STREAM:
            # The host writes the pages, so the work that used them before must be complete.
            self._wait_on_host(pending)
            pool.write(pending.pages, rows)
            return
        check_extent("rows", rows)  # as `PagePool.write` does
        staged = torch.empty(rows.shape, dtype=self.dtype, device=self.device).copy_(rows)
        ready = self._timeline.record(self._timeline.current())
        with self._timeline.on_copy_stream():
            self.use()
            self._timeline.wait(ready)
            staged.record_stream(torch.cuda.current_stream(self.device))
            pool.write(pending.pages, staged, non_blocking=True)

    def _wait_on_host(self, pending: Pending) -> None:
        for fence in map(Fence._make, pending.fences):
            self._timeline.wait_on_host(fence)

    def _fence(self, pending: Pending) -> Fence:
        if pending.is_used:
            return self._timeline.record(self._timeline.copy_stream)
        return Fence(CPU_STREAM, None)  # the CPU wrote the rows
