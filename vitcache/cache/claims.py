"""Claims, or single-flight: if several callers miss one key, one encodes and the other callers wait."""

from __future__ import annotations

import threading
from typing import Protocol

from torch import Tensor

from vitcache._native import Ledger
from vitcache.handles import described, refuse_copies
from vitcache.pages.reservation import Reservation


class Store(Protocol):
    """A cache that the owner of a claim inserts its rows into."""

    def put(
        self,
        key: bytes,
        rows: Tensor,
        *,
        epoch: int | None = None,
        encode_ms: float | None = None,
        tier: str = "device",
    ) -> bool:
        """See `EmbeddingCache.put`."""

    def reserve(
        self,
        key: bytes,
        num_rows: int,
        *,
        epoch: int | None = None,
        encode_ms: float | None = None,
        row_width: int | None = None,
    ) -> Reservation | None:
        """See `EmbeddingCache.reserve`."""


def claim(ledger: Ledger, key: bytes, epoch: int, store: Store) -> Claim:
    """Claim a key in an epoch of the store, or return a claim that waits for the owner. Never waits."""
    made = Claim(ledger, key, epoch, store)
    # One step of the ledger: of several callers, exactly one registers its own event.
    made._owner_event = ledger.claim(epoch, key, made._own_event)
    return made


class Claim:
    """The right to encode one key, or a handle to wait for the caller that has it.

    `EmbeddingCache.claim` returns it, and never waits. Of all callers that claim a key, the first one is the
    owner: `is_mine` of its claim is true. The owner encodes the item, inserts the rows with `put` or
    `reserve`, and calls `release`, even if the encode failed. The other callers call `wait`, and then look
    the key up again. If the key is still missing, they claim it again, and one of them becomes the owner.

    A claim is a context manager, and is released on exit. A claim that is garbage-collected is released, too.

    Attributes
    ----------
    key
        The key that was claimed.
    epoch
        The cache's epoch at the time of the claim. `put` and `reserve` insert rows of this epoch, so claim a
        key before you read the weights and inputs that the rows depend on.

    Notes
    -----
    Any thread may use a claim. A thread must not wait while it owns claims: two threads that wait for each
    other's claims would never return.

    Examples
    --------
    >>> import torch
    >>> from vitcache import EmbeddingCache
    >>> cache = EmbeddingCache(2, dtype=torch.float32, device="cpu", device_bytes=64, page_rows=2)
    >>> key = bytes(32)
    >>> with cache.claim(key) as claim:
    ...     if claim.is_mine and key not in cache:
    ...         inserted = claim.put(torch.ones(1, 2))  # the rows that the encoder returned
    ...     elif not claim.is_mine:
    ...         claim.wait()  # then look the key up again
    >>> key in cache
    True
    """

    __slots__ = ("_ledger", "_own_event", "_owner_event", "_store", "epoch", "key")

    def __init__(self, ledger: Ledger, key: bytes, epoch: int, store: Store) -> None:
        self._ledger = ledger
        self._store = store
        self.key = key
        self.epoch = epoch
        # The owner is the claim whose own event is registered. The event exists before it is registered, so
        # an interrupt cannot leave a key claimed without an owner that releases it.
        self._own_event = self._owner_event = threading.Event()

    @property
    def is_mine(self) -> bool:
        """Whether this claim is the owner's: its caller must encode the item and release the claim."""
        return self._ledger.owns_claim(self.epoch, self.key, self._own_event)

    def put(self, rows: Tensor, *, encode_ms: float | None = None, tier: str = "device") -> bool:
        """Call `EmbeddingCache.put` with the key and epoch of the claim. Also allowed after `release`."""
        return self._store.put(self.key, rows, epoch=self.epoch, encode_ms=encode_ms, tier=tier)

    def reserve(
        self, num_rows: int, *, encode_ms: float | None = None, row_width: int | None = None
    ) -> Reservation | None:
        """Call `EmbeddingCache.reserve` with the key and epoch of the claim. Also allowed after `release`."""
        return self._store.reserve(
            self.key, num_rows, epoch=self.epoch, encode_ms=encode_ms, row_width=row_width
        )

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until the owner releases its claim.

        Parameters
        ----------
        timeout_s
            Seconds to wait at most. None: no limit.

        Returns
        -------
        bool
            False if the owner did not release its claim within `timeout_s`.

        Raises
        ------
        RuntimeError
            If this claim is the owner's.
        """
        if self.is_mine:
            raise RuntimeError(
                "the owner must not wait for its own claim: encode the item and release the claim"
            )
        return self._owner_event.wait(timeout_s)

    def release(self) -> None:
        """End the claim, so that waiting callers continue. Does nothing if this claim is not the owner's."""
        if self.is_mine:
            self._own_event.set()  # first: if an interrupt follows, no caller waits forever
            self._ledger.release_claim(self.epoch, self.key, self._own_event)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    __reduce_ex__ = refuse_copies("call `EmbeddingCache.claim` again")

    @described
    def __repr__(self) -> str:
        if self.is_mine:
            state = "owner"
        else:
            state = "released" if self._owner_event.is_set() else "waits for the owner"
        return f"{self.key.hex()[:8]}, epoch {self.epoch}, {state}"

    def __del__(self) -> None:
        if hasattr(self, "_own_event"):  # False if `__init__` was interrupted before the claim was registered
            self.release()
