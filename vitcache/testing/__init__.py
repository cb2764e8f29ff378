"""Tools for tests: the private state of a cache, and controls of the stand-in. No other room imports them."""

from vitcache.testing.inspection import CacheInspection, forget_streams, inspect

__all__ = ["CacheInspection", "forget_streams", "inspect"]
