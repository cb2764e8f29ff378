"""A reservation of host pages, for rows that `EmbeddingCache.put` writes to the host tier only."""

from __future__ import annotations

import torch
from torch import Tensor

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

    def write_checked(self, rows: Tensor) -> None:
        """Write rows whose shape and dtype were checked and that need no gradient."""
        pending = self._pending[0]
        pool: PagePool = pending.memory.at(pending.row_width)
        if not rows.is_cuda or self._timeline.copy_stream == CPU_STREAM:
            # The host writes the pages, so the work that used them before must be complete.
            for fence in map(Fence._make, pending.fences):
                self._timeline.wait_on_host(fence)
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

    def _fence(self) -> Fence:
        if self._streams:
            return self._timeline.record(self._timeline.copy_stream)
        return Fence(CPU_STREAM, None)  # the CPU wrote the rows
