"""`CacheCollector`: exports the counts of a cache as Prometheus metrics."""

from vitcache.adapters.prometheus import CacheCollector

__all__ = ["CacheCollector"]
