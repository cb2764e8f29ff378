"""Claim: placement takes the time of a copy of its bytes, from every kind of source, and little host time.

The sources are separate tensors, one packed tensor, pages of a cache's device tier, and pages of its pinned
host tier. The bench places device pages through new leases and through used leases. The target of a step
binds for new leases, as a server takes new leases in each step; the used leases show how much of the time
they cost. Host pages are placed without a promotion, and with one: then the launch also writes the rows to
device pages. One more contender reads tensors and also writes their cache pages in the same launch. The
limits, measured in the same run, are a copy on the device and a copy from pinned memory to the device. Each
result is checked before it is timed, and the counters of the cache are checked after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch

import vitcache
from vitcache.bench.chats.contenders import Scene
from vitcache.bench.claims.placement_sources import (
    HostPages,
    NewLeases,
    Packed,
    PromotedPages,
    Tensors,
    TensorsAndPages,
    UsedLeases,
)
from vitcache.bench.harness import figures
from vitcache.bench.harness.ratios import targets_of
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.registry import PLACEMENT_CASES, PlacementCase
from vitcache.bench.harness.timing import Sample, Timer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "scatter"
CASES = PLACEMENT_CASES
NEW, USED, HOST = "device-pages, new leases", "device-pages, used leases", "host-pages"
PROMOTED, STORED = "host-pages, promoted", "tensors-and-pages"
SOURCES: dict[str, Callable[[Scene], Tensors]] = {
    "tensors": Tensors,
    "packed": Packed,
    NEW: NewLeases,
    USED: UsedLeases,
    HOST: HostPages,
    PROMOTED: PromotedPages,
    STORED: TensorsAndPages,
}
# Targets of the design.
# From device memory: COPY_FACTOR times the copy; without deepstack levels, plus TABLE_US for the row table.
COPY_FACTOR, TABLE_US = 1.015, 2.0
# If the launch writes pages, too: STORE_FACTOR times 1.5 copies, as each row is read once and written twice.
STORE_FACTOR, COPIES = 1.02, 1.5
# From the host tier: the share of the pinned copy's speed, for long entries and for short entries.
HOST_SHARE = {"32x880": 0.95, "512x64": 0.88}
# Host microseconds to issue a call with one span, and with 512 spans.
ISSUE_ONE_US = 30.0
ISSUE_512_US = {"packed": 45.0, NEW: 150.0, USED: 150.0, "tensors": 300.0}


class Limit(NamedTuple):
    """The reference of a contender's time, and the target: a factor of it and added microseconds, or None."""

    name: str
    us: float
    factor: float | None
    slack_us: float = 0.0


