"""Calls of tiers."""

from __future__ import annotations

from public_calls.call import Valid
from vitcache import DiskTier

CALLS: dict[str, Valid] = {
    "DiskTier": lambda stack: (DiskTier, {"path": "folder", "max_bytes": 1 << 20, "direct": True}),
}
