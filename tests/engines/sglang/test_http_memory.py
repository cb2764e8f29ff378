"""The memory of a scheduler does not grow with the number of images that it has answered."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sglang_runner.memory import BETWEEN, IN_A_REQUEST, NUM_IMAGES, scheduler_mib
from sglang_runner.odd_images import BLACK, of_colour
from sglang_runner.server import Server

pytestmark = pytest.mark.full
Serve = Callable[..., Server]
TIER_MIB = 1  # full after the first measurement: an image has up to 48 rows of 1 KiB
# Of memory per image between the first and the last measurement. The rows of an image have 30 KiB on average,
# and its feature has up to 1.2 MB.
LIMIT_KIB = 10
NUM_BAD = 200


@pytest.mark.parametrize("host_bytes", [0, TIER_MIB << 20], ids=["device tier", "both tiers"])
def test_memory_of_the_scheduler_is_flat_over_a_thousand_images(
    host_bytes: int, serve: Serve, record_property: Callable[[str, Any], None]
) -> None:
    options = f'{{"host_bytes": {host_bytes}}}'
    variables = {"SGLANG_VLM_CACHE_SIZE_MB": str(TIER_MIB), "VITCACHE_SGLANG_OPTIONS": options}
    num_bad = NUM_BAD if host_bytes else 0
    bad = 0

    with serve(f"memory-{host_bytes}", "vitcache", "odd_images", **variables) as server:

        def ask_bad(number: int) -> None:
            """Ask for bad images: the last one follows the last good one."""
            nonlocal bad
            while bad < num_bad * number // NUM_IMAGES:
                with pytest.raises(urllib.error.HTTPError):
                    server.chat([of_colour(BLACK)])
                bad += 1

        found = list(scheduler_mib(server, partial(server.chat, max_tokens=1), ask_bad))
        counts = server.counts()
        server.stop()
        server.wait_for_end()
    record_property("scheduler_mib", [round(mib, 1) for mib in found])
    cache = counts["cache"]
    assert counts["encodes"] == NUM_IMAGES
    assert counts["errors"] == counts["ended"] == bad == num_bad
    assert counts["steps"] > NUM_IMAGES / IN_A_REQUEST
    assert 0 < cache["device_bytes"] <= cache["device_capacity_bytes"] == TIER_MIB << 20
    assert 0 <= cache["host_bytes"] <= cache["host_capacity_bytes"] == host_bytes
    assert cache["evictions"] > NUM_IMAGES // 2
    assert len(found) == NUM_IMAGES // BETWEEN
    assert (found[-1] - found[0]) * 1024 < LIMIT_KIB * (NUM_IMAGES - BETWEEN), found
