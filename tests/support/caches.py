"""`make_cache`: tests make each `EmbeddingCache` with it, by numbers of pages."""

from __future__ import annotations

from typing import Any

import torch

from vitcache.cache.embedding_cache import EmbeddingCache


def make_cache(
    device_pages: int = 64,
    host_pages: int = 0,
    *,
    width: int = 4,
    dtype: torch.dtype = torch.float32,
    page_rows: int = 2,
    device: torch.device | str | None = "cpu",
    **options: Any,
) -> EmbeddingCache:
    """Return a cache with these numbers of pages; `options` are further arguments of `EmbeddingCache`."""
    page_bytes = page_rows * width * dtype.itemsize
    sizes = {"device_bytes": device_pages * page_bytes, "host_bytes": host_pages * page_bytes}
    return EmbeddingCache(width, dtype=dtype, device=device, page_rows=page_rows, **(sizes | options))
