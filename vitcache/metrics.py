"""`CacheCollector`: exports the counts of caches as Prometheus metrics."""

from vitcache.adapters.prometheus import CacheCollector

__all__ = ["CacheCollector"]
