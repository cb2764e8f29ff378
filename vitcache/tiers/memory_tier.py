"""`MemoryTier`: copies of rows in the memory of the process, the simplest `Tier`."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import SupportsIndex

import numpy as np

from vitcache.arguments import to_bytes
from vitcache.handles import describe_count, described, refuse_copies
from vitcache.tiers.checks import check_parts
from vitcache.tiers.protocol import EntryName, FetchOutcome, Transfer


class MemoryTier:
    """Keeps copies of rows in memory. An example of a `Tier`, and the reference of the tests of tiers.

    Entries and generations belong to the object: two caches of one process can use it one after the other.
    The entry that was used longest ago is evicted first. One thread at a time calls its methods, as a
    cache's worker thread does. No method uses a stream.

    Parameters
    ----------
    max_bytes
        Limit of the bytes of all rows, as an int or a str such as ``"1GiB"``, at least 1.

    Raises
    ------
    TypeError
        If `max_bytes` is neither an int nor a str.
    ValueError
        If `max_bytes` is less than 1, or not a size.

    Examples
    --------
    >>> import numpy as np
    >>> from vitcache.tiers import EntryName, MemoryTier, Transfer
    >>> tier = MemoryTier("1MiB")
    >>> tier.open()
    >>> name = EntryName(bytes(32), bytes(32), bytes(32), num_rows=2, row_bytes=4)
    >>> tier.store([Transfer(name, [np.arange(8, dtype=np.uint8)])])
    [True]
    >>> rows = np.zeros(8, np.uint8)
    >>> tier.fetch([Transfer(name, [rows[:3], rows[3:]])]), rows.tolist()
    ([<FetchOutcome.HIT: 1>], [0, 1, 2, 3, 4, 5, 6, 7])
    >>> tier.close()
    """

    name = "memory"
    worth: float | None = None

    def __init__(self, max_bytes: SupportsIndex | str) -> None:
        self.capacity_bytes = to_bytes("max_bytes", max_bytes, 1)
        self._rows: OrderedDict[EntryName, np.ndarray] = OrderedDict()  # the longest unused is the first
        self._generations: Counter[bytes] = Counter()
        self._num_bytes = self._evictions = 0
        self._is_open = False

    def open(self) -> None:
        """See `Tier.open`. Raises RuntimeError if the tier is open."""
        if self._is_open:
            raise RuntimeError("the memory tier is open; a MemoryTier belongs to one cache at a time")
        self._is_open = True

    def register(self, memory: np.ndarray) -> None:
        """See `Tier.register`. All memory can be transferred."""
        self._check_open()

    def exists(self, names: Sequence[EntryName]) -> list[bool]:
        """See `Tier.exists`."""
        self._check_open()
        return [name in self._rows for name in names]

    def fetch(self, fetches: Sequence[Transfer]) -> list[FetchOutcome]:
        """See `Tier.fetch`."""
        self._check_open()
        for fetch in fetches:
            check_parts(fetch)
        return [self._fetch(fetch) for fetch in fetches]

    def _fetch(self, fetch: Transfer) -> FetchOutcome:
        rows = self._rows.get(fetch.name)
        if rows is None:
            return FetchOutcome.MISS
        self._rows.move_to_end(fetch.name)
        at = 0
        for part in fetch.parts:
            part[:] = rows[at : at + part.size]
            at += part.size
        return FetchOutcome.HIT

    def store(self, stores: Sequence[Transfer]) -> list[bool]:
        """See `Tier.store`. False: the entry exceeds `max_bytes`."""
        self._check_open()
        for store in stores:
            check_parts(store)
        return [self._store(store) for store in stores]

    def _store(self, store: Transfer) -> bool:
        name, size = store.name, store.name.num_bytes
        if size > self.capacity_bytes:
            return False
        if name not in self._rows:
            rows = np.concatenate([np.empty(0, np.uint8), *store.parts])  # a copy, also of one part
            while self._num_bytes + size > self.capacity_bytes:
                self._remove(next(iter(self._rows)))
                self._evictions += 1
            self._rows[name] = rows
            self._num_bytes += size
        return True

    def _remove(self, name: EntryName) -> None:
        del self._rows[name]
        self._num_bytes -= name.num_bytes

    def claim(self, names: Sequence[EntryName], ttl_s: float) -> list[bool]:
        """See `Tier.claim`. No other process can store an entry here."""
        return [not exists for exists in self.exists(names)]

    def erase(self, *, tenant: bytes | None = None, key: bytes | None = None) -> int:
        """See `Tier.erase`."""
        self._check_open()
        if tenant is None and key is None:
            raise ValueError("tenant and key are None, at least one must be given")
        erased = [
            name
            for name in self._rows
            if (tenant is None or name.tenant == tenant) and (key is None or name.key == key)
        ]
        for name in erased:
            self._remove(name)
        return len(erased)

    def generation(self, weights: bytes) -> int:
        """See `Tier.generation`. The object counts, as no entry outlives it."""
        self._check_open()
        return self._generations[weights]

    def revoke(self, weights: bytes) -> int:
        """See `Tier.revoke`."""
        self._check_open()
        self._generations[weights] += 1
        return self._generations[weights]

    def metrics(self) -> Mapping[str, int]:
        """Return ``entries``, ``bytes`` and ``evictions``."""
        return {"entries": len(self._rows), "bytes": self._num_bytes, "evictions": self._evictions}

    def close(self) -> None:
        """See `Tier.close`. Entries and generations stay."""
        self._is_open = False

    def _check_open(self) -> None:
        if not self._is_open:
            raise RuntimeError("the memory tier is closed")

    __reduce_ex__ = refuse_copies("make a second MemoryTier")

    @described
    def __repr__(self) -> str:
        state = "open" if self._is_open else "closed"
        return f"{describe_count(len(self._rows), 'entry')}, at most {self.capacity_bytes} bytes, {state}"
