"""Entries as objects of a Mooncake store: their keys, their headers, and the memory of a call.

An object contains a header of 4096 bytes, and the rows. Its key names every field of the entry, also the
number of rows: a read with another size fails with the same code as a transfer that broke.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import numpy as np

from vitcache.tiers.header import BLOCK_BYTES, header_of
from vitcache.tiers.protocol import EntryName, Transfer

ALGORITHM = "xxh3_128"  # at about 30 GB/s; BLAKE3 with 5 GB/s would take a third of a fast network's time

_MOST_ENTRIES = 16  # of one call
_MOST_BYTES = 64 << 20  # of one call, except for one larger entry
# Each part is a transfer of its own, which takes about 50 us over TCP. The engine queues 2,048, refuses
# more, and waits 1 s for each one that a silent node does not answer.
_SMALL_BYTES = 64 << 10
_HEAD_BYTES = 64 << 10  # of rows are copied behind the header: as a part of its own, it takes longer
_MOST_PARTS = 1000
_PREFIX = "vc1"


def object_key(name: EntryName) -> str:
    """Return the key of an entry's object."""
    tenant, weights, key = name.tenant.hex(), name.weights.hex(), name.key.hex()
    return f"{_PREFIX}/{tenant}/{key}/{weights}/{name.num_rows}x{name.row_bytes}"


def object_keys(names: Sequence[EntryName]) -> list[str]:
    """Return the keys of the objects of entries."""
    return [object_key(name) for name in names]


def generation_key(weights: bytes) -> str:
    """Return the key of the object that has the generation of a name of weights."""
    return f"{_PREFIX}/generation/{weights.hex()}"


def pattern_of(tenant: bytes | None, key: bytes | None) -> str:
    """Return the regular expression of the keys of a tenant's entries, of a key's, or of both."""
    any_digest = "[0-9a-f]{64}"
    parts = [any_digest if each is None else re.escape(each.hex()) for each in (tenant, key)]
    return f"^{_PREFIX}/{parts[0]}/{parts[1]}/.*$"


def object_bytes(name: EntryName) -> int:
    """Return the size of an entry's object in bytes."""
    return BLOCK_BYTES + name.num_bytes


def groups(transfers: Sequence[Transfer]) -> Iterator[list[Transfer]]:
    """Divide transfers into groups, each of which is one call of the store.

    No group has a name twice: the engine would read the object into one of the two memories, and report both.
    """
    group: list[Transfer] = []
    names: set[EntryName] = set()
    num_bytes = num_parts = 0
    for transfer in transfers:
        size = object_bytes(transfer.name)
        parts = 1 if _is_small(transfer) else 1 + len(transfer.parts)
        is_full = len(group) == _MOST_ENTRIES or num_bytes + size > _MOST_BYTES
        is_full = is_full or num_parts + parts > _MOST_PARTS or transfer.name in names
        if group and is_full:
            yield group
            group, names, num_bytes, num_parts = [], set(), 0, 0
        group.append(transfer)
        names.add(transfer.name)
        num_bytes += size
        num_parts += parts
    if group:
        yield group


class CallMemory:
    """Memory of a call that is not of the caller: headers with the first rows, and rows in small parts.

    Parameters
    ----------
    register
        Registers new memory with the store, until the client is closed.
    """

    def __init__(self, register: Callable[[np.ndarray], None]) -> None:
        self._register = register
        self._memory = np.empty(0, np.uint8)
        self._replaced: list[np.ndarray] = []  # is registered, too

    def objects(self, group: Sequence[Transfer]) -> list[StoredObject]:
        """Return the objects of a group, with memory that the next group uses again."""
        sizes = [-(-(BLOCK_BYTES + _gathered_bytes(each)) // BLOCK_BYTES) * BLOCK_BYTES for each in group]
        if self._memory.size < sum(sizes):
            self._replaced.append(self._memory)
            self._memory = new_memory(max(sum(sizes), 2 * self._memory.size))
            self._register(self._memory)
        ends = accumulate(sizes)
        return [
            StoredObject(each, self._memory[end - size : end])
            for each, size, end in zip(group, sizes, ends, strict=True)
        ]


class StoredObject:
    """One entry in a call: its memory as addresses and sizes.

    Parameters
    ----------
    transfer
        The entry.
    memory
        Memory for the header, and for the rows behind it that are gathered.
    """

    def __init__(self, transfer: Transfer, memory: np.ndarray) -> None:
        self.name = transfer.name
        self.key = object_key(transfer.name)
        self.num_bytes = object_bytes(transfer.name)
        gathered = _gathered_bytes(transfer)
        self._header = memory[:BLOCK_BYTES]
        self._head = memory[BLOCK_BYTES : BLOCK_BYTES + gathered]
        self._copied, direct = _split(transfer.parts, gathered)
        self._rows = [self._head, *direct]
        self._checksum = b""
        views = [memory[: BLOCK_BYTES + gathered], *direct]
        self.addresses = [address_of(view) for view in views]
        self.sizes = [view.size for view in views]

    def hash(self) -> None:
        """Compute the checksum of the rows, before `write_header` or `is_intact`. Any thread may call it."""
        import xxhash

        hasher = xxhash.xxh3_128()
        for part in self._rows:
            hasher.update(part.data)
        self._checksum = hasher.digest()

    def gather(self) -> None:
        """Copy rows to the memory behind the header, before they are hashed and stored."""
        if self._copied:
            np.concatenate(self._copied, out=self._head)

    def write_header(self) -> None:
        """Write the header, before the object is stored."""
        self._header[:] = np.frombuffer(header_of(self.name, self._checksum, ALGORITHM), np.uint8)

    def is_intact(self) -> bool:
        """Whether the header is that of the entry, and its checksum that of the rows."""
        return self._header.tobytes() == header_of(self.name, self._checksum, ALGORITHM)

    def scatter(self) -> None:
        """Copy the rows that were read behind the header to their parts."""
        ends = accumulate(part.size for part in self._copied)
        for part, end in zip(self._copied, ends, strict=True):
            part[:] = self._head[end - part.size : end]


def _gathered_bytes(transfer: Transfer) -> int:
    """Return how many bytes of the rows are transferred with the header, as copies."""
    first = next((part.size for part in transfer.parts if part.size), 0)
    return transfer.name.num_bytes if _is_small(transfer) else min(first, _HEAD_BYTES)


def _is_small(transfer: Transfer) -> bool:
    """Whether it is faster to copy the parts than to let the store transfer each of them."""
    count = len(transfer.parts)
    return count > _MOST_PARTS or transfer.name.num_bytes < count * _SMALL_BYTES


def _split(parts: Sequence[np.ndarray], num_bytes: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the first bytes of the parts, and the rest of them."""
    first, rest = [], []
    for part in parts:
        if not num_bytes:
            rest.append(part)
            continue
        count = min(num_bytes, part.size)
        num_bytes -= count
        first.append(part[:count])
        rest.append(part[count:])
    return first, [part for part in rest if part.size]


def new_memory(num_bytes: int) -> np.ndarray:
    """Return new memory that begins at a page."""
    return np.frombuffer(mmap.mmap(-1, num_bytes), np.uint8)


def address_of(memory: np.ndarray) -> int:
    """Return the address of an array's first byte."""
    address: int = memory.__array_interface__["data"][0]
    return address
