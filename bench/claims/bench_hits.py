"""Claim: a step that hits all its images takes little time, from either tier.

A step is one call of `VisionPipeline.embed`; its time ends when the device is idle. The first hit of an entry
in the host tier only reads it. The second one promotes it: the same launch also writes its rows to device
pages. The bench measures both, each under its own name: before each step it fills the host tier anew. After
each step it compares the counters of the cache with those of the named work; if one differs, the case gets no
number. The limits, measured in the same turns, are a copy on the device that reads and writes as many bytes
as the step must, and a copy of the images' rows from pinned memory to the device. The bench `step` measures
the host's time alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from vitcache import CacheStats, Chunk, EmbeddingCache, Item, Span, VisionPipeline, content_key, embed_tokens
from vitcache.bench.chats.chat import image_key
from vitcache.bench.chats.sides import stack_levels
from vitcache.bench.harness import figures
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.registry import GPU, PlacementCase
from vitcache.bench.harness.timing import Timer
from vitcache.bench.traffic.simulation import PAGE_ROWS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "hits"
# Targets of the design: milliseconds until the rows of all hits are placed. The target of the host tier
# depends on the number of deepstack levels.
DEVICE_HITS_MS, HOST_HITS_MS = 1.0, {0: 6.0, 3: 18.0}
JUDGED_IMAGES = 32
REPEATS = 10
ON_DEVICE, COMPUTED = "device tier", "device tier, keys computed"
ON_HOST, PROMOTED = "host tier, not promoted", "host tier, promoted"
COPY, PINNED_COPY = "copy", "pinned-copy"


@dataclass(frozen=True)
class HitsCase(PlacementCase):
    """A prompt whose images are all in the cache; it needs no model."""

    RUNS_ON: ClassVar[str] = GPU


CASES = {
    "full": [
        HitsCase("32x1280x720", 32, 880, 4096),
        HitsCase("32x1280x720-deepstack3", 32, 880, 4096, levels=3),
    ],
    "smoke": [HitsCase("3x7-deepstack2", 3, 7, 64, levels=2, gap=2, vocabulary=97)],
}


class Inputs:
    """The inputs of the steps of one case: ids, a table of text rows, and the rows of each image."""

    def __init__(self, case: HitsCase, device: torch.device) -> None:
        self.case, self.device = case, device
        self.width = case.hidden * (1 + case.levels)
        self.rows = [torch.randn(case.rows, self.width, device=device).bfloat16() for _ in case.starts]
        self.ids = torch.randint(0, case.vocabulary, (case.num_tokens,), device=device)
        self.weight = torch.randn(case.vocabulary, case.hidden, device=device).bfloat16()
        self.deepstack = (
            self.weight.new_empty(case.levels, len(self.ids), case.hidden) if case.levels else None
        )
        self.spans = [Span(start, case.rows) for start in case.starts]
        self.given_keys = [image_key(image) for image in range(case.items)]
        self.given = [
            Item(None, span, key=key) for span, key in zip(self.spans, self.given_keys, strict=True)
        ]
        self.tier_bytes = case.items * -(-case.rows // PAGE_ROWS) * PAGE_ROWS * self.width * 2
        built = embed_tokens(self.ids, self.weight, self.rows, self.spans, deepstack=self.deepstack)
        self.wanted = stack_levels(built, self.deepstack)


@dataclass
class Hits:
    """Steps that hit all images in one tier of a cache.

    `items` makes the items of a step. With `on_host`, the entries are in the host tier before each step; with
    `is_promoted`, each of them has one hit there, so that the step promotes it.
    """

    name: str
    inputs: Inputs
    items: Callable[[], list[Item]]
    keys: list[bytes]
    stack: ExitStack
    on_host: bool = False
    is_promoted: bool = False
    cache: EmbeddingCache = field(init=False)
    pipeline: VisionPipeline = field(init=False)

    def __post_init__(self) -> None:
        inputs = self.inputs
        self.cache = EmbeddingCache(
            inputs.width,
            device=inputs.device,
            device_bytes=inputs.tier_bytes,
            host_bytes=inputs.tier_bytes if self.on_host else 0,
        )
        self.stack.callback(self.cache.close)
        self.pipeline = self.stack.enter_context(VisionPipeline(_encode_nothing, self.cache))
        self._before: CacheStats | None = None
        if not self.on_host:
            self._fill("device")

    def prepare(self) -> None:
        """Check the counters of the step before, and prepare the next step."""
        self.check()
        if self.on_host:
            self.cache.clear()
            self._fill("host")
        if self.is_promoted:
            for lease in self.cache.get_many(self.keys):
                if lease is not None:
                    lease.release()
        self._before = self.cache.stats()

    def step(self) -> Tensor:
        """Run one step."""
        inputs = self.inputs
        chunks = [Chunk(self.items(), 0, len(inputs.ids))]
        result = self.pipeline.embed(chunks, inputs.ids, inputs.weight, deepstack=inputs.deepstack)
        if result.errors:
            raise RuntimeError(f"expected a hit for every image, got an error: {result.errors[0]}")
        return result.inputs_embeds

    def check(self) -> None:
        """Raise RuntimeError if the last step did other work than the name says."""
        before, self._before = self._before, None
        if before is None:
            return
        after, images = self.cache.stats(), self.inputs.case.items
        got = {
            "hits in the device tier": after.device.hits - before.device.hits,
            "hits in the host tier": after.host.hits - before.host.hits,
            "promotions": after.promotions - before.promotions,
            "misses": after.misses - before.misses,
            "insertions": after.insertions - before.insertions,
        }
        of_device, of_host = (0, images) if self.on_host else (images, 0)
        expected = dict(zip(got, (of_device, of_host, images if self.is_promoted else 0, 0, 0), strict=True))
        if got != expected:
            raise RuntimeError(f"{self.name}: expected {expected}, got {got}: it gets no number")

    def check_rows(self) -> None:
        """Raise RuntimeError if a step places wrong rows."""
        if self.inputs.deepstack is not None:
            self.inputs.deepstack.fill_(float("nan"))
        self.prepare()
        if not torch.equal(stack_levels(self.step(), self.inputs.deepstack), self.inputs.wanted):
            raise RuntimeError(f"{self.name} placed wrong rows: it gets no number")

    def _fill(self, tier: str) -> None:
        for key, rows in zip(self.keys, self.inputs.rows, strict=True):
            self.cache.put(key, rows, tier=tier)


def run_case(case: HitsCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure steps that hit all images, and the limits, in turns; yields a label before each part."""
    yield "filling the tiers"
    inputs = Inputs(case, timer.device)
    moved_bytes = case.moved_elements * inputs.weight.itemsize
    rows_bytes = sum(rows.nbytes for rows in inputs.rows)
    with ExitStack() as stack:
        sides = open_sides(inputs, stack)
        for side in sides.values():
            side.check_rows()
        limits = limit_calls(moved_bytes // 2, inputs)
        yield "hits, in turns"
        samples = timer.with_repeats(min(timer.repeats, REPEATS)).rounds_us(
            {**limits, **{name: side.step for name, side in sides.items()}},
            before={
                **dict.fromkeys(limits, lambda: None),
                **{name: side.prepare for name, side in sides.items()},
            },
        )
        for side in sides.values():
            side.check()
    for name, sample in samples.items():
        is_host = name in (ON_HOST, PROMOTED, PINNED_COPY)
        limit_name = PINNED_COPY if is_host else COPY
        host_target = HOST_HITS_MS.get(case.levels)
        target = {ON_DEVICE: DEVICE_HITS_MS, ON_HOST: host_target, PROMOTED: host_target}.get(name)
        if timer.device.type != "cuda" or case.items != JUDGED_IMAGES:
            target = None
        recorder.add(
            case.name,
            name,
            "hits_us",
            "us",
            sample,
            # A promotion also writes the rows of the images to pages.
            bytes_moved={PINNED_COPY: 2 * rows_bytes, PROMOTED: moved_bytes + rows_bytes}.get(
                name, moved_bytes
            ),
            against=(limit_name, samples[limit_name].value),
            target=target,
            limit=target and target * 1e3,
        )


def open_sides(inputs: Inputs, stack: ExitStack) -> dict[str, Hits]:
    """Open all contenders, by name; `stack` closes them."""
    features = [torch.full((4 * inputs.case.rows, 1536), float(image)) for image in range(inputs.case.items)]

    def without_keys() -> list[Item]:
        return [Item(feature, span) for feature, span in zip(features, inputs.spans, strict=True)]

    computed_keys = [content_key(feature, extra={}) for feature in features]

    def given() -> list[Item]:
        return inputs.given

    keys = inputs.given_keys
    sides = [
        Hits(ON_DEVICE, inputs, given, keys, stack),
        Hits(ON_HOST, inputs, given, keys, stack, on_host=True),
        Hits(PROMOTED, inputs, given, keys, stack, on_host=True, is_promoted=True),
        Hits(COMPUTED, inputs, without_keys, computed_keys, stack),
    ]
    return {side.name: side for side in sides}


def limit_calls(num_bytes: int, inputs: Inputs) -> dict[str, Callable[[], object]]:
    """Return a copy of `num_bytes` on the device, and a copy of all rows from pinned memory to the device."""
    source, copied = (torch.empty(num_bytes, dtype=torch.uint8, device=inputs.device) for _ in range(2))
    rows = torch.cat(inputs.rows)
    pinned = rows.cpu().pin_memory() if inputs.device.type == "cuda" else rows.clone()
    return {
        COPY: lambda: copied.copy_(source),
        PINNED_COPY: lambda: rows.copy_(pinned, non_blocking=True),
    }


def _encode_nothing(features: list[Tensor], items: list[Item]) -> list[Tensor]:
    raise RuntimeError(f"expected no encode, as all images are in the cache, got one of {len(items)} images")


def draw(rows: figures.Rows) -> Figure:
    """Draw the milliseconds of a step whose images all hit, beside copies of the same bytes."""
    names = list(dict.fromkeys(row["contender"] for row in rows))
    limits = (COPY, PINNED_COPY)
    looks = figures.styles([*(name for name in names if name not in limits), *limits])
    targets = {(row["case"], row["contender"]): row["target"] for row in rows if row["target"] is not None}
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, [[axes]] = figures.open_figure(height=0.6 + len(cases) * (0.2 + 0.2 * len(names)))
    axes.set_xscale("log")
    figures.compare(axes, rows, looks, scale=1e-3, unit=" ms", targets=targets)
    figures.log_ticks(axes)
    axes.set(xlabel="time of a step (milliseconds; less is better)", ylabel="images that hit")
    device, host = (figures.values(rows, name) for name in (ON_DEVICE, ON_HOST))
    title = (
        f"A step of hits takes {figures.span(device)} times a copy of its bytes from the device tier, and "
        f"{figures.span(host)} times a pinned copy from the host tier"
    )
    return figures.finish(figure, rows, title, figures.SPREAD)
