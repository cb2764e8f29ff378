"""The embedding cache: rows by content key, what is evicted for what, who encodes what is missing."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitcache.cache.claims import Claim
    from vitcache.cache.embedding_cache import EmbeddingCache
    from vitcache.cache.stats import CacheStats

__all__ = ["CacheStats", "Claim", "EmbeddingCache"]

_MODULES = {"CacheStats": "stats", "Claim": "claims", "EmbeddingCache": "embedding_cache"}


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: a simulation of the policies, which are in this room, needs no torch.
    if name not in _MODULES:
        raise AttributeError(f"module 'vitcache.cache' has no attribute {name!r}")
    return getattr(import_module(f"vitcache.cache.{_MODULES[name]}"), name)
