"""`CallItem`: one item of a call, with its key, its rows, and the copies of its pixels to the tower."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vitcache.adapters.families import ItemCall
from vitcache.cache.claims import Claim
from vitcache.pages.lease import Lease
from vitcache.pipeline.feature_mover import FeatureMover, MovedFeature
from vitcache.ring.ticket import Ticket


class CallItem:
    """One item of a call; `look_up` leases its rows or claims its key.

    Attributes
    ----------
    key, num_rows, rows, claim, error
        As in `vitcache.pipeline.lookup.LookupItem`. `num_rows` stays None: only the tower knows it.
    call
        The arguments for which the stock method encodes this item alone.
    moved
        The tensors among these arguments whose copies to the tower's device are queued or complete. Emptied
        by `take_arguments`.
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
        """Queue copies of tensor arguments to the tower's device. If a copy fails, `moved` stays empty."""
        started: dict[str, MovedFeature] = {}
        for name, value in self.call.arguments.items():
            if isinstance(value, Tensor):
                started[name] = moved = mover.start(value)
                if moved.ticket is not None:
                    self._tickets.append(moved.ticket)
        self.moved = started

    def take_arguments(self) -> dict[str, Any]:
        """Return the arguments with the copied tensors in them, and keep no reference to the copies.

        The current stream waits for the copies.
        """
        moved, self.moved = self.moved, {}
        return {**self.call.arguments, **{name: copied.ready() for name, copied in moved.items()}}

    def wait_until_read(self) -> None:
        """Block the host until the ring's threads have read the pixels; it does not wait for the device."""
        while self._tickets:
            self._tickets.pop().wait_source_read()