def run_case(case: PlacementCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields the name of each contender before it is measured."""
    scene, on_gpu = Scene(case, timer.device), timer.device.type == "cuda"
    rows_bytes = scene.packed.nbytes
    yield "copy"
    copy, pinned_copy = time_limits(scene, timer)
    recorder.add(case.name, "copy", "device_us", "us", copy, bytes_moved=2 * rows_bytes)
    recorder.add(case.name, "pinned-copy", "device_us", "us", pinned_copy, bytes_moved=2 * rows_bytes)
    expected = place_in_nan(scene, Tensors(scene))
    for name, open_source in SOURCES.items():
        yield name
        source = open_source(scene)
        check_placed(name, place_in_nan(scene, source), expected)
        place = placement_call(scene, source)
        device_us = timer.device_us(place, source.before_call)
        host_us = timer.host_us(place, source.before_call)
        source.check()
        source.close()
        limit = limit_of(name, case, copy, pinned_copy)
        judged = on_gpu and limit.factor is not None
        recorder.add(
            case.name,
            name,
            "device_us",
            "us",
            device_us,
            # Each row is read once; it is written to its token, and to its page if the launch stores it.
            bytes_moved=(3 if name in (PROMOTED, STORED) else 2) * rows_bytes,
            against=(limit.name, limit.us),
            target=limit.factor if judged else None,
            limit=(limit.factor or 0) * limit.us + limit.slack_us if judged else None,
        )
        target = issue_target(name, case) if on_gpu else None
        recorder.add(case.name, name, "host_us", "us", host_us, target=target, limit=target)


def limit_of(name: str, case: PlacementCase, copy: Sample, pinned_copy: Sample) -> Limit:
    """Return the limit of a contender's time on the device."""
    if name == STORED:
        return Limit("1.5 copies", COPIES * copy.value, STORE_FACTOR)
    if name in (HOST, PROMOTED):
        share = HOST_SHARE.get(case.name) if name == HOST else None
        # The target is a share of the speed; its inverse is a factor of the time.
        return Limit("pinned-copy", pinned_copy.value, None if share is None else 1 / share)
    return Limit("copy", copy.value, COPY_FACTOR, 0.0 if case.levels else TABLE_US)


def issue_target(name: str, case: PlacementCase) -> float | None:
    """Return the target of the host's time, or None."""
    if name in (PROMOTED, STORED):
        return None
    return {1: ISSUE_ONE_US, 512: ISSUE_512_US.get(name)}.get(case.items)


def time_limits(scene: Scene, timer: Timer) -> tuple[Sample, Sample]:
    """Measure a copy of the rows on the device, and a copy from pinned memory to the device."""
    copied = torch.empty_like(scene.packed)
    pinned = scene.packed.cpu().pin_memory() if timer.device.type == "cuda" else scene.packed.clone()
    return (
        timer.device_us(lambda: copied.copy_(scene.packed)),
        timer.device_us(lambda: copied.copy_(pinned, non_blocking=True)),
    )


def placement_call(scene: Scene, source: Tensors) -> Callable[[], object]:
    """Allocate a destination; return a function that places the source's rows in it on each call."""
    out = torch.zeros(scene.case.num_tokens, scene.case.hidden, dtype=scene.dtype, device=scene.device)
    deepstack = scene.deepstack(torch.zeros)
    spans, store = source.spans, source.store
    return lambda: vitcache.scatter_embeddings(
        out, source.embeddings, spans, deepstack=deepstack, store=store
    )


def place_in_nan(scene: Scene, source: Tensors) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Place rows in a destination of NaN; return it with 0 in place of NaN, and the deepstack levels."""
    shape = (scene.case.num_tokens, scene.case.hidden)
    out = torch.full(shape, float("nan"), dtype=scene.dtype, device=scene.device)
    deepstack = scene.deepstack(torch.zeros)
    vitcache.scatter_embeddings(out, source.embeddings, source.spans, deepstack=deepstack, store=source.store)
    return out.nan_to_num_(0.0), deepstack


def check_placed(
    name: str,
    placed: tuple[torch.Tensor, torch.Tensor | None],
    expected: tuple[torch.Tensor, torch.Tensor | None],
) -> None:
    """Raise RuntimeError if a contender's result differs from the expected result in one bit."""
    for part, got, wanted in zip(("rows", "deepstack"), placed, expected, strict=True):
        if wanted is not None and (got is None or not torch.equal(got, wanted)):
            raise RuntimeError(f"{name} placed wrong {part}: it gets no number")


def draw(rows: figures.Rows) -> Figure:
    """Draw the time of each kind of source as a multiple of its limit, a copy of the same bytes."""
    rows = [row for row in rows if row["metric"] == "device_us" and row["ratio"] is not None]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    names = {
        name: f"{name} (limit: {limit})"
        for name, limit in ((row["contender"], row["ratio_to"]) for row in rows)
    }
    rows = [{**row, "contender": names[row["contender"]]} for row in rows]
    figure, [[axes]] = figures.open_figure(height=0.6 + len(cases) * (0.2 + 0.14 * len(names)))
    axes.set_xscale("log")
    with_slack = [row for row in rows if row["ratio_to"] == "copy" and "deepstack" not in row["case"]]
    targets = targets_of(rows) | targets_of(with_slack, TABLE_US)
    figures.compare(axes, rows, figures.styles(names.values()), as_ratio=True, targets=targets)
    figures.target(axes, 1, " 1 = its limit", upright=True)
    figures.log_ticks(axes)
    axes.set(
        xlabel="time on the device / that of its limit (less is better)",
        ylabel="images x rows of each",
    )
    tensors, host = (figures.values(rows, names[name]) for name in ("tensors", HOST))
    title = (
        f"Placing rows of tensors takes {figures.span(tensors)} times a copy on the device; placing pages of "
        f"the host tier takes {figures.span(host)} times a pinned copy"
    )
    return figures.finish(figure, rows, title, figures.SPREAD)
