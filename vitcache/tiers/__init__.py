"""Tiers below the host tier: stores of rows that outlive the process. `Tier` is the protocol."""

from typing import TYPE_CHECKING

from vitcache.lazy import lazy_names

if TYPE_CHECKING:
    from vitcache.tiers.protocol import EntryName, FetchOutcome, Tier, Transfer

__all__ = ["EntryName", "FetchOutcome", "Tier", "Transfer"]

if not TYPE_CHECKING:  # with `__getattr__`, a type checker would accept every name
    __getattr__ = lazy_names(
        __name__,
        {"vitcache.tiers.protocol": ("EntryName", "FetchOutcome", "Tier", "Transfer")},
    )
