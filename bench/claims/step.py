"""Claims about one step: cold images cost their encoding, a cache without hits nothing, and hits next to it.

A part of the bench `multiturn`. The step is one call of `VisionPipeline.embed`.
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

# Targets of the design: factors on the tower alone, and on the same work without a cache.
COLD_FACTOR, OVERHEAD_FACTOR = 1.02, 1.01
# Milliseconds until the rows of all hits are placed: from the device tier, and by levels from the host tier.
DEVICE_HITS_MS, HOST_HITS_MS = 1.0, {0: 6.0, 3: 18.0}
JUDGED_IMAGES = 32
REPEATS = 5  # of half a second each


@dataclass(frozen=True)
class StepCase:
    """A prompt with `images` cold images of ``grid`` patches, encoded `max_rows` rows at a time."""

    name: str
    grid: tuple[int, int, int]
    images: int
    size: str = "8b"
    max_rows: int = 4096


@dataclass(frozen=True)
class HitsCase:
    """`images` images of `rows` rows that are all in the cache; no model is needed."""

    name: str
    images: int
    rows: int
    levels: int = 0
    hidden: int = 4096
    vocabulary: int = 151_936


def run_step(case: StepCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Cold images by every contender in turns, and the timeline of one such step."""
    yield "building the model"
    model = load_model(case.size, timer.device)
    chat, tower = Chat(model, case.grid, case.images), Tower(model)
    ids, deepstack = chat.host_ids.to(timer.device), chat.deepstack(len(chat.host_ids))
    per_call = max(1, case.max_rows // chat.rows)
    there = [
        chat.item(i, key=item.key, feature=item.feature.to(timer.device)) for i, item in enumerate(chat.items)
    ]
    spans = [item.spans[0] for item in chat.items]
    fresh = count(case.images)  # images that were never seen

    def encode(items: Sequence[Item], at_once: int) -> list[Tensor]:
        parts = [items[first : first + at_once] for first in range(0, len(items), at_once)]
        return [rows for part in parts for rows in tower([i.feature for i in part], part).split(chat.rows)]

    def stock() -> object:
        return tower([item.feature.to(timer.device) for item in chat.items], chat.items)

    @torch.no_grad()
    def without_cache() -> Tensor:
        return embed_tokens(ids, chat.weight, encode(there, per_call), spans, deepstack=deepstack)

    with ExitStack() as stack:
        ring = open_ring(timer.device, stack)

        def cold(
            items: Callable[[], list[Item]], *, moves_on: bool = False, **options: Any
        ) -> Callable[[], Tensor]:
            """A step on an empty cache, or on one that is full: then all that is there moves to the host."""
            room = chat.page_bytes(case.images)
            cache = EmbeddingCache(
                chat.row_width,
                dtype=chat.weight.dtype,
                device=timer.device,
                device_bytes=room,
                host_bytes=room if moves_on else 0,
            )
            stack.callback(cache.close)
            chosen = {"ring": ring, "max_rows_per_encode": case.max_rows, **options}
            pipeline = stack.enter_context(VisionPipeline(tower, cache, **chosen))

            def step() -> Tensor:
                if not moves_on:
                    cache.clear()
                before = cache.stats()
                result = pipeline.embed([Chunk(items(), 0, len(ids))], ids, chat.weight, deepstack=deepstack)
                after = cache.stats()
                cached, moved = after.insertions - before.insertions, after.demotions - before.demotions
                if result.errors or cached != case.images or moved != (len(cache) - cached):
                    raise RuntimeError(f"{cached} of {case.images} images were cached: {result.errors}")
                return result.inputs_embeds

            return step

        vitcache: dict[str, Callable[[], Tensor]] = {
            "vitcache": cold(lambda: chat.items),
            "vitcache, keys computed": cold(chat.without_keys),
            "vitcache, bfloat16 features": cold(lambda: chat.items, feature_dtype=torch.bfloat16),
            "vitcache, features there": cold(lambda: there),
            "vitcache, features there, keys computed": cold(
                lambda: [chat.item(i, key=None, feature=item.feature) for i, item in enumerate(there)]
            ),
            "vitcache, features there, cache full": cold(
                lambda: [
                    chat.item(i, key=image_key(next(fresh)), feature=item.feature)
                    for i, item in enumerate(there)
                ],
                moves_on=True,
            ),
        }
        yield "checking"
        expected = _planes(without_cache(), deepstack)
        for name, step in vitcache.items():
            deepstack.fill_(float("nan"))
            rounded_to = torch.bfloat16 if "bfloat16" in name else None
            check_built(name, _planes(step(), deepstack), expected, rounded_to)
        del expected
        contenders: dict[str, Callable[[], object]] = {
            "tower": lambda: encode(there, per_call),
            "tower, one call": lambda: encode(there, case.images),
            ".to, one call": stock,
            "no cache, features there": without_cache,
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
    """Whole steps, until the device is done."""
    few = Timer(timer.device, min(timer.repeats, REPEATS))
    samples = few.rounds_us(contenders)
    alone = min(("tower", "tower, one call"), key=lambda name: samples[name].value)
    judged = {
        "vitcache": (alone, COLD_FACTOR),
        "vitcache, features there": ("no cache, features there", OVERHEAD_FACTOR),
        "vitcache, features there, cache full": ("no cache, features there", OVERHEAD_FACTOR),
    }
    for name, sample in samples.items():
        there = "no cache, features there" if "features there" in name else alone
        against, factor = judged.get(name, (there, None))
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
    """A step in which the cache has all images, in the device tier or all in the host tier."""
    device, on_gpu = timer.device, timer.device.type == "cuda"
    width, pitch = case.hidden * (1 + case.levels), case.rows + 16
    rows = [torch.randn(case.rows, width, device=device).bfloat16() for _ in range(case.images)]
    ids = torch.randint(0, case.vocabulary, (case.images * pitch,), device=device)
    weight = torch.randn(case.vocabulary, case.hidden, device=device).bfloat16()
    deepstack = weight.new_empty(case.levels, len(ids), case.hidden) if case.levels else None
    spans = [Span(image * pitch, case.rows) for image in range(case.images)]
    given = [Item(None, span, key=image_key(image)) for image, span in enumerate(spans)]
    features = [torch.full((4 * case.rows, 1536), float(image)) for image in range(case.images)]
    page_bytes = -(-case.rows // 64) * 64 * width * 2
    wanted = _planes(embed_tokens(ids, weight, rows, spans, deepstack=deepstack), deepstack)
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
            for key, its_rows in zip(keys, rows, strict=True):
                cache.put(key, its_rows)
            if on_host:
                cache.put(image_key(case.images), rows[0])  # pushes the last one to the host tier

            def step() -> Tensor:
                chunks = [Chunk(items(), 0, len(ids))]
                result = pipeline.embed(chunks, ids, weight, deepstack=deepstack)
                if result.errors:
                    raise RuntimeError(f"not every image was hit: {result.errors[0]}")
                return result.inputs_embeds

            if deepstack is not None:
                deepstack.fill_(float("nan"))
            if not torch.equal(_planes(step(), deepstack), wanted):
                raise RuntimeError(f"{name} placed other rows: it gets no number")
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


def _planes(inputs_embeds: Tensor, deepstack: Tensor | None) -> Tensor:
    """All that was built, in a tensor of its own."""
    levels = [] if deepstack is None else [deepstack]
    return torch.cat([inputs_embeds[None], *levels])


def _encode_nothing(features: list[Tensor], items: list[Item]) -> list[Tensor]:
    raise RuntimeError(f"{len(items)} images that are in the cache were to be encoded")
