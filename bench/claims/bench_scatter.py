"""Claim: placement takes the time of a copy of its bytes, from every kind of source, and little host time.

The sources are separate tensors, one packed tensor, pages of a cache's device tier, and pages of its pinned
host tier. One more contender reads tensors and also writes their cache pages in the same launch. The limits,
measured in the same run, are a copy on the device and a copy from pinned memory to the device. Each result is
checked before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

import vitcache
from vitcache.bench.chats.contenders import Scene
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.registry import PLACEMENT_CASES, PlacementCase
from vitcache.bench.harness.timing import Sample, Timer
from vitcache.bench.traffic.simulation import PAGE_ROWS

NAME = "scatter"
CASES = PLACEMENT_CASES
# Targets of the design.
# From device memory: COPY_FACTOR times the copy; without deepstack levels, plus TABLE_US for the row table.
COPY_FACTOR, TABLE_US = 1.015, 2.0
# If the launch writes pages, too: STORE_FACTOR times 1.5 copies, as each row is read once and written twice.
STORE_FACTOR, COPIES = 1.02, 1.5
# From the host tier: the share of the pinned copy's speed, for long entries and for short entries.
HOST_SHARE = {"32x880": 0.95, "512x64": 0.88}
# Host microseconds to issue a call with one span, and with 512 spans.
ISSUE_ONE_US = 30.0
ISSUE_512_US = {"packed": 45.0, "device-pages": 150.0, "tensors": 300.0}


def run_case(case: PlacementCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields the name of each contender before it is measured."""
    scene, on_gpu = Scene(case, timer.device), timer.device.type == "cuda"
    rows_bytes = scene.packed.nbytes
    yield "copy"
    copy, pinned_copy = time_limits(scene, timer)
    recorder.add(case.name, "copy", "device_us", "us", copy, bytes_moved=2 * rows_bytes)
    recorder.add(case.name, "pinned-copy", "device_us", "us", pinned_copy, bytes_moved=2 * rows_bytes)
    expected = build(scene, scene.embeddings, scene.spans)
    for name, prepare in SOURCES.items():
        yield name
        embeddings, spans, cache = prepare(scene)
        for part, got, wanted in zip(
            ("rows", "deepstack"), build(scene, embeddings, spans), expected, strict=True
        ):
            if wanted is not None and not torch.equal(got, wanted):
                raise RuntimeError(f"{name} placed wrong {part}: it gets no number")
        place = placement_call(scene, embeddings, spans)
        if name == "host-pages":
            share = HOST_SHARE.get(case.name)  # of the speed; the inverse is a factor of the time
            limit, target, against = pinned_copy, None if share is None else 1 / share, "pinned-copy"
            slack = 0.0
        else:
            limit, target, against = copy, COPY_FACTOR, "copy"
            slack = 0.0 if case.levels else TABLE_US
        judged = on_gpu and target is not None
        recorder.add(
            case.name,
            name,
            "device_us",
            "us",
            timer.device_us(place),
            bytes_moved=2 * rows_bytes,
            against=(against, limit.value),
            target=target if judged else None,
            limit=target * limit.value + slack if judged else None,
        )
        issue_target = (
            ISSUE_ONE_US if case.items == 1 else ISSUE_512_US.get(name) if case.items == 512 else None
        )
        issue = timer.host_us(place)
        recorder.add(
            case.name,
            name,
            "host_us",
            "us",
            issue,
            target=issue_target if on_gpu else None,
            limit=issue_target if on_gpu else None,
        )
        del cache  # not earlier: the leases read its pages
    yield "tensors-and-pages"
    run_store(scene, copy, expected, recorder, timer)


