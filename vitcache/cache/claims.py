"""Claims, or single-flight: of those who miss one key at the same time, one encodes and the others wait."""

from __future__ import annotations

import threading
from collections.abc import Hashable


class Claims:
    """Which keys are claimed. Any thread may call anything; nothing here takes a lock or waits."""

    def __init__(self) -> None:
        self._owners: dict[Hashable, threading.Event] = {}

    def claim(self, key: Hashable) -> Claim:
        """Claim a key, or find out that another has."""
        claim = Claim(self._owners, key)
        # One step for the interpreter, so that of two threads only one finds its own.
        claim._over = self._owners.setdefault(key, claim._own)
        return claim

    def __len__(self) -> int:
        """Return the number of keys that are claimed."""
        return len(self._owners)


class Claim:
    """The right to encode one item, or the hope that another will; made by `EmbeddingCache.claim`.

    A context manager. Whoever has the right gives it back by `release`, be the rows in the cache or not; one
    that is forgotten is given back when it is collected. Then those who wait look the key up again, and claim
    it if it is not there: so one of them takes over from a producer that failed.

    Notes
    -----
    Any thread may use it. A thread must not wait while it holds claims of its own: two that wait for each
    other would wait for ever.
    """

    __slots__ = ("_key", "_over", "_own", "_owners")

    def __init__(self, owners: dict[Hashable, threading.Event], key: Hashable) -> None:
        self._owners = owners
        self._key = key
        # What is claimed is known by this alone: an interrupt leaves nothing claimed by nobody.
        self._own = self._over = threading.Event()

    @property
    def is_mine(self) -> bool:
        """Whether this caller is to encode."""
        return self._owners.get(self._key) is self._own

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
            self._owners.pop(self._key, None)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        if hasattr(self, "_own"):  # else it was interrupted before it could claim anything
            self.release()
