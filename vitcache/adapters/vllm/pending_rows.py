"""Rows of one step that are written to device pages last: by the launch of the placement, or by a copy."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from torch import Tensor

from vitcache.pages.lease import Lease
from vitcache.pages.reservation import Reservation


class PendingEntry(NamedTuple):
    """Reserved device pages, and the rows that belong in them: fresh rows, or a lease on a host entry."""

    key: bytes
    source: Tensor | Lease
    reservation: Reservation


class PendingRows:
    """The entries of one step whose device pages are reserved and not written yet, by identifier.

    The launch that places the rows of the step may write them to their pages, too: then each row is read
    once. `commit` copies the rows that no launch has written.

    Notes
    -----
    Only the worker's thread may call. Copies run on the current stream.
    """

    def __init__(self) -> None:
        self._entries: dict[str, PendingEntry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, identifier: str) -> bool:
        return identifier in self._entries

    def add(self, identifier: str, entry: PendingEntry) -> None:
        """Add an entry."""
        self._entries[identifier] = entry

    def get(self, identifier: str) -> PendingEntry | None:
        """Return an entry, or None."""
        return self._entries.get(identifier)

    def commit(self, written: Collection[str] = ()) -> dict[str, tuple[PendingEntry, Lease | None]]:
        """Insert all entries into the cache.

        Parameters
        ----------
        written
            Entries whose rows a launch on the current stream writes to their pages. Those of others are
            copied.

        Returns
        -------
        dict
            The entries by identifier, each with a lease on its pages, or None if the cache did not insert it.
        """
        committed: dict[str, tuple[PendingEntry, Lease | None]] = {}
        while self._entries:
            identifier, entry = next(iter(self._entries.items()))
            if identifier not in written:
                entry.reservation.write(entry.source)
            lease = entry.reservation.commit_lease()
            if isinstance(entry.source, Lease):
                entry.source.release()
            del self._entries[identifier]
            committed[identifier] = (entry, lease)
        return committed

    def cancel(self) -> None:
        """Free the pages of all entries, and insert nothing."""
        for entry in self._entries.values():
            entry.reservation.cancel()
            if isinstance(entry.source, Lease):
                entry.source.release()
        self._entries.clear()
