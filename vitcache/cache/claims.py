"""Claims, or single-flight: if several callers miss one key, one encodes and the other callers wait."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from vitcache._native import KeyClaim, Ledger
from vitcache.arguments import to_timeout
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
        tenant: str = "",
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
        tenant: str = "",
    ) -> Reservation | None:
        """See `EmbeddingCache.reserve`."""


def claim(ledger: Ledger, key: bytes, epoch: int, store: Store) -> Claim:
    """Claim a key in an epoch of the store, or return a claim that waits for the owner. Never waits."""
    return Claim(ledger.claim(epoch, key, "EmbeddingCache.claim"), key, epoch, store)


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
    Any thread may use a claim. The thread that made it counts as the one that encodes, until another thread
    enters the claim or calls `put` or `reserve`. If a wait without a time limit would never end, because the
    owner of the key waits for this thread, or is this thread, `wait` raises RuntimeError.

    Signal handlers run during a wait. A claim is released when it is freed, also after an exception of a
    signal handler. In a forked child, claims of threads that the child does not have are released.

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

    __slots__ = ("_claim", "_store", "epoch", "key")

    def __init__(self, claim: KeyClaim, key: bytes, epoch: int, store: Store) -> None:
        self._claim = claim  # native: it is released when it is freed, without any Python code
        self._store = store
        self.key = key
        self.epoch = epoch

    @property
    def is_mine(self) -> bool:
        """Whether this claim is the owner's: its caller must encode the item and release the claim."""
        return self._claim.is_mine

    def put(
        self, rows: Tensor, *, encode_ms: float | None = None, tier: str = "device", tenant: str = ""
    ) -> bool:
        """Call `EmbeddingCache.put` with the key and epoch of the claim. Also allowed after `release`."""
        self._claim.take_over("Claim.put")
        return self._store.put(
            self.key, rows, epoch=self.epoch, encode_ms=encode_ms, tier=tier, tenant=tenant
        )

    def reserve(
        self,
        num_rows: int,
        *,
        encode_ms: float | None = None,
        row_width: int | None = None,
        tenant: str = "",
    ) -> Reservation | None:
        """Call `EmbeddingCache.reserve` with the key and epoch of the claim. Also allowed after `release`."""
        self._claim.take_over("Claim.reserve")
        return self._store.reserve(
            self.key, num_rows, epoch=self.epoch, encode_ms=encode_ms, row_width=row_width, tenant=tenant
        )

    def wait(self, timeout_s: float | None = None, *, call: str = "Claim.wait") -> bool:
        """Block until the owner releases its claim.

        Parameters
        ----------
        timeout_s
            Seconds to wait at most. None: no limit.
        call
            The caller's public function, for messages.

        Returns
        -------
        bool
            False if the owner did not release its claim within `timeout_s`.

        Raises
        ------
        RuntimeError
            If this claim is the owner's. Without a time limit, if the wait would never end: the owner is a
            call of this thread, or waits for one. The message names both calls.
        ValueError
            If `timeout_s` is negative, infinite or NaN.
        TypeError
            If `timeout_s` is not a number.
        """
        if self.is_mine:
            raise RuntimeError(
                "the owner must not wait for its own claim: encode the item and release the claim"
            )
        return self._claim.wait(call, to_timeout("timeout_s", timeout_s))

    def release(self) -> None:
        """End the claim, so that waiting callers continue. Does nothing if this claim is not the owner's."""
        self._claim.release()

    def __enter__(self) -> Claim:
        self._claim.take_over("the block of a Claim")
        return self

    def __exit__(self, *_: object) -> None:
        self._claim.release()

    __reduce_ex__ = refuse_copies("call `EmbeddingCache.claim` again")

    @described
    def __repr__(self) -> str:
        waiting = "released" if self._claim.is_released else "waits for the owner"
        state = "owner" if self.is_mine else waiting
        return f"{self.key.hex()[:8]}, epoch {self.epoch}, {state}"
