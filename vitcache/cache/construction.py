"""Makes the parts of a cache: the memory of its tiers, its ledger and its coordinator."""

from __future__ import annotations

import weakref

import torch

from vitcache._native import Ledger, Tier
from vitcache.cache.checksums import Checksums
from vitcache.cache.coordinator import CacheCoordinator
from vitcache.cache.policies import POLICIES, is_native
from vitcache.cache.python_policy import PythonPolicies
from vitcache.device.streams import Timeline, make_timeline
from vitcache.pages.lease import Lease, LeaseTier
from vitcache.pages.pool import PagePool
from vitcache.placement.calibration import calibrate_cuda


def construct(
    num_pages: dict[str, int],
    page_rows: int,
    row_width: int,
    dtype: torch.dtype,
    device: torch.device,
    policy: str,
    has_checksums: bool,
    record_evictions: int,
) -> CacheCoordinator:
    """Return the coordinator of a new cache.

    Raises as the constructor of `EmbeddingCache`, whose arguments these are. `num_pages` has the tier
    ``"device"`` and perhaps the tier ``"host"``, in this order.
    """
    timeline = make_timeline(device)
    pools = [PagePool(tier, count, page_rows, row_width, dtype, device) for tier, count in num_pages.items()]
    # torch's allocator orders the reuse of memory only for the stream that allocated it, but the pools are
    # used on many streams. So the device must be idle when they are allocated and when they are freed.
    timeline.synchronize()
    for pool in pools:
        weakref.finalize(pool, timeline.synchronize).atexit = False
    if "host" in num_pages and device.type == "cuda":
        calibrate_cuda(device)
    tiers = [pool.make_tier() for pool in pools]
    python_policies = None if is_native(policy) else PythonPolicies(POLICIES[policy], num_pages)
    return CacheCoordinator(
        _make_ledger(policy, timeline, pools, tiers, device, record_evictions),
        tiers,
        timeline,
        device,
        python_policies,
        Checksums(timeline) if has_checksums and "host" in num_pages else None,
        [pool.rows for pool in pools if pool.rows.device.type == "cpu"],
    )


def _make_ledger(
    policy: str,
    timeline: Timeline,
    pools: list[PagePool],
    tiers: list[Tier],
    device: torch.device,
    record_evictions: int,
) -> Ledger:
    lease_tiers = [
        LeaseTier(timeline, pool.tier, pool.page_rows, pool.row_width, pool.dtype, device) for pool in pools
    ]
    return Ledger(
        policy if is_native(policy) else "",
        tiers[0],
        tiers[1] if len(tiers) > 1 else None,
        Lease,
        lease_tiers[0],
        lease_tiers[-1],
        record_evictions,
        f"the memory of {device}" if device.type == "cuda" else "",  # and no page-locked memory
    )
