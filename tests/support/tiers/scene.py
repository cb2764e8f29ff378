"""Names of entries, and rows in pages that are out of order in memory."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from vitcache.tiers import EntryName, Transfer

BLOCK = 4096


def name_of(
    key: int, num_rows: int = 5, row_bytes: int = 100, *, tenant: int = 1, weights: int = 2
) -> EntryName:
    """The name of an entry whose digests repeat one number each."""
    digests = [number.to_bytes(4, "little") * 8 for number in (tenant, weights, key)]
    return EntryName(*digests, num_rows, row_bytes)


def aligned(num_bytes: int, *, offset: int = 0, value: int = 0xFF) -> np.ndarray:
    """Bytes at an address that direct I/O accepts, plus an offset. Four bytes of 0xFF are a NaN."""
    memory = np.frombuffer(mmap.mmap(-1, num_bytes + offset + 1), np.uint8)
    memory[:] = value
    return memory[offset : offset + num_bytes]


def random_rows(num_bytes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, num_bytes, dtype=np.uint8)


class Pages:
    """Pages of one memory, in a shuffled order, as the pages of an entry in a cache are."""

    def __init__(self, num_bytes: int, page_bytes: int, *, offset: int = 0, seed: int = 0) -> None:
        count = -(-num_bytes // page_bytes) + 2  # two pages are of other entries
        self.memory = aligned(count * page_bytes, offset=offset)
        self.num_bytes, self.page_bytes = num_bytes, page_bytes
        self.order = [int(page) for page in np.random.default_rng(seed).permutation(count)]

    @property
    def parts(self) -> list[np.ndarray]:
        """The memory of the entry: whole pages, and the beginning of the last one."""
        starts = range(0, self.num_bytes, self.page_bytes)
        return [
            self.memory[page * self.page_bytes :][: min(self.page_bytes, self.num_bytes - start)]
            for page, start in zip(self.order, starts, strict=False)
        ]

    def fill(self, rows: np.ndarray) -> None:
        at = 0
        for part in self.parts:
            part[:] = rows[at : at + part.size]
            at += part.size

    def rows(self) -> np.ndarray:
        return np.concatenate([np.empty(0, np.uint8), *self.parts])

    def outside(self) -> np.ndarray:
        """The bytes that are not of the entry."""
        mask = np.ones(self.memory.size, bool)
        for part in self.parts:
            start = part.__array_interface__["data"][0] - self.memory.__array_interface__["data"][0]
            mask[start : start + part.size] = False
        return self.memory[mask]


def transfer_of(name: EntryName, rows: np.ndarray | None = None, num_parts: int = 2) -> Transfer:
    """A transfer of given rows, or to new memory that is filled with NaN."""
    memory = aligned(name.num_bytes)
    if rows is not None:
        memory[:] = rows
    return Transfer(name, np.array_split(memory, num_parts))


def rows_in(transfer: Transfer) -> np.ndarray:
    return np.concatenate([np.empty(0, np.uint8), *transfer.parts])


@lru_cache(1000)
def rows_of(name: EntryName) -> np.ndarray:
    """Rows that depend on the whole name."""
    seed = [*name.tenant, *name.weights, *name.key, name.num_rows, name.row_bytes]
    return np.random.default_rng(seed).integers(0, 256, name.num_bytes, dtype=np.uint8)


def store_rows(tier: object, names: Sequence[EntryName]) -> list[bool]:
    return tier.store([transfer_of(name, rows_of(name)) for name in names])  # type: ignore[attr-defined]
