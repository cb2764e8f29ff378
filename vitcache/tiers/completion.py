"""`Completion`: a wait for the end of work that another thread does."""

from __future__ import annotations

from queue import Empty, SimpleQueue
from time import monotonic

# Limit of one wait, which is then repeated. A signal may arrive just before the operating system begins to
# wait, and Python calls its handler at the end of the wait.
_CHECK_SECONDS = 1.0


class Completion:
    """Set once, by one thread; any number of threads wait for it. An interrupt of a wait changes nothing.

    Attributes
    ----------
    is_done
        Whether `finish` was called.
    """

    __slots__ = ("_signal", "is_done")

    def __init__(self) -> None:
        self.is_done = False
        self._signal: SimpleQueue[None] = SimpleQueue()

    def finish(self) -> None:
        """Wake all waiting threads, and let later waits return at once."""
        self.is_done = True
        self._signal.put(None)

    def wait(self, end: float) -> bool:
        """Wait until `finish` was called, at most until the time `end` of `time.monotonic`.

        Returns whether `finish` was called.
        """
        while not self.is_done:
            left = end - monotonic()
            if left <= 0:
                return False
            try:
                self._signal.get(timeout=min(left, _CHECK_SECONDS))
            except Empty:
                continue
            self._signal.put(None)  # for the other waits; if an interrupt skips this, they end at their limit
        return True
