"""`StockCache`: SGLang's own cache of embeddings, which has no bytes while vitcache builds the steps.

This module imports nothing heavy: each scheduler makes this cache, also that of a model without encoders.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vitcache.adapters.disabling import is_disabled


class StockCache:
    """The size that SGLang has given to its cache, and the way to make the cache.

    Attributes
    ----------
    reserved_bytes
        The bytes that SGLang has reserved for embeddings, or None before it has made its cache.
    number
        How often SGLang has made its cache.
    """

    def __init__(self) -> None:
        self.reserved_bytes: int | None = None
        self.number = 0
        self._make: Callable[..., Any] | None = None
        self._is_empty = False

    def make(self, original: Callable[..., Any], num_bytes: int) -> Any:
        """Make SGLang's cache with 0 bytes, or with its own size while VITCACHE_DISABLE is set."""
        self.reserved_bytes = num_bytes
        self.number += 1
        self._make = original
        self._is_empty = not is_disabled()
        return original(0 if self._is_empty else num_bytes)

    def restore(self) -> None:
        """Give SGLang's cache its own size, once: SGLang computes steps itself.

        The cache allocates memory when it stores rows, beside the pages of vitcache.
        """
        if self._is_empty and self._make is not None:
            self._is_empty = False
            self._make(self.reserved_bytes)


STOCK_CACHE = StockCache()
