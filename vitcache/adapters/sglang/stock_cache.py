"""`StockCache`: SGLang's own cache of embeddings, which has no bytes while vitcache builds the steps.

This module imports nothing heavy: each scheduler makes this cache, also that of a model without encoders.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from vitcache.adapters.disabling import is_disabled
from vitcache.adapters.sglang.engine_modules import MM_SCHEDULE


class StockCache:
    """The cache of embeddings that SGLang has made last, and its size. SGLang's scheduler thread uses it."""

    def __init__(self) -> None:
        self._cache: Any = None
        self._reserved_bytes = 0
        self._make: Callable[..., Any] | None = None  # makes it with another size, while it has none
        self._generation = 0

    def make(self, original: Callable[..., Any], num_bytes: int) -> Any:
        """Make SGLang's cache with 0 bytes, or with its own size while VITCACHE_DISABLE is set.

        Parameters
        ----------
        original
            SGLang's `init_mm_embedding_cache`.
        num_bytes
            The size that SGLang wants, in bytes.
        """
        is_empty = not is_disabled()
        result = original(0 if is_empty else num_bytes)
        self._cache, self._reserved_bytes = _current(), num_bytes
        self._make = original if is_empty else None
        self._generation += 1
        return result

    def restore(self) -> None:
        """Give SGLang's cache its own size, once: SGLang computes steps itself.

        The cache allocates memory when it stores rows, beside the pages of vitcache.
        """
        if self._make is not None and _current() is self._cache:
            self._make(self._reserved_bytes)
            self._cache, self._make = _current(), None

    def clear(self) -> None:
        """Remove every entry, unless VITCACHE_DISABLE is set: SGLang keeps rows of old weights."""
        cache = _current()
        if cache is not None and not is_disabled():
            cache.clear()

    @property
    def generation(self) -> int:
        """A number that increases each time that SGLang has made its cache."""
        if _current() is not self._cache:  # made before its function was hooked
            self._cache, self._make = _current(), None
            self._reserved_bytes = getattr(self._cache, "max_size", 0)
            self._generation += 1
        return self._generation

    @property
    def reserved_bytes(self) -> int:
        """The bytes that SGLang has reserved for embeddings; 0: none, or not known.

        SGLang accepts a size below 0, and has no cache then.
        """
        return max(0, self._reserved_bytes)


def _current() -> Any:
    return getattr(sys.modules.get(MM_SCHEDULE), "embedding_cache", None)


STOCK_CACHE = StockCache()
