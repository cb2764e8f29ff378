"""The cache of the rows of one model of SGLang: its size and its pages."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vitcache.adapters.sglang.model_tiers import make_tiers, weights_name
from vitcache.adapters.sglang.options import Options
from vitcache.cache.embedding_cache import EmbeddingCache

MOST_PAGE_ROWS = 16
FEWEST_PAGES = 1024
FETCH_TIMEOUT_S = 0.1  # longest wait of a request for the lower tiers


@dataclass(frozen=True)
class StepShape:
    """The rows of a model: elements of a text row, deepstack levels, dtype and device."""

    hidden: int
    levels: int
    dtype: torch.dtype
    device: torch.device


def make_cache(shape: StepShape, device_bytes: int, options: Options) -> EmbeddingCache:
    """Make the cache of a model.

    The device tier has at least one row, and a host tier at least one page: the size of a row is not known
    when the options are checked.

    Raises
    ------
    MemoryError
        If the memory of a tier cannot be allocated.
    OSError, ImportError
        As `make_tiers`.
    """
    width = shape.hidden * (1 + shape.levels)
    row_bytes = width * shape.dtype.itemsize
    device_bytes = max(device_bytes, row_bytes)
    size = page_rows(device_bytes // row_bytes)
    return EmbeddingCache(
        width,
        dtype=shape.dtype,
        device=shape.device,
        device_bytes=device_bytes,
        host_bytes=max(options.host_bytes, size * row_bytes) if options.host_bytes else 0,
        page_rows=size,
        policy=options.policy,
        tiers=make_tiers(options),
        weights_name=weights_name(options),
        fetch_timeout_s=FETCH_TIMEOUT_S,
    )


def page_rows(num_rows: int) -> int:
    """Return the rows of a page for a device tier of `num_rows` rows: a power of two, at most 16.

    The last page of an item is not full. A small tier has small pages, so that it contains about as many
    items as its bytes do; a page of one row costs the host more (docs/decisions.md).

    Examples
    --------
    >>> [page_rows(num_rows) for num_rows in (80, 3200, 65536)]
    [1, 2, 16]
    """
    size = 1
    while size < MOST_PAGE_ROWS and num_rows >= 2 * size * FEWEST_PAGES:
        size *= 2
    return size