def run_store(
    scene: Scene,
    copy: Sample,
    expected: tuple[torch.Tensor, torch.Tensor | None],
    recorder: Recorder,
    timer: Timer,
) -> None:
    """Measure a launch that places rows and writes their pages; every repeat writes the same pages."""
    case, on_gpu = scene.case, timer.device.type == "cuda"
    cache = make_cache(scene, on_host=False)
    store = [cache.reserve(key, case.rows) for key in keys_of(scene)]
    got = build(scene, scene.embeddings, scene.spans, store=store)
    pages = [torch.cat(reservation.segments()) for reservation in store]
    for wanted, placed in [*zip(expected, got, strict=True), *zip(scene.embeddings, pages, strict=True)]:
        if wanted is not None and not torch.equal(placed, wanted):
            raise RuntimeError("tensors-and-pages wrote wrong rows: it gets no number")
    place = placement_call(scene, scene.embeddings, scene.spans, store=store)
    recorder.add(
        case.name,
        "tensors-and-pages",
        "device_us",
        "us",
        timer.device_us(place),
        bytes_moved=3 * scene.packed.nbytes,
        against=("1.5 copies", COPIES * copy.value),
        target=STORE_FACTOR if on_gpu else None,
        limit=STORE_FACTOR * COPIES * copy.value if on_gpu else None,
    )
    recorder.add(case.name, "tensors-and-pages", "host_us", "us", timer.host_us(place))
    for reservation in store:
        reservation.cancel()


def time_limits(scene: Scene, timer: Timer) -> tuple[Sample, Sample]:
    """Measure a copy of the rows on the device, and a copy from pinned memory to the device."""
    copied = torch.empty_like(scene.packed)
    pinned = scene.packed.cpu().pin_memory() if timer.device.type == "cuda" else scene.packed.clone()
    return (
        timer.device_us(lambda: copied.copy_(scene.packed)),
        timer.device_us(lambda: copied.copy_(pinned, non_blocking=True)),
    )


def placement_call(
    scene: Scene, embeddings: object, spans: object, store: object = None
) -> Callable[[], object]:
    """Allocate a destination; return a function that places the rows in it on each call."""
    out = torch.zeros(scene.case.num_tokens, scene.case.hidden, dtype=scene.dtype, device=scene.device)
    deepstack = scene.deepstack(torch.zeros)
    return lambda: vitcache.scatter_embeddings(out, embeddings, spans, deepstack=deepstack, store=store)


def build(
    scene: Scene, embeddings: object, spans: object, store: object = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Place the rows in a destination of NaN; return it with 0 in place of NaN, and the deepstack levels."""
    shape = (scene.case.num_tokens, scene.case.hidden)
    out = torch.full(shape, float("nan"), dtype=scene.dtype, device=scene.device)
    deepstack = scene.deepstack(torch.zeros)
    vitcache.scatter_embeddings(out, embeddings, spans, deepstack=deepstack, store=store)
    return out.nan_to_num_(0.0), deepstack


def make_cache(scene: Scene, *, on_host: bool) -> vitcache.EmbeddingCache:
    """Make an empty cache; each of its tiers has space for all rows of the scene."""
    page_bytes = PAGE_ROWS * scene.width * scene.dtype.itemsize
    pages = scene.case.items * -(-scene.case.rows // PAGE_ROWS)
    return vitcache.EmbeddingCache(
        scene.width,
        dtype=scene.dtype,
        device=scene.device,
        device_bytes=pages * page_bytes,
        host_bytes=pages * page_bytes if on_host else 0,
    )


def keys_of(scene: Scene) -> list[bytes]:
    """Return a key per item."""
    return [item.to_bytes(32, "little") for item in range(scene.case.items)]


def fill_cache(scene: Scene, *, on_host: bool) -> tuple[object, object, object]:
    """Put the rows in one tier; return leases, spans and the cache, which must outlive the placements."""
    cache, keys = make_cache(scene, on_host=on_host), keys_of(scene)
    for key, rows in zip(keys, scene.embeddings, strict=True):
        cache.put(key, rows)
    if on_host:
        # These puts evict all entries of the device tier, so that they are demoted to the host tier.
        for number, rows in enumerate(scene.embeddings):
            cache.put((number + scene.case.items).to_bytes(32, "little"), rows)
    return [cache.get(key) for key in keys], scene.spans, cache


SOURCES: dict[str, Callable[[Scene], tuple[object, object, object]]] = {
    "tensors": lambda scene: (scene.embeddings, scene.spans, None),
    "packed": lambda scene: (scene.packed, scene.packed_spans, None),
    "device-pages": lambda scene: fill_cache(scene, on_host=False),
    "host-pages": lambda scene: fill_cache(scene, on_host=True),
}
