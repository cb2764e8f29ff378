"""Claim: for each trace and size, "cost" saves at least 0.95 of the encode time that "lru" saves.

The bench encodes nothing: it runs the cache's policies on generated traces, with the cache's page accounting.
Two more contenders are "farthest", which knows the future (Belady's rule), and "bound", which no cache can
exceed; `simulation` explains both for items of different sizes. ``python -m vitcache memory`` does the same
for a user's trace.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, cycle, islice
from typing import TYPE_CHECKING

import torch

from vitcache.bench.harness import figures
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Sample, Timer
from vitcache.bench.traffic.simulation import PAGE_ROWS, Outcome, bound, simulate, simulate_farthest
from vitcache.bench.traffic.traces import TRACES, make_trace
from vitcache.cache.policies import POLICIES, Policy, make_policy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "policy"
CLAIMS_CPU = True
DEVICE = torch.device("cpu")
JUDGED, REFERENCE, LEAST_PART = "cost", "lru", 0.95
GIB = 1 << 30
PAGE_BYTES = PAGE_ROWS * 4096 * 2  # rows of Qwen3-VL-8B without deepstack, bfloat16


@dataclass(frozen=True)
class TraceCase:
    """A trace of `length` accesses, replayed with each size of the device tier."""

    name: str
    length: int
    device_gib: tuple[float, ...]  # sizes of the device tier without a host tier
    tiers_gib: tuple[float, float]  # sizes of the device tier and the host tier in one more replay


@dataclass(frozen=True)
class OperationCase:
    """The time of a policy's operations with `entries` entries."""

    entries: int

    @property
    def name(self) -> str:
        """The number of entries."""
        return f"{self.entries} entries"


SIZES = (0.5, 1, 2, 4, 8, 16, 32)
CASES: dict[str, list[TraceCase | OperationCase]] = {
    "full": [
        *(TraceCase(name, 40_000, SIZES, (4, 16)) for name in TRACES),
        *(OperationCase(10**power) for power in range(3, 7)),
    ],
    "smoke": [*(TraceCase(name, 300, (0.125, 0.5), (0.125, 0.5)) for name in TRACES), OperationCase(100)],
}
OPERATIONS = 1000  # per measurement


