"""Claim: a tier of a Mooncake store fetches rows at 0.9 of the rate of the store's own batch calls.

The store is a master and a node on this machine, on loopback. The parts, each with its contenders in one run:

- `store_transfers.py`: fetches and stores of a `MooncakeTier`, and `cache.fetch`, against the store's own
  batch calls with the same pages and with contiguous memory. These have neither headers nor checksums. The
  rows are compared, bit for bit, before a contender is timed.
- `store_lookups.py`: `exists`, against the store's own call.
- `store_waits.py`: the master is stopped: the time of `cache.fetch` beyond its deadline, and of `begin_fetch`
  while the breaker is open.
- `tier_overhead.py`: a prefetch and a step whose images are all new, with an empty store and without a tier.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vitcache import MooncakeTier
from vitcache.bench.claims.mooncake_figure import draw
from vitcache.bench.claims.store_lookups import LookupCase, run_lookups
from vitcache.bench.claims.store_transfers import TransferCase, run_transfers
from vitcache.bench.claims.store_waits import StoppedCase, run_stopped
from vitcache.bench.claims.tier_overhead import OverheadCase, run_steps
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.store_cluster import store_cluster
from vitcache.bench.harness.timing import Timer
from vitcache.tiers import Tier

__all__ = ["draw"]

NAME = "mooncake"
DEVICE = torch.device("cpu")
CLAIMS_CPU = True
REQUIRES = "mooncake"
IMAGE_ROWS, HIDDEN, LEVELS = 880, 4096, 3  # as in the bench `tiers`: 7.2 MB, 28.8 MB with deepstack
EMPTY, WRITING = "empty store", "store, each entry is stored"
Case = TransferCase | LookupCase | StoppedCase | OverheadCase

CASES: dict[str, list[Case]] = {
    "full": [
        TransferCase(1, IMAGE_ROWS, HIDDEN, is_judged=True),
        TransferCase(8, IMAGE_ROWS, HIDDEN, is_judged=True),
        TransferCase(4, IMAGE_ROWS, HIDDEN * (1 + LEVELS), is_judged=True),
        LookupCase(1, is_judged=True),
        LookupCase(18, is_judged=True),
        LookupCase(32, is_judged=True),
        StoppedCase(1, is_open=False, is_judged=True),
        StoppedCase(32, is_open=False, is_judged=True),
        StoppedCase(1, is_open=True, is_judged=True),
        StoppedCase(32, is_open=True, is_judged=True),
        OverheadCase(IMAGE_ROWS, 256, 30.0, is_judged=True),
    ],
    "smoke": [
        TransferCase(2, 100, 4096),
        LookupCase(3),
        StoppedCase(2, is_open=False),
        StoppedCase(2, is_open=True),
        OverheadCase(20, 8, 0.2),
    ],
}


def run_case(case: Case, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields a label before each part."""
    if isinstance(case, TransferCase):
        yield from run_transfers(case, recorder, timer)
    elif isinstance(case, LookupCase):
        yield from run_lookups(case, recorder, timer)
    elif isinstance(case, StoppedCase):
        yield from run_stopped(case, recorder, timer)
    else:
        with store_cluster(1, node_bytes=1 << 30) as cluster:

            def tier(name: str) -> Tier:
                return MooncakeTier(cluster.address)

            yield from run_steps(case, recorder, timer, tier, EMPTY, WRITING)
