"""Look-ups of the bench `mooncake`: `exists` of a `MooncakeTier`, and the store's own call, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from vitcache import MooncakeTier
from vitcache.bench.claims.store_transfers import Pages, RawStore, TransferCase, names_of
from vitcache.bench.claims.tier_reads import expect_all
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.store_cluster import store_cluster
from vitcache.bench.harness.timing import Timer
from vitcache.tiers import Transfer

EXISTS, RAW = "MooncakeTier.exists", "store's batch call"
TARGET_US = 500.0  # of 32 keys, as for a disk


@dataclass(frozen=True)
class LookupCase:
    """`keys` keys that the store has."""

    keys: int
    is_judged: bool = False

    @property
    def name(self) -> str:
        """The number of keys."""
        return f"look-up of {self.keys} keys"


def run_lookups(case: LookupCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields a label before each part."""
    with ExitStack() as stack:
        yield "store"
        cluster = stack.enter_context(store_cluster(1, node_bytes=64 << 20))
        entries = TransferCase(case.keys, 1, 512)
        pages = Pages(entries)
        raw = RawStore(cluster.address, entries.keys, pages)
        stack.callback(raw.close)
        tier = MooncakeTier(cluster.address, worth=None)
        tier.open()
        stack.callback(tier.close)
        tier.register(pages.memory)
        names = names_of(entries, entries.keys)
        raw.put()
        expect_all(tier.store([Transfer(*each) for each in zip(names, pages.parts, strict=True)]))
        absent = names_of(entries, [key[::-1] for key in entries.keys[1:]])
        if tier.exists(names) != [True] * case.keys or any(tier.exists(absent)):
            raise RuntimeError("the tier does not know its entries: it gets no number")
        yield "calls in turns"
        calls: dict[str, Callable[[], object]] = {EXISTS: lambda: tier.exists(names), RAW: raw.exist}
        samples = timer.rounds_us(calls, calls=9)
    for name, sample in samples.items():
        target = TARGET_US if case.is_judged and name == EXISTS else None
        recorder.add(
            *(case.name, name, "exists_us", "us", sample),
            against=(RAW, samples[RAW].value),
            target=target,
            limit=target,
        )
