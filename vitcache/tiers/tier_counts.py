"""`TierCounts`: the counts of a tier's worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from vitcache.device.locks import new_lock

_MOST_ADDED = 256  # before they are summed


class TierCounts:
    """Counts by name. Any thread adds and reads.

    `add` takes the lock only now and then: a signal handler may wait for the worker while the thread that it
    has interrupted is in the middle of a call.

    Attributes
    ----------
    own
        The tier's own counts: a copy that the worker makes.
    """

    def __init__(self) -> None:
        self._lock = new_lock()  # of the sums
        self._added: deque[tuple[str, int]] = deque()
        self._counts = dict.fromkeys(
            (
                *("hits", "misses", "damaged", "late", "refused", "not_admitted", "not_worth", "failures"),
                *("stored", "store_failures", "skipped_stores", "erased"),
                *("fetched_bytes", "stored_bytes", "quarantined_bytes", "fetch_us"),
            ),
            0,
        )
        self.own: Mapping[str, int] = {}

    def add(self, name: str, number: int = 1) -> None:
        """Add to a count."""
        self._added.append((name, number))
        if len(self._added) >= _MOST_ADDED:
            with self._lock:
                self._sum()

    def copy(self) -> dict[str, int]:
        """Return all counts by name."""
        with self._lock:
            self._sum()
            return self._counts.copy()

    def _sum(self) -> None:
        while self._added:
            name, number = self._added.popleft()
            self._counts[name] += number
