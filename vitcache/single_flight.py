"""Single-flight: of those who miss one key at the same time, one encodes and the others wait for it."""

from __future__ import annotations

import threading
from collections.abc import Hashable


class SingleFlight:
    """Which keys are claimed. Any thread may call anything; nothing here takes a lock or waits."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, threading.Event] = {}

    def claim(self, key: Hashable) -> Claim:
        """Claim a key, or find out that another has."""
        own = threading.Event()
        # One step for the interpreter, so that of two threads only one finds its own.
        over = self._flights.setdefault(key, own)
        return Claim(self, key, over, over is own)

    def __len__(self) -> int:
        """Return the number of keys that are claimed."""
        return len(self._flights)

    def _land(self, key: Hashable, over: threading.Event) -> None:
        del self._flights[key]
        over.set()


class Claim:
    """The right to encode one item, or the hope that another will; made by `EmbeddingCache.claim`.

    A context manager. Whoever has the right gives it back by `release`, be the rows in the cache or not; one
    that is forgotten is given back when it is collected. Then those who wait look the key up again, and claim
    it if it is not there: so one of them takes over from a producer that failed.

    Attributes
    ----------
    is_mine
        Whether this caller is to encode.

    Notes
    -----
    Any thread may use it. A thread must not wait while it holds claims of its own: two that wait for each
    other would wait for ever.
    """

    __slots__ = ("_key", "_over", "_single_flight", "is_mine")

    def __init__(
        self, single_flight: SingleFlight, key: Hashable, over: threading.Event, is_mine: bool
    ) -> None:
        self._single_flight = single_flight
        self._key = key
        self._over = over
        self.is_mine = is_mine

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
            self.is_mine = False
            self._single_flight._land(self._key, self._over)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()
