"""Tools for tests: the private state of a cache, and controls of the stand-in. No other room imports them."""

from vitcache.testing.inspection import CacheInspection, inspect
from vitcache.testing.inventory_inspection import (
    FetchState,
    InventoryState,
    inspect_fetches,
    inspect_inventory,
)

__all__ = [
    "CacheInspection",
    "FetchState",
    "InventoryState",
    "inspect",
    "inspect_fetches",
    "inspect_inventory",
]
