"""The Mooncake store that tests share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from vitcache.tiers.mooncake_tier import MooncakeTier


def opened(tier: MooncakeTier) -> Iterator[MooncakeTier]:
    """Open a tier if it is closed, and empty its store at the end."""
    if tier._client is None:
        tier.open()
    yield tier
    if tier._client is None:
        tier.open()
    tier._client.remove_matching("^vc1/.*$")


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until processes have reached a state. Fail after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the store has not reached the expected state"
        time.sleep(0.01)
