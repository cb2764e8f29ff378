"""Claims, or single-flight: of those who miss one key at the same time, one encodes and the others wait."""

from __future__ import annotations

import threading
from typing import Protocol

from torch import Tensor

from vitcache.pages.reservation import Reservation


class Store(Protocol):
    """Where the holder of a claim enters what it encoded: a cache."""

    def put(
        self, key: bytes, rows: Tensor, *, epoch: int | None = None, encode_ms: float | None = None
    ) -> bool:
        """See `EmbeddingCache.put`."""

    def reserve(
        self, key: bytes, num_rows: int, *, epoch: int | None = None, encode_ms: float | None = None
    ) -> Reservation | None:
        """See `EmbeddingCache.reserve`."""


class Claims:
    """Which keys are claimed. Any thread may call anything; nothing here takes a lock or waits."""

    def __init__(self) -> None:
        self._owners: dict[tuple[int, bytes], threading.Event] = {}

    def claim(self, key: bytes, epoch: int, store: Store) -> Claim:
        """Claim a key in an epoch of the store, or find out that another has."""
        claim = Claim(self._owners, key, epoch, store)
        # One step for the interpreter, so that of two threads only one finds its own.
        claim._over = self._owners.setdefault((epoch, key), claim._own)
        return claim

    def __len__(self) -> int:
        """Return the number of keys that are claimed."""
        return len(self._owners)


class Claim:
    """The right to encode one item, or the hope that another will; made by `EmbeddingCache.claim`.

    A context manager. Whoever has the right gives it back by `release`, be the rows in the cache or not; one
    that is forgotten is given back when it is collected. Then those who wait look the key up again, and claim
    it if it is not there: so one of them takes over from a producer that failed.

    Attributes
    ----------
    key, epoch
        What was claimed, and the cache's epoch as it was then: rows that are entered through the claim are of
        that epoch, so claim before anything is read that they depend on.

    Notes
    -----
    Any thread may use it. A thread must not wait while it holds claims of its own: two that wait for each
    other would wait for ever.
    """

    __slots__ = ("_over", "_own", "_owners", "_store", "epoch", "key")

    def __init__(
        self, owners: dict[tuple[int, bytes], threading.Event], key: bytes, epoch: int, store: Store
    ) -> None:
        self._owners = owners
        self._store = store
        self.key = key
        self.epoch = epoch
        # What is claimed is known by this alone: an interrupt leaves nothing claimed by nobody.
        self._own = self._over = threading.Event()

    @property
    def is_mine(self) -> bool:
        """Whether this caller is to encode."""
        return self._owners.get((self.epoch, self.key)) is self._own

    def put(self, rows: Tensor, *, encode_ms: float | None = None) -> bool:
        """`EmbeddingCache.put` under the claimed key, of the claim's epoch; also once it is released."""
        return self._store.put(self.key, rows, epoch=self.epoch, encode_ms=encode_ms)

    def reserve(self, num_rows: int, *, encode_ms: float | None = None) -> Reservation | None:
        """`EmbeddingCache.reserve` under the claimed key, of the claim's epoch; also once it is released."""
        return self._store.reserve(self.key, num_rows, epoch=self.epoch, encode_ms=encode_ms)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the claim of the other is over; False if that took longer than `timeout_s` seconds.

        Raises
        ------
        RuntimeError
            If the claim is this caller's.
        """
        if self.is_mine:
            raise RuntimeError("this claim is the caller's own: encode and release it")
        return self._over.wait(timeout_s)

    def release(self) -> None:
        """Give the right back. A second call, or one on another's claim, does nothing."""
        if self.is_mine:
            self._own.set()  # first, so that nobody waits for ever if this is interrupted
            self._owners.pop((self.epoch, self.key), None)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        if hasattr(self, "_own"):  # else it was interrupted before it could claim anything
            self.release()
