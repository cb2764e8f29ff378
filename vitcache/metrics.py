"""`CacheCollector`: a cache's counts as Prometheus metrics."""

from vitcache.adapters.prometheus import CacheCollector

__all__ = ["CacheCollector"]
