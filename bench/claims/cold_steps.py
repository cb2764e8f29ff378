"""Claims about one step with cold images: it takes the time of their encode, and the cache adds little.

This module is a part of the bench `step`. A step is one call of `VisionPipeline.embed`; its time ends when
the device is idle. At full size the pipeline has its default options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from typing import Any, ClassVar

import torch
from torch import Tensor

from vitcache import Chunk, EmbeddingCache, Item, VisionPipeline, embed_tokens
from vitcache.bench.chats.chat import Chat, Tower, image_key, load_model
from vitcache.bench.chats.sides import check_built, open_ring, stack_levels
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.registry import GPU
from vitcache.bench.harness.timeline import TracedRing, draw, record_step
from vitcache.bench.harness.timing import Timer
from vitcache.pipeline.feature_mover import RING_BYTES
from vitcache.pipeline.vision_pipeline import MAX_ROWS_PER_ENCODE

# Targets of the design: factors of the tower's time, and of the time of the same work without a cache.
COLD_FACTOR, OVERHEAD_FACTOR = 1.02, 1.01
REPEATS = 5  # a repeat takes about half a second


@dataclass(frozen=True)
class ColdCase:
    """A prompt with `images` cold images of ``grid`` patches.

    `max_rows` is the pipeline's `max_rows_per_encode`; None: the default.
    """

    RUNS_ON: ClassVar[str] = GPU

    name: str
    grid: tuple[int, int, int]
    images: int
    size: str = "8b"
    max_rows: int | None = None


def run_cold(case: ColdCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure a step with cold images for every contender, and record the timeline of one such step."""
    yield "building the model"
    model = load_model(case.size, timer.device)
    chat, tower = Chat(model, case.grid, case.images), Tower(model)
    ids, deepstack = chat.host_ids.to(timer.device), chat.deepstack(len(chat.host_ids))
    per_call = max(1, (case.max_rows or MAX_ROWS_PER_ENCODE) // chat.rows)
    limited: dict[str, Any] = {} if case.max_rows is None else {"max_rows_per_encode": case.max_rows}
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
            options = {"ring": ring, **limited, **options}
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
        expected = stack_levels(without_cache(), deepstack)
        for name, step in vitcache.items():
            deepstack.fill_(float("nan"))
            rounded_to = torch.bfloat16 if "bfloat16" in name else None
            check_built(name, stack_levels(step(), deepstack), expected, rounded_to)
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
    case: ColdCase, recorder: Recorder, timer: Timer, contenders: dict[str, Callable[[], object]]
) -> None:
    """Measure whole steps, until the device is idle, and add the results."""
    few = timer.with_repeats(min(timer.repeats, REPEATS))
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
