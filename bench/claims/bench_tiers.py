"""Claim: a disk tier reads at 0.9 of the rate of direct I/O; no caller waits for a tier past its deadline.

The parts, each with its own contenders in one run:

- `tier_reads.py`: entries from a `DiskTier` and by `cache.fetch`, against direct reads of the same files
  into the same memory, without a checksum. The rows are compared, bit for bit, before a contender is timed.
- `tier_waits.py`: a tier that hangs: the time of `cache.fetch` beyond its deadline, and of `begin_fetch`
  while the breaker is open.
- `tier_overhead.py`: a prefetch and a step whose images are all new, with an empty disk and without a tier.
- `tier_opening.py`: `open` and `exists` of a folder with 100,000 entries.
- `tier_restart.py`: a chat whose process is restarted. Logits must equal those of the stock model.

The folders are made where `tempfile` makes them: set ``TMPDIR`` to a folder of the disk to be measured.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vitcache.bench.claims.tier_opening import OpenCase, run_opening
from vitcache.bench.claims.tier_overhead import OverheadCase, run_overhead
from vitcache.bench.claims.tier_reads import ReadCase, run_reads
from vitcache.bench.claims.tier_restart import RestartCase, run_restart
from vitcache.bench.claims.tier_waits import WaitCase, run_waits
from vitcache.bench.claims.tiers_figure import draw
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Timer

__all__ = ["draw"]

NAME = "tiers"
DEVICE = torch.device("cpu")
CLAIMS_CPU = True
IMAGE_ROWS, HIDDEN, LEVELS = 880, 4096, 3  # a 1280x720 image of Qwen3-VL-8B: 7.2 MB, 28.8 MB with deepstack
Case = ReadCase | WaitCase | OverheadCase | OpenCase | RestartCase

CASES: dict[str, list[Case]] = {
    "full": [
        ReadCase(1, IMAGE_ROWS, HIDDEN, is_judged=True),
        ReadCase(8, IMAGE_ROWS, HIDDEN, is_judged=True),
        ReadCase(4, IMAGE_ROWS, HIDDEN * (1 + LEVELS), is_judged=True),
        WaitCase(1, is_open=False, is_judged=True),
        WaitCase(32, is_open=False, is_judged=True),
        WaitCase(1, is_open=True, is_judged=True),
        WaitCase(32, is_open=True, is_judged=True),
        OverheadCase(IMAGE_ROWS, 256, 30.0, is_judged=True),
        OpenCase(100_000, is_judged=True),
        RestartCase(6),
    ],
    "smoke": [
        ReadCase(2, 16, 256),
        WaitCase(2, is_open=False),
        WaitCase(2, is_open=True),
        OverheadCase(20, 8, 0.2),
        OpenCase(40),
        RestartCase(3),
    ],
}


def run_case(case: Case, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields a label before each part."""
    if isinstance(case, ReadCase):
        yield from run_reads(case, recorder, timer)
    elif isinstance(case, WaitCase):
        yield from run_waits(case, recorder, timer)
    elif isinstance(case, OverheadCase):
        yield from run_overhead(case, recorder, timer)
    elif isinstance(case, OpenCase):
        yield from run_opening(case, recorder, timer)
    else:
        yield from run_restart(case, recorder, timer)
