"""The private state of a `PinnedRing` and a `Ticket`, for tests. No other test file reads this state."""

from __future__ import annotations

from typing import Any

from vitcache import PinnedRing, Ticket, _native


def native_ring(ring: PinnedRing) -> _native.Ring:
    """Return the ring of the native module."""
    return ring._native


def copy_stream(ring: PinnedRing) -> Any:
    """Return the native stream that the ring queues its copies on."""
    return ring._native.stream


def wait_on_stream(ticket: Ticket, stream: Any) -> None:
    """Let a native stream wait for the copy, as `Ticket.wait` does on CUDA. The host does not wait."""
    ticket._native.wait(stream)


def copies_in_flight(ring: PinnedRing) -> int:
    """Return how many copies of the ring are not complete."""
    return len(ring._native.in_flight)
