"""Pixels of items to encode, on their way to the vision tower's device."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vitcache.ring.pinned_ring import PinnedRing
from vitcache.ring.ticket import Ticket

RING_BYTES = 128 << 20
# Below, a copy is over before a ring's thread has woken up.
RING_FROM_BYTES = 64 << 10


class PixelMover:
    """Moves pixels from the host, through a pinned ring where they are pageable. Any thread may use it.

    Parameters
    ----------
    ring
        None: one of `RING_BYTES` is made for the first pixels that go to a CUDA device.
    """

    def __init__(self, ring: PinnedRing | None = None) -> None:
        self._ring = ring
        self._lock = threading.Lock()

    @contextmanager
    def moved(self, arguments: dict[str, Any], device: torch.device) -> Iterator[dict[str, Any]]:
        """The arguments with every tensor on `device`, ordered before what the current stream gets now.

        When it ends the sources have been read, and may change.
        """
        tickets: list[Ticket] = []
        try:
            moved = {name: self._move(value, device, tickets) for name, value in arguments.items()}
            for ticket in tickets:
                ticket.wait()
            yield moved
        finally:
            for ticket in tickets:
                ticket.wait_source_read()

    def _move(self, value: Any, device: torch.device, tickets: list[Ticket]) -> Any:
        if not isinstance(value, Tensor):
            return value
        ring = self._ring_for(device) if value.nbytes >= RING_FROM_BYTES else None
        if ring is None or value.device.type != "cpu" or value.is_pinned():
            # Pageable memory has been read when this returns. Pinned memory would be read later, and its
            # owner may have put other pixels there by then: that copy is waited for.
            return value.to(device, non_blocking=not value.is_pinned())
        target = torch.empty(value.shape, dtype=value.dtype, device=device)
        tickets.append(ring.copy_to(target, value))
        return target

    def _ring_for(self, device: torch.device) -> PinnedRing | None:
        """The ring to `device`; none where there can be none, or where it goes elsewhere."""
        with self._lock:
            if self._ring is None and device.type == "cuda":
                self._ring = PinnedRing(RING_BYTES, backend="cuda", device=device)
            ring = self._ring
        return ring if ring is not None and ring.device == device else None
