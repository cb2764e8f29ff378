"""`TierCounts`: the counts of a tier's worker."""

from __future__ import annotations

from collections.abc import Mapping

from vitcache.device.locks import new_lock


class TierCounts:
    """Counts by name. Any thread adds and reads.

    Attributes
    ----------
    own
        The tier's own counts: a copy that the worker makes.
    """

    def __init__(self) -> None:
        self._lock = new_lock()
        self._counts = dict.fromkeys(
            (
                *("hits", "misses", "damaged", "late", "refused", "not_admitted", "failures"),
                *("stored", "store_failures", "skipped_stores", "erased"),
                *("fetched_bytes", "stored_bytes", "quarantined_bytes"),
            ),
            0,
        )
        self.own: Mapping[str, int] = {}

    def add(self, name: str, number: int = 1) -> None:
        """Add to a count."""
        with self._lock:
            self._counts[name] += number

    def copy(self) -> dict[str, int]:
        """Return all counts by name."""
        return self._counts.copy()
