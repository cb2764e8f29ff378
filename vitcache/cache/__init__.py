"""The embedding cache: rows by content key, eviction in two tiers, and claims on keys that are missing."""

from typing import TYPE_CHECKING

from vitcache.lazy import lazy_names

if TYPE_CHECKING:
    from vitcache.cache.claims import Claim
    from vitcache.cache.embedding_cache import EmbeddingCache
    from vitcache.cache.fetch import Fetch
    from vitcache.cache.stats import CacheStats, TierHits, TierStats

__all__ = ["CacheStats", "Claim", "EmbeddingCache", "Fetch", "TierHits", "TierStats"]

if not TYPE_CHECKING:  # with `__getattr__`, a type checker would accept every name
    __getattr__ = lazy_names(
        __name__,
        {
            "vitcache.cache.claims": ("Claim",),
            "vitcache.cache.embedding_cache": ("EmbeddingCache",),
            "vitcache.cache.fetch": ("Fetch",),
            "vitcache.cache.stats": ("CacheStats", "TierHits", "TierStats"),
        },
    )
