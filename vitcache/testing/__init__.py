"""Tools for tests: the private state of a cache, and controls of the stand-in. No other room imports them."""

from vitcache.testing.inspection import CacheInspection, inspect

__all__ = ["CacheInspection", "inspect"]
