"""Keys, rows and small caches for the tests of the cache."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from caches import make_cache
from torch import Tensor

from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.testing import inspect

PAGE_ROWS, WIDTH = 2, 4
PAGE_BYTES = PAGE_ROWS * WIDTH * 4
KEYS = [bytes([number]) * 32 for number in range(10)]


def make_rows(pages: int, value: float = 0.0) -> Tensor:
    """Rows that fill `pages` pages. All elements differ; `value`, a whole number, is added to each."""
    return torch.arange(pages * PAGE_ROWS * WIDTH).view(-1, WIDTH) / 256 + value


def make_full(device_pages: int, host_pages: int = 0, **options: Any) -> EmbeddingCache:
    """A cache whose device tier is full of entries of one page. Entry 0 is the first victim."""
    cache = make_cache(device_pages, host_pages, **options)
    for number in range(device_pages):
        assert cache.put(KEYS[number], make_rows(1, float(number)))
    return cache


def present(cache: EmbeddingCache) -> list[int]:
    """The indices in `KEYS` of the keys whose entries are in the cache."""
    return [number for number, key in enumerate(KEYS) if key in cache]


def runs_of(pages: Iterable[int]) -> list[list[int]]:
    """The runs of adjacent pages, in ascending order."""
    runs: list[list[int]] = []
    for page in sorted(pages):
        if runs and page == runs[-1][-1] + 1:
            runs[-1].append(page)
        else:
            runs.append([page])
    return runs


def read_entry(cache: EmbeddingCache, key: bytes, tier: str = "device") -> Tensor:
    """A copy of the rows of an entry or a host copy, read from its pages: it counts no hit."""
    entry = inspect(cache).entry(key, tier)
    segments = entry.memory.at(entry.row_width).segments(entry.pages, entry.num_rows)
    return torch.cat([torch.empty(0, entry.row_width), *segments])


def read(cache: EmbeddingCache, key: bytes) -> Tensor:
    """A copy of the rows of an entry."""
    with cache.get(key) as lease:
        return lease.to_tensor()
