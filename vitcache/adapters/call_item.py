"""`CallItem`: an item that the cache misses, with its key, its rows, and the copies of its pixels."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor

from vitcache.adapters.splits.call_parts import ItemCall
from vitcache.cache.claims import Claim
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pages.lease import Lease
from vitcache.pipeline.feature_mover import FeatureMover, MovedFeature
from vitcache.pipeline.lookup import claim_or_wait
from vitcache.ring.ticket import Ticket


class CallItem:
    """One item of a call that was not in the cache; `claim_missing` claims its key or leases its rows.

    Attributes
    ----------
    key, claim
        The item's key, and the claim on it. Another caller may own the claim.
    namespace
        The namespace of the weights in the key.
    rows
        The encoded rows, or a lease on the rows that another caller inserted. None: not encoded yet.
    call
        The arguments for which the stock method encodes this item alone.
    moved
        The tensors among these arguments whose copies to the tower's device are queued or complete. Emptied
        by `take_arguments`.
    """

    __slots__ = ("_tickets", "call", "claim", "key", "moved", "namespace", "rows")

    def __init__(self, key: bytes, namespace: bytes, call: ItemCall) -> None:
        self.key = key
        self.namespace = namespace
        self.call = call
        self.rows: Tensor | Lease | None = None
        self.claim: Claim | None = None
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

    def has_free_bytes(self, mover: FeatureMover) -> bool:
        """Whether `start` would now queue all copies without waiting for slots of the mover's ring."""
        return mover.has_free_bytes(*self.call.arguments.values())

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


def claim_missing(
    cache: EmbeddingCache, items: list[CallItem], leases: list[Lease], cleanup: ExitStack
) -> list[CallItem]:
    """Claim the keys of items that a look-up missed, and return the items that the caller must encode.

    On return this caller owns the claim on every returned item. If another caller owns one of the claims, the
    host waits for that owner, and looks the items up again. If the other caller inserted an item, the rows of
    the item are a lease.

    Parameters
    ----------
    leases
        Receives the leases. The caller releases them.
    cleanup
        Releases the claims when it closes.
    """
    missing = items
    while missing and not claim_or_wait(cache, missing, cleanup):
        for item, lease in zip(missing, cache.get_many([item.key for item in missing]), strict=True):
            if lease is not None:
                item.rows = lease
                leases.append(lease)
        missing = [item for item in missing if item.rows is None]
    return missing
