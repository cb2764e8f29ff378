"""`TierBooks`: the pages and entries of a cache, as the worker of a tier uses them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from vitcache.cache.coordinator import CacheCoordinator
from vitcache.device.cuda_runtime import open_cuda_runtime
from vitcache.device.streams import Fence
from vitcache.pages.lease import Lease
from vitcache.pages.pinned import allocate_pinned
from vitcache.pages.reservation import Reservation
from vitcache.tiers.books import LeasedRows, ReservedRows
from vitcache.tiers.tier_jobs import StoreJob, Wanted
from vitcache.tiers.weights_name import CurrentWeights, Weights

# A fetch reserves at most this part of the host tier at a time, and at most this many entries.
PART_OF_HOST = 8
MOST_ENTRIES = 16


class TierBooks:
    """A cache as the worker of one tier uses it. Only its thread calls the methods, without any lock.

    On CUDA the thread has its own stream, on which rows of the device tier are copied to page-locked memory.
    The thread waits for its own stream, and for the copies into host pages, and never for a caller's stream.
    """

    def __init__(
        self,
        coordinator: CacheCoordinator,
        current: CurrentWeights,
        device: torch.device,
        dtype: torch.dtype,
        from_device: bool = True,
    ) -> None:
        self._coordinator = coordinator
        self._ledger = coordinator.ledger
        self._current = current
        self._device = device
        self._from_device = from_device
        self._element_bytes = dtype.itemsize
        self._host = coordinator.tiers[1]
        self._staging: torch.Tensor | None = None
        self._memory = [memory.view(torch.uint8).view(-1).numpy() for memory in coordinator.host_memory]

    def on_own_stream(self) -> AbstractContextManager[object]:
        """Return a context in which a new stream is current on CUDA."""
        if self._device.type != "cuda":
            return nullcontext()
        return torch.cuda.stream(torch.cuda.Stream(self._device))

    @property
    def weights(self) -> Weights:
        """The weights that the cache publishes now."""
        return self._current.weights

    @property
    def memory(self) -> Sequence[np.ndarray]:
        """The memory that all parts are in, as `Tier.register` takes it. It only ever grows."""
        return self._memory

    def row_bytes(self, row_width: int) -> int:
        """Bytes of a row of `row_width` elements."""
        return row_width * self._element_bytes

    def is_current(self, weights: Weights) -> bool:
        """Whether rows of these weights may be entered and published now."""
        try:
            return weights is self._current.weights and weights.epoch == self._ledger.epoch
        except RuntimeError:  # the cache was closed
            return False

    def batches(self, wanted: Sequence[Wanted]) -> Iterator[list[Wanted]]:
        """Divide entries into groups that need a small part of the host tier."""
        limit = self._host.num_pages // PART_OF_HOST
        batch: list[Wanted] = []
        num_pages = 0
        for each in wanted:
            _, num_rows, row_width, _ = each.name
            pages = self._host.pages_for(num_rows, row_width)
            if batch and (num_pages + pages > limit or len(batch) == MOST_ENTRIES):
                yield batch
                batch, num_pages = [], 0
            batch.append(each)
            num_pages += pages
        if batch:
            yield batch

    def reserve(self, wanted: Wanted) -> ReservedRows | None:
        """Reserve host pages, and wait until they can be written. None: too few, or the key is there."""
        key, num_rows, row_width, tenant = wanted.name
        epoch, may_evict = wanted.weights.epoch, wanted.may_evict
        reservation = self._coordinator.begin_fetch(key, num_rows, row_width, epoch, tenant, may_evict)
        if reservation is None:
            return None
        if wanted.is_void:  # discarded before the pages were reserved: the ledger does not know it
            reservation.cancel()
            return None
        return ReservedRows(reservation, reservation.host_parts())

    def insert(self, wanted: Wanted, reservation: Reservation) -> bool:
        """Enter the rows of a reservation into the host tier; False if they are not wanted any more."""
        if wanted.is_dropped or not self.is_current(wanted.weights):
            reservation.cancel()
            return False
        return reservation.commit()

    def read(self, job: StoreJob) -> LeasedRows | None:
        """Lease the rows of an entry, and wait until they are written and in host memory.

        None: the entry left the cache, or the host tier if only that is read, was replaced by rows of another
        tenant, or does not match its checksum. The parts of an entry of the device tier of a GPU are valid
        until the next call.
        """
        lease: Lease | None = self._ledger.peek(job.key, job.num_rows, job.row_width, not self._from_device)
        if lease is None:
            return None
        try:
            entry = self._ledger.lease_entry(lease)
            if entry is not None and entry.tenant != job.tenant:
                lease.release()
                return None
            if lease.tier == "device" and self._device.type == "cuda":
                staged = self._stage(lease, job.num_bytes)
                lease.release()  # now, as the tier may be slow, and a leased entry cannot be evicted
                return LeasedRows(lease, [staged])
            if entry is not None:
                fence = Fence._make(entry.written)
                if fence.event is not None:
                    self._coordinator.timeline.wait_on_host(fence)
                if lease.tier == "host" and not self._coordinator.is_intact(entry):
                    lease.release()
                    return None
            parts = [segment.view(torch.uint8).view(-1).numpy() for segment in lease.segments()]
            return LeasedRows(lease, parts)
        except BaseException:
            lease.release()
            raise

    def retract(self, job: StoreJob) -> None:
        """Let a later hit offer the entry again."""
        self._ledger.retract_offer(job.key)

    def _stage(self, lease: Lease, num_bytes: int) -> np.ndarray:
        """Copy rows of a GPU to page-locked memory on the current stream, and wait for the copy."""
        if self._staging is None or self._staging.numel() < num_bytes:
            # A power of two: earlier ones stay, as the engine may have them, and are together no larger.
            size = 1 << (num_bytes - 1).bit_length()
            self._staging = allocate_pinned(size, self._device, open_cuda_runtime())
            self._memory.append(self._staging.numpy())
        timeline = self._coordinator.timeline
        lease.use()
        first = 0
        try:
            for segment in lease.segments():
                rows = segment.view(torch.uint8).view(-1)
                self._staging[first : first + rows.numel()].copy_(rows, non_blocking=True)
                first += rows.numel()
        finally:
            timeline.wait_on_host(timeline.record(timeline.current()))
        return self._staging[:num_bytes].numpy()