def run_case(case: TraceCase | OperationCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields a label before each part."""
    if isinstance(case, TraceCase):
        yield from _replay(case, recorder)
    else:
        yield from _time_operations(case, recorder, timer)


def draw(rows: figures.Rows) -> Figure:
    """Draw a panel per trace: the saved encode time over the memory of one tier."""
    chosen = [row for row in rows if row["metric"] == "saved_share" and "+" not in row["case"]]
    traces = list(dict.fromkeys(row["case"].split()[0] for row in chosen))
    names = (
        JUDGED,
        REFERENCE,
        *(name for name in POLICIES if name not in (JUDGED, REFERENCE)),
        "farthest",
        "bound",
    )
    looks = figures.styles(names)
    words = {REFERENCE: "lru (vitcache's default)", "farthest": "farthest (knows the future)"}
    words["bound"] = "bound (no cache saves more)"
    figure, panels = figures.open_figure(
        -(-len(traces) // 3), min(3, len(traces)), height=2.4 * -(-len(traces) // 3)
    )
    for axes, trace in zip(panels.flat, traces, strict=False):
        for name in names:
            points = [
                (row["bytes"] / GIB, 100 * row["value"])
                for row in chosen
                if (row["case"].split()[0], row["contender"]) == (trace, name)
            ]
            # LRU is often equal to cost: its line is wider and below.
            under = (
                {"markersize": 9, "linewidth": 3.5, "zorder": 1.5} if name == REFERENCE else {"markersize": 4}
            )
            axes.plot(*zip(*points, strict=True), **looks[name].curve(), **under, label=words.get(name, name))
        axes.set(
            title=f"trace: {trace}", ylim=(0, None), xlabel="GiB of the cache", ylabel="encode time saved (%)"
        )
        axes.set_xscale("log")
        figures.plain_ticks(axes, sorted({row["bytes"] / GIB for row in chosen}))
    for axes in panels.flat[len(traces) :]:
        axes.set_visible(False)
    saved = {(row["case"], row["contender"]): row["value"] for row in chosen}
    ratios = [
        saved[case, JUDGED] / saved[case, REFERENCE]
        for case, name in saved
        if name == JUDGED and saved[case, REFERENCE]
    ]
    title = (
        f'In {len(traces)} traces the policy "cost" saves {figures.span(ratios)} times the encode time '
        f"that LRU saves (target: at least {LEAST_PART:g})"
    )
    note = (
        "Replayed traces; nothing is encoded. farthest evicts the entry whose next use is farthest in the "
        "future (Belady's rule). bound is computed from pages and time: no cache of this size can save more. "
        "All numbers are exact, and alike on every machine."
    )
    return figures.finish(figure, rows, title, note)


def _replay(case: TraceCase, recorder: Recorder) -> Iterator[str]:
    trace = make_trace(case.name, case.length)
    for gib in case.device_gib:
        yield f"{gib:g} GiB"
        pages = int(gib * GIB) // PAGE_BYTES
        outcomes = {
            **{name: simulate(trace, name, pages) for name in POLICIES},
            "farthest": simulate_farthest(trace, pages),
            "bound": bound(trace, pages),
        }
        _add_shares(recorder, f"{case.name} {gib:g} GiB", outcomes, ("hit_share", "saved_share"), pages)
    device, host = case.tiers_gib
    label = f"{device:g} + {host:g} GiB"
    yield label
    tiers = [int(gib * GIB) // PAGE_BYTES for gib in case.tiers_gib]
    outcomes = {name: simulate(trace, name, *tiers) for name in POLICIES}
    _add_shares(recorder, f"{case.name} {label}", outcomes, ("saved_share", "written_share"), sum(tiers))


def _add_shares(
    recorder: Recorder, label: str, outcomes: dict[str, Outcome], metrics: tuple[str, ...], pages: int
) -> None:
    """Add a result per metric and outcome; its ratio is to the bound, if there is one."""
    for metric in metrics:
        shares = {name: getattr(outcome, metric) for name, outcome in outcomes.items()}
        bound_share = shares.get("bound")
        for name, share in shares.items():
            recorder.add(
                label,
                name,
                metric,
                "share",
                Sample.of([share]),
                bytes_moved=pages * PAGE_BYTES,
                against=("bound", bound_share) if bound_share else None,
                limit=_limit(name, metric, shares),
                at_least=True,
            )


def _limit(name: str, metric: str, shares: dict[str, float]) -> float | None:
    return LEAST_PART * shares[REFERENCE] if (name, metric) == (JUDGED, "saved_share") else None


def _time_operations(case: OperationCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    rng = random.Random(0)
    for name in POLICIES:
        yield name
        keys = [rng.randbytes(32) for _ in range(case.entries)]
        hits, new_keys = cycle(rng.sample(keys, len(keys))), (number.to_bytes(32) for number in count())
        policy = make_policy(name, 8 * case.entries)
        for key in keys:
            policy.insert(key, rng.randint(1, 15), 30.0)

        calls = {"touch_us": partial(_touch, policy, hits), "replace_us": partial(_replace, policy, new_keys)}
        for metric, run in calls.items():
            total = timer.host_us(run)
            each = Sample(*(value / OPERATIONS for value in (total.value, total.p20, total.p80)))
            recorder.add(case.name, name, metric, "us", each)


def _touch(policy: Policy, keys: Iterator[bytes]) -> None:
    for key in islice(keys, OPERATIONS):
        policy.touch(key)


def _replace(policy: Policy, keys: Iterator[bytes]) -> None:
    """Do the policy's part of a miss that evicts one entry."""
    for key in islice(keys, OPERATIONS):
        victim = next(iter(policy.victims()))
        policy.is_worth_copy(victim)
        policy.evict(victim)
        policy.insert(key, 8, 30.0)
