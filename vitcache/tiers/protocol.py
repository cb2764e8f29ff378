"""`Tier`: a store of rows below the host tier, such as a directory on a disk, that outlives the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import NamedTuple, Protocol

import numpy as np


class EntryName(NamedTuple):
    """Names the rows of one entry in a tier. Rows of another number, width or dtype have another name.

    Attributes
    ----------
    tenant
        32 bytes: the digest of the tenant's name (`tenant_digest`).
    weights
        32 bytes: the digest of the name of the weights, of the dtype of the rows, and of the generation.
    key
        The key of the cache, 32 bytes.
    num_rows, row_bytes
        Number of rows, and bytes of each row.
    """

    tenant: bytes
    weights: bytes
    key: bytes
    num_rows: int
    row_bytes: int

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows."""
        return self.num_rows * self.row_bytes


class Transfer(NamedTuple):
    """Rows of one entry, and the host memory that they are copied to by `fetch`, or from by `store`.

    `parts` are uint8 arrays ``(num_bytes,)``, contiguous, in row order, together of ``name.num_bytes`` bytes.
    Parts may be adjacent in memory. The memory stays valid until the call returns; after
    `FetchOutcome.UNSAFE`, until `Tier.close` has returned.
    """

    name: EntryName
    parts: Sequence[np.ndarray]


class FetchOutcome(Enum):
    """The result of one fetch. Only after HIT may the parts be read."""

    HIT = auto()  # the parts contain the rows, and their checksum was right
    MISS = auto()  # the tier does not have the entry
    DAMAGED = auto()  # the entry was there and did not match its header; the tier has dropped it
    UNSAFE = auto()  # the tier may still write the parts, until its `close` has returned


class Tier(Protocol):
    """A store of rows below the host tier of an `EmbeddingCache`.

    A cache calls a tier from one worker thread, which it has for this tier alone: no two calls overlap, and
    `open` is the first of them. A tier belongs to one open cache at a time. After `close` it may be opened
    again, by the same or by another cache.

    Every method may block for as long as its engine does, since only the worker waits for it. A method that
    raises an Exception counts as a failure of the tier, and opens its breaker.

    Attributes
    ----------
    name
        A short name for statistics, metrics, logs and messages, such as ``"disk"``.
    capacity_bytes
        Most bytes that the tier keeps; 0 if it does not know it.
    worth
        An entry is fetched and stored only if its expected transfer takes at most this part of its encode
        time. None: always. The cache reads it once, when it is made.
    """

    name: str
    capacity_bytes: int

    @property
    def worth(self) -> float | None:
        """See the attributes."""

    def open(self) -> None:
        """Open the engine. May be called again after `close`."""

    def register(self, memory: np.ndarray) -> None:
        """Prepare memory for transfers, such as the pages of the host tier: a uint8 array ``(num_bytes,)``.

        A cache calls it after each `open`, and before a transfer has parts in this memory. The memory stays
        valid until `close` has returned.
        """

    def exists(self, names: Sequence[EntryName]) -> list[bool]:
        """Whether the tier has the entries, probably. `fetch` may still miss them."""

    def fetch(self, fetches: Sequence[Transfer]) -> list[FetchOutcome]:
        """Copy entries to the parts, and compare them with their headers."""

    def store(self, stores: Sequence[Transfer]) -> list[bool]:
        """Copy the parts into the tier. True: the entry is stored, or was there already.

        False: the tier has no room, or lost the entry at once. The cache may offer the entry again later.
        """

    def claim(self, names: Sequence[EntryName], ttl_s: float) -> list[bool]:
        """Claim the right to store entries that the tier does not have, for `ttl_s` seconds at most.

        False: another process stores the entry now, or the entry is there. A tier without claims returns True
        for each entry.
        """

    def erase(self, *, tenant: bytes | None = None, key: bytes | None = None) -> int:
        """Erase every entry of a tenant, of a key, or of both, whatever its weights and its number of rows.

        At least one of the two is given. Returns the number of erased entries. When `erase` returns, their
        bytes can no longer be fetched, also after a restart.
        """

    def generation(self, weights: bytes) -> int:
        """Return the generation of a name of weights, which is the same in each process until `revoke`."""

    def revoke(self, weights: bytes) -> int:
        """Begin a new generation of a name of weights, in constant time, and return its number.

        No earlier generation of the name has the same number, also after a loss of data. The new one is as
        durable as the entries when `revoke` returns. Entries of earlier generations are not erased, but no
        process that asks for `generation` later looks them up.
        """

    def metrics(self) -> Mapping[str, int]:
        """Return the tier's own counts by name, such as ``entries``, ``bytes`` and ``evictions``."""

    def close(self) -> None:
        """Close the engine, and wait until it writes no memory of earlier calls."""
