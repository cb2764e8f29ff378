"""Tiers below the host tier: stores of rows that outlive the process. `Tier` is the protocol."""

from typing import TYPE_CHECKING

from vitcache.lazy import lazy_names

if TYPE_CHECKING:
    from vitcache.tiers.disk_tier import DiskTier
    from vitcache.tiers.memory_tier import MemoryTier
    from vitcache.tiers.mooncake_tier import MooncakeTier
    from vitcache.tiers.protocol import EntryName, FetchOutcome, Tier, Transfer

__all__ = ["DiskTier", "EntryName", "FetchOutcome", "MemoryTier", "MooncakeTier", "Tier", "Transfer"]

if not TYPE_CHECKING:  # with `__getattr__`, a type checker would accept every name
    __getattr__ = lazy_names(
        __name__,
        {
            "vitcache.tiers.disk_tier": ("DiskTier",),
            "vitcache.tiers.memory_tier": ("MemoryTier",),
            "vitcache.tiers.mooncake_tier": ("MooncakeTier",),
            "vitcache.tiers.protocol": ("EntryName", "FetchOutcome", "Tier", "Transfer"),
        },
    )
