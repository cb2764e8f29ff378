"""Tools for tests: the private state of a cache, and controls of the stand-in. No other room imports them."""

from vitcache.testing.inspection import CacheInspection, inspect
from vitcache.testing.inventory_inspection import InventoryState, inspect_inventory

__all__ = ["CacheInspection", "InventoryState", "inspect", "inspect_inventory"]
