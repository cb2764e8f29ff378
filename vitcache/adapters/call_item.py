"""One item of a call: its key, where its rows are, and its pixels on their way to the tower."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vitcache.adapters.families import ItemCall
from vitcache.cache.claims import Claim
from vitcache.pages.lease import Lease
from vitcache.pipeline.feature_mover import FeatureMover, MovedFeature
from vitcache.ring.ticket import Ticket


class CallItem:
    """What a call wants of one item; `look_up` finds its rows or claims them.

    Attributes
    ----------
    key, num_rows, rows, claim, error
        As in `vitcache.pipeline.lookup.LookupItem`. How many rows the tower gives is not known before.
    call
        The arguments that make the stock method encode it.
    moved
        Those that are tensors, on the tower's device or on their way there, until they were taken.
    """

    __slots__ = ("_tickets", "call", "claim", "error", "key", "moved", "num_rows", "rows")

    def __init__(self, key: bytes, call: ItemCall) -> None:
        self.key = key
        self.call = call
        self.num_rows: int | None = None
        self.rows: Tensor | Lease | None = None
        self.claim: Claim | None = None
        self.error: Exception | None = None
        self.moved: dict[str, MovedFeature] = {}
        self._tickets: list[Ticket] = []

    def start(self, mover: FeatureMover) -> None:
        """Begin to move what the tower reads: all of it, or nothing if that raises."""
        started: dict[str, MovedFeature] = {}
        for name, value in self.call.arguments.items():
            if isinstance(value, Tensor):
                started[name] = moved = mover.start(value)
                if moved.ticket is not None:
                    self._tickets.append(moved.ticket)
        self.moved = started

    def take_arguments(self) -> dict[str, Any]:
        """Return the arguments, ordered behind what was moved for them, which is not kept here any more."""
        moved, self.moved = self.moved, {}
        return {**self.call.arguments, **{name: one.ready() for name, one in moved.items()}}

    def wait_until_read(self) -> None:
        """Wait on the host until the pixels may change: for the ring's threads, not for the device."""
        while self._tickets:
            self._tickets.pop().wait_source_read()
