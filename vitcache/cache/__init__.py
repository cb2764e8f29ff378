"""The embedding cache: rows by content key, what is evicted for what, who encodes what is missing."""

from vitcache.cache.claims import Claim
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.cache.stats import CacheStats

__all__ = ["CacheStats", "Claim", "EmbeddingCache"]
