"""The Mooncake store that tests share."""

from __future__ import annotations

from collections.abc import Iterator

from vitcache.tiers.mooncake_tier import MooncakeTier


def opened(tier: MooncakeTier) -> Iterator[MooncakeTier]:
    """Open a tier if it is closed, and empty its store at the end."""
    if tier._client is None:
        tier.open()
    yield tier
    if tier._client is None:
        tier.open()
    tier._client.remove_matching("^vc1/.*$")
