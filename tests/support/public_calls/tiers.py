"""Calls of tiers."""

from __future__ import annotations

from public_calls.call import Valid
from vitcache import DiskTier, MooncakeTier

CALLS: dict[str, Valid] = {
    "DiskTier": lambda stack: (DiskTier, {"path": "folder", "max_bytes": 1 << 20, "direct": True}),
    "MooncakeTier": lambda stack: (
        MooncakeTier,
        {
            "master": "127.0.0.1:50051",
            "local_host": "127.0.0.1",
            "protocol": "tcp",
            "devices": "",
            "replicas": 1,
            "single_flight": False,
            "worth": 0.5,
        },
    ),
}
