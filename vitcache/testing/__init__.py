"""Tools for tests: the inside of a cache, and a stand-in with faults. No other room imports it."""

from vitcache.testing.inspection import CacheInspection, forget_streams, inspect

__all__ = ["CacheInspection", "forget_streams", "inspect"]
