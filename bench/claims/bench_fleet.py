"""Simulation: encode time, bytes and load of a store that machines share, against a disk per machine.

Nothing is encoded and no byte is moved: `bench.traffic.shared_store` lists the effects that are left out. The
requests are chats that share logos and documents, by Zipf's distribution, and have images of their own. All
numbers are exact, and alike on every machine.

Sources of the constants. Encode times: `traces.encode_ms`, Qwen3-VL-8B on one H100. Bytes of a row: 4096
columns of bfloat16 alone (an image of 1280x720 has 7.2 MB), and with three deepstack levels (28.8 MB). Rate
and look-up of a disk: results of the bench `tiers`. Rate of one machine over TCP, and look-up in a store:
measured with Mooncake 0.3.13 over loopback, on two cores; the bench `mooncake` measures them again. The
deadline is the default of `EmbeddingCache`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from vitcache.bench.claims.fleet_figure import draw
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Sample, Timer
from vitcache.bench.traffic.fleet import AT_RANDOM, BY_SESSION, GIB, make_requests, missing_images
from vitcache.bench.traffic.shared_store import Below, Counts, Link, replay

__all__ = ["draw"]

NAME = "fleet"
CLAIMS_CPU = True
DEVICE = torch.device("cpu")
ENCODES, DISK = "no store", "disk per machine"
WORTH = 0.5  # the default of `MooncakeTier`
DEADLINE_S, LONG_DEADLINE_S = 0.1, 1.0  # `fetch_timeout_s` of `EmbeddingCache`: the default, and a longer one
CLIENTS_PER_S = 0.25  # new chats per machine and second
MACHINES_PER_NODE = 8
NODE_BYTES, DISK_BYTES = 128 * GIB, 100 * GIB
GBIT = 1e9 / 8
DISK_RATE, DISK_CALL_S = 1.5e9, 112e-6  # bench `tiers`: DiskTier, 8 x 7.21 MB; exists of 32 entries
TCP_RATE = 1.5e9  # a fetch of several entries by one process on two cores
CALL_S, KEY_S = 115e-6, 7e-6  # exists of 1 key, 122 us, and of 32 keys, 331 us
LINKS = {
    "10 GbE": Link(10 * GBIT, 10 * GBIT),
    "25 GbE": Link(25 * GBIT, 25 * GBIT),
    "100 GbE": Link(100 * GBIT, 100 * GBIT),
    "100 GbE, 1.5 GB/s per machine": Link(100 * GBIT, TCP_RATE),
}
NO_RULE, LONG = "10 GbE, no rule", "25 GbE, deadline 1 s"


@dataclass(frozen=True)
class FleetCase:
    """`machines` machines, and rows of `row_kib` KiB. The first half of `seconds` is a warm-up."""

    machines: int
    route: str
    row_kib: int
    seconds: float = 360.0
    nodes: int | None = None  # None: one for each eight machines

    @property
    def num_nodes(self) -> int:
        """The number of storage nodes."""
        return self.nodes or max(1, self.machines // MACHINES_PER_NODE)

    @property
    def name(self) -> str:
        """The bytes of a row, the machines, and the route of requests."""
        nodes = f", {self.nodes} nodes" if self.nodes else ""
        return f"{self.row_kib} KiB rows, {self.machines} machines, {self.route}{nodes}"


CASES = {
    "full": [
        *(
            FleetCase(machines, route, row_kib)
            for row_kib in (8, 32)
            for route in (BY_SESSION, AT_RANDOM)
            for machines in (4, 8, 16, 32, 64)
        ),
        FleetCase(64, AT_RANDOM, 8, nodes=2),
    ],
    "smoke": [
        FleetCase(machines, route, 32, 60.0) for route in (BY_SESSION, AT_RANDOM) for machines in (4, 8)
    ],
}


def run_case(case: FleetCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Simulate one case; yields a label before each part."""
    yield "caches"
    row_bytes, begin_s = case.row_kib * 1024, case.seconds / 2
    requests = make_requests(case.machines, CLIENTS_PER_S, case.seconds)
    missing = missing_images(requests, case.machines, case.route, row_bytes)
    without = replay(missing, row_bytes, None, begin_s)
    _add(case, recorder, ENCODES, without, without)
    for name, below in stores(case).items():
        yield name
        _add(case, recorder, name, replay(missing, row_bytes, below, begin_s), without, below)


def stores(case: FleetCase) -> dict[str, Below]:
    """Return the disks, and the stores: with the rule on each link, without it, and with a long deadline."""
    disk = Link(DISK_RATE, DISK_RATE)
    shared = Below(
        LINKS["10 GbE"],
        case.num_nodes * NODE_BYTES,
        case.num_nodes,
        worth=WORTH,
        call_s=CALL_S,
        key_s=KEY_S,
        deadline_s=DEADLINE_S,
    )
    return {
        DISK: Below(disk, DISK_BYTES, is_shared=False, call_s=DISK_CALL_S, deadline_s=DEADLINE_S),
        **{name: replace(shared, link=link) for name, link in LINKS.items()},
        NO_RULE: replace(shared, worth=None),
        LONG: replace(shared, link=LINKS["25 GbE"], deadline_s=LONG_DEADLINE_S),
    }


def _add(
    case: FleetCase,
    recorder: Recorder,
    name: str,
    counts: Counts,
    without: Counts,
    below: Below | None = None,
) -> None:
    """Record the numbers of one contender: times of the whole fleet, and rates."""
    if counts.hits + counts.encodes != counts.lookups:
        raise RuntimeError(
            f"{name}: {counts.hits} hits and {counts.encodes} encodes of {counts.lookups} images"
        )
    seconds = case.seconds / 2
    moved = counts.fetched_bytes + counts.stored_bytes
    values: dict[str, tuple[str, float, float | None]] = {
        "encode_s": ("s", counts.encode_s, without.encode_s),
        "rows_s": ("s", counts.rows_s, without.rows_s),
    }
    if below is not None:
        values["late_share"] = "share", counts.late / counts.lookups, None
        values["machine_mb_per_s"] = "MB/s", moved / seconds / case.machines / 1e6, None
    if below is not None and below.is_shared:
        busiest = max(counts.sent_bytes.values(), default=0.0)
        values["store_gb_per_s"] = "GB/s", moved / seconds / 1e9, None
        values["link_share"] = "share", busiest / seconds / below.link.line, None
        values["keys_per_s"] = "keys/s", counts.keys / seconds, None
    for metric, (unit, value, reference) in values.items():
        against = (ENCODES, reference) if reference else None
        recorder.add(case.name, name, metric, unit, Sample.of([value]), against=against)
