"""Claims about one step: cold images take the time of their encode; the cache adds little; hits take little.

This module is a part of the bench `multiturn`. A step is one call of `VisionPipeline.embed`; its time ends
when the device is idle. The bench `step` measures the host's time alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from typing import Any

import torch
from torch import Tensor

from vitcache import Chunk, EmbeddingCache, Item, Span, VisionPipeline, content_key, embed_tokens
from vitcache.bench.chats.chat import Chat, Tower, image_key, load_model
from vitcache.bench.chats.sides import RING_BYTES, check_built, open_ring
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timeline import TracedRing, draw, record_step
from vitcache.bench.harness.timing import Timer
from vitcache.bench.traffic.simulation import PAGE_ROWS

# Targets of the design: factors of the tower's time, and of the time of the same work without a cache.
COLD_FACTOR, OVERHEAD_FACTOR = 1.02, 1.01
# Targets of the design: milliseconds until the rows of all hits are placed. The target of the host tier
# depends on the number of deepstack levels.
DEVICE_HITS_MS, HOST_HITS_MS = 1.0, {0: 6.0, 3: 18.0}
JUDGED_IMAGES = 32
REPEATS = 5  # a repeat takes about half a second


@dataclass(frozen=True)
class StepCase:
    """A prompt with `images` cold images of ``grid`` patches; a micro-batch has at most `max_rows` rows."""

    name: str
    grid: tuple[int, int, int]
    images: int
    size: str = "8b"
    max_rows: int = 4096


@dataclass(frozen=True)
class HitsCase:
    """A prompt with `images` images of `rows` rows that are all in the cache; it needs no model."""

    name: str
    images: int
    rows: int
    levels: int = 0
    hidden: int = 4096
    vocabulary: int = 151_936


def run_step(case: StepCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure a step with cold images for every contender, and record the timeline of one such step."""
    yield "building the model"
    model = load_model(case.size, timer.device)
    chat, tower = Chat(model, case.grid, case.images), Tower(model)
    ids, deepstack = chat.host_ids.to(timer.device), chat.deepstack(len(chat.host_ids))
    per_call = max(1, case.max_rows // chat.rows)
    on_device = [
        chat.item(i, key=item.key, feature=item.feature.to(timer.device)) for i, item in enumerate(chat.items)
    ]
    spans = [item.spans[0] for item in chat.items]
    new_images = count(case.images)  # numbers of images that were never put

    def encode(items: Sequence[Item], batch_size: int) -> list[Tensor]:
        batches = [items[first : first + batch_size] for first in range(0, len(items), batch_size)]
        return [
            rows
            for batch in batches
            for rows in tower([item.feature for item in batch], batch).split(chat.rows)
        ]

    def stock() -> object:
        return tower([item.feature.to(timer.device) for item in chat.items], chat.items)

    @torch.no_grad()
    def without_cache() -> Tensor:
        return embed_tokens(ids, chat.weight, encode(on_device, per_call), spans, deepstack=deepstack)

    with ExitStack() as stack:
        ring = open_ring(timer.device, stack)

        def cold(
            items: Callable[[], list[Item]], *, is_full: bool = False, **options: Any
        ) -> Callable[[], Tensor]:
            """Return a step on an empty cache; with `is_full`, on a full cache that demotes its entries."""
            tier_bytes = chat.page_bytes(case.images)
            cache = EmbeddingCache(
                chat.row_width,
                dtype=chat.weight.dtype,
                device=timer.device,
                device_bytes=tier_bytes,
                host_bytes=tier_bytes if is_full else 0,
            )
            stack.callback(cache.close)
            options = {"ring": ring, "max_rows_per_encode": case.max_rows, **options}
            pipeline = stack.enter_context(VisionPipeline(tower, cache, **options))

            def step() -> Tensor:
                if not is_full:
                    cache.clear()
                before = cache.stats()
                result = pipeline.embed([Chunk(items(), 0, len(ids))], ids, chat.weight, deepstack=deepstack)
                after = cache.stats()
                inserted = after.insertions - before.insertions
                demoted = after.demotions - before.demotions
                if result.errors or inserted != case.images or demoted != len(cache) - inserted:
                    raise RuntimeError(
                        f"expected {case.images} insertions and {len(cache) - inserted} demotions, "
                        f"got {inserted} and {demoted}; errors: {result.errors}"
                    )
                return result.inputs_embeds

            return step

        vitcache: dict[str, Callable[[], Tensor]] = {
            "vitcache": cold(lambda: chat.items),
            "vitcache, keys computed": cold(chat.without_keys),
            "vitcache, bfloat16 features": cold(lambda: chat.items, feature_dtype=torch.bfloat16),
            "vitcache, features on device": cold(lambda: on_device),
            "vitcache, features on device, keys computed": cold(
                lambda: [chat.item(i, key=None, feature=item.feature) for i, item in enumerate(on_device)]
            ),
            "vitcache, features on device, cache full": cold(
                lambda: [
                    chat.item(i, key=image_key(next(new_images)), feature=item.feature)
                    for i, item in enumerate(on_device)
                ],
                is_full=True,
            ),
        }
        yield "checking"
        expected = _stack_levels(without_cache(), deepstack)
        for name, step in vitcache.items():
            deepstack.fill_(float("nan"))
            rounded_to = torch.bfloat16 if "bfloat16" in name else None
            check_built(name, _stack_levels(step(), deepstack), expected, rounded_to)
        del expected
        contenders: dict[str, Callable[[], object]] = {
            "tower": lambda: encode(on_device, per_call),
            "tower, one call": lambda: encode(on_device, case.images),
            ".to, one call": stock,
            "no cache, features on device": without_cache,
            **vitcache,
        }
        yield "cold, in turns"
        add_cold(case, recorder, timer, contenders)
        yield "timeline"
        traced = stack.enter_context(TracedRing(RING_BYTES))
        step = cold(lambda: chat.items, ring=traced)
        step()
        trace = record_step(step, recorder.path, timer.device)
        if find_spec("matplotlib"):
            draw(trace)


def add_cold(
    case: StepCase, recorder: Recorder, timer: Timer, contenders: dict[str, Callable[[], object]]
) -> None:
    """Measure whole steps, until the device is idle, and add the results."""
    few = Timer(timer.device, min(timer.repeats, REPEATS))
    samples = few.rounds_us(contenders)
    alone = min(("tower", "tower, one call"), key=lambda name: samples[name].value)
    judged = {
        "vitcache": (alone, COLD_FACTOR),
        "vitcache, features on device": ("no cache, features on device", OVERHEAD_FACTOR),
        "vitcache, features on device, cache full": ("no cache, features on device", OVERHEAD_FACTOR),
    }
    for name, sample in samples.items():
        default = "no cache, features on device" if "features on device" in name else alone
        against, factor = judged.get(name, (default, None))
        bound = samples[against].value
        factor = factor if timer.device.type == "cuda" else None
        recorder.add(
            case.name,
            name,
            "step_us",
            "us",
            sample,
            against=(against, bound),
            target=factor,
            limit=factor and factor * bound,
        )


def run_hits(case: HitsCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure a step that hits all its images: all in the device tier, or all in the host tier."""
    device, on_gpu = timer.device, timer.device.type == "cuda"
    width, pitch = case.hidden * (1 + case.levels), case.rows + 16
    rows = [torch.randn(case.rows, width, device=device).bfloat16() for _ in range(case.images)]
    ids = torch.randint(0, case.vocabulary, (case.images * pitch,), device=device)
    weight = torch.randn(case.vocabulary, case.hidden, device=device).bfloat16()
    deepstack = weight.new_empty(case.levels, len(ids), case.hidden) if case.levels else None
    spans = [Span(image * pitch, case.rows) for image in range(case.images)]
    given = [Item(None, span, key=image_key(image)) for image, span in enumerate(spans)]
    features = [torch.full((4 * case.rows, 1536), float(image)) for image in range(case.images)]
    page_bytes = -(-case.rows // PAGE_ROWS) * PAGE_ROWS * width * 2
    wanted = _stack_levels(embed_tokens(ids, weight, rows, spans, deepstack=deepstack), deepstack)
    functions: dict[str, Callable[[], object]] = {}
    with ExitStack() as stack:

        def add(name: str, items: Callable[[], list[Item]], keys: list[bytes], *, on_host: bool) -> None:
            cache = EmbeddingCache(
                width,
                device=device,
                device_bytes=page_bytes * (1 if on_host else case.images),
                host_bytes=page_bytes * case.images if on_host else 0,
            )
            stack.callback(cache.close)
            pipeline = stack.enter_context(VisionPipeline(_encode_nothing, cache))
            for key, image_rows in zip(keys, rows, strict=True):
                cache.put(key, image_rows)
            if on_host:
                cache.put(image_key(case.images), rows[0])  # demotes the last image, too

            def step() -> Tensor:
                chunks = [Chunk(items(), 0, len(ids))]
                result = pipeline.embed(chunks, ids, weight, deepstack=deepstack)
                if result.errors:
                    raise RuntimeError(f"expected a hit for every image, got an error: {result.errors[0]}")
                return result.inputs_embeds

            if deepstack is not None:
                deepstack.fill_(float("nan"))
            if not torch.equal(_stack_levels(step(), deepstack), wanted):
                raise RuntimeError(f"{name} placed wrong rows: it gets no number")
            functions[name] = step

        given_keys = [image_key(image) for image in range(case.images)]
        yield "filling the tiers"
        add("device tier", lambda: given, given_keys, on_host=False)
        add("host tier", lambda: given, given_keys, on_host=True)
        add(
            "device tier, keys computed",
            lambda: [Item(feature, span) for feature, span in zip(features, spans, strict=True)],
            [content_key(feature, extra={}) for feature in features],
            on_host=False,
        )
        yield "hits, in turns"
        samples = Timer(device, min(timer.repeats, 10)).rounds_us(functions)
    targets = {"device tier": DEVICE_HITS_MS, "host tier": HOST_HITS_MS.get(case.levels)}
    for name, sample in samples.items():
        target = targets.get(name) if on_gpu and case.images == JUDGED_IMAGES else None
        limit = target and target * 1e3
        recorder.add(case.name, name, "hits_us", "us", sample, target=target, limit=limit)


def _stack_levels(inputs_embeds: Tensor, deepstack: Tensor | None) -> Tensor:
    """Copy `inputs_embeds` and the deepstack levels into one tensor ``(1 + levels, tokens, hidden)``."""
    levels = [] if deepstack is None else [deepstack]
    return torch.cat([inputs_embeds[None], *levels])


def _encode_nothing(features: list[Tensor], items: list[Item]) -> list[Tensor]:
    raise RuntimeError(f"expected no encode, as all images are in the cache, got one of {len(items)} images")
