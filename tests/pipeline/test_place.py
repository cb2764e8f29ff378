"""`VisionPipeline.place`: rows of items are scattered into finished text rows."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from caches import make_cache
from pipeline_scene import HIDDEN, Tower, expected, feature, make_ids, make_weight, place
from torch_version import HAS_EXCHANGE

from vitcache import Chunk, Item, Items, PinnedRing, Span, VisionPipeline
from vitcache.bench import frames

WEIGHT = make_weight()


def test_place_encodes_once_and_leaves_text_rows_alone(maybe_ring: PinnedRing | None) -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache(), ring=maybe_ring)
    items = Items(
        [Item(feature(seed, 5), [Span(3 + 10 * seed, 3), Span(8 + 10 * seed, 2, 3)]) for seed in (0, 1)]
    )
    for _ in range(2):
        for start in range(0, 24, 6):
            assert place(pipeline, [Chunk(items, start, 6)], 9) == []
    assert len(tower.encoded) == 2


def test_place_and_embed_share_entries_and_bits() -> None:
    pipeline = VisionPipeline(Tower(), make_cache(dtype=torch.bfloat16))
    items = Items([Item(feature(0, 5), Span(1, 5))])
    ids = make_ids(8)
    embedded = pipeline.embed([Chunk(items, 0, 8)], ids, WEIGHT).inputs_embeds
    placed = pipeline.place([Chunk(items, 0, 8)], WEIGHT[ids]).inputs_embeds
    assert torch.equal(embedded, placed)
    fresh = VisionPipeline(Tower(), make_cache(dtype=torch.bfloat16))
    assert torch.equal(fresh.place([Chunk(items, 0, 8)], WEIGHT[ids]).inputs_embeds, embedded)


def test_place_writes_deepstack_of_items_only() -> None:
    pipeline = VisionPipeline(Tower(3 * HIDDEN), make_cache(width=3 * HIDDEN))
    items = [Item(feature(0, 5), [Span(2, 3), Span(8, 2, 3)]), Item(feature(1, 2), Span(6, 2))]
    for start in (0, 3, 0):
        assert place(pipeline, [Chunk(items, start, 8)], 10, levels=2) == []


def test_place_rows_of_a_failed_item_are_zero_in_every_level() -> None:
    def fails(item: Item) -> None:
        if item is items[0]:
            raise OSError("damaged")

    items = Items([Item(feature(0, 3), Span(0, 3)), Item(feature(1, 2), Span(4, 2))])
    pipeline = VisionPipeline(Tower(2 * HIDDEN, fails=fails), make_cache(width=2 * HIDDEN))
    [error] = place(pipeline, [Chunk(items, 0, 7)], 7, failed=[items[0]], levels=1)
    assert (error.chunk, error.item, error.expected) == (0, 0, 3)
    assert isinstance(error.cause, OSError)


def test_place_accepts_two_dimensions_of_tokens_scale_and_strides() -> None:
    pipeline = VisionPipeline(Tower(), make_cache())
    items = [Item(feature(0, 2), Span(3, 2))]
    ids = make_ids(2, 4)
    batch = WEIGHT[ids]
    assert pipeline.place([Chunk(items, 0, 8)], batch).inputs_embeds is batch
    assert torch.equal(batch, expected([Chunk(items, 0, 8)], ids, WEIGHT)[0])
    wide = torch.zeros(8, HIDDEN + 3)
    result = pipeline.place([Chunk(items, 0, 8)], wide[:, :HIDDEN], scale=2.0)
    assert result.errors == []
    assert torch.equal(wide[3:5, :HIDDEN], 2 * batch.reshape(8, HIDDEN)[3:5])
    assert not wide[:, HIDDEN:].any()
    assert pipeline.place([], torch.zeros(3, HIDDEN)).errors == []


def test_place_refuses_wrong_arguments_and_encodes_nothing() -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache())
    chunks = [Chunk([Item(feature(0, 2), Span(3, 2))], 0, 8)]
    good = torch.ones(8, HIDDEN)
    wrong: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (None, {}, TypeError, "inputs_embeds must be a tensor, got NoneType"),
        (good.numpy(), {}, TypeError, "inputs_embeds must be a tensor, got ndarray"),
        (good.double(), {}, TypeError, "inputs_embeds .*float64"),
        (good.to("meta"), {}, ValueError, "inputs_embeds must be on cpu, the cache's device, got meta"),
        (torch.ones(8, HIDDEN + 1), {}, ValueError, "rows of width 4, expected 5"),
        (
            good,
            {"deepstack": torch.ones(1, 8, HIDDEN)},
            ValueError,
            r"rows of width 4, expected 8 \(hidden 4",
        ),
        (good, {"deepstack": torch.ones(1, 7, HIDDEN)}, ValueError, r"it must be \(L, 8, 4\)"),
        (good, {"scale": True}, TypeError, "scale must be a real number or None, got bool"),
        (torch.ones(7, HIDDEN), {}, IndexError, r"chunk 0 covers tokens \[0, 8\) .* which has 7 tokens"),
    ]
    for inputs_embeds, options, error, message in wrong:
        with pytest.raises(error, match=message):
            pipeline.place(chunks, inputs_embeds, **options)
    with pytest.raises(TypeError, match="chunks must be a list of Chunk, got Chunk"):
        pipeline.place(chunks[0], good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunks overlap"):
        pipeline.place(chunks * 2, torch.ones(16, HIDDEN))
    assert torch.equal(good, torch.ones(8, HIDDEN))
    assert tower.calls == []
    assert pipeline.cache.stats().misses == 0
    pipeline.close()
    with pytest.raises(RuntimeError, match="the pipeline was closed"):
        pipeline.place(chunks, good)


def test_place_leaves_the_rows_alone_if_the_encoder_is_interrupted() -> None:
    def interrupt(item: Item) -> None:
        raise KeyboardInterrupt

    pipeline = VisionPipeline(Tower(fails=interrupt), make_cache())
    inputs_embeds = torch.ones(8, HIDDEN)
    with pytest.raises(KeyboardInterrupt):
        pipeline.place([Chunk([Item(feature(0, 2), Span(3, 2))], 0, 8)], inputs_embeds)
    assert torch.equal(inputs_embeds, torch.ones(8, HIDDEN))


def test_place_writes_a_tensor_that_requires_gradients_without_recording_them() -> None:
    pipeline = VisionPipeline(Tower(), make_cache())
    table = torch.nn.Embedding(11, HIDDEN)
    for _ in range(2):
        inputs_embeds = table(make_ids(8))
        result = pipeline.place([Chunk([Item(feature(0, 2), Span(3, 2))], 0, 8)], inputs_embeds)
        assert result.errors == []


@pytest.mark.parametrize("number", [1, 32, 512])
def test_place_of_hits_enters_no_more_frames_than_embed(number: int) -> None:
    items = Items([Item(None, Span(3 * i, 2), key=i.to_bytes(32, "little")) for i in range(number)])
    cache = make_cache(number, page_rows=2)
    for item in items:
        assert cache.put(item.key, torch.ones(2, HIDDEN))
    ids = torch.zeros(3 * number, dtype=torch.int64)
    inputs_embeds = WEIGHT[ids]
    with VisionPipeline(Tower(), cache) as pipeline:
        chunks = [Chunk(items, 0, len(ids))]

        def count(call: Any) -> int:
            call()
            return frames.count_frames(call).total()

        embed_frames = count(lambda: pipeline.embed(chunks, ids, WEIGHT))
        place_frames = count(lambda: pipeline.place(chunks, inputs_embeds))
    assert place_frames <= embed_frames <= (21 if HAS_EXCHANGE else 34)
    assert torch.equal(inputs_embeds[:2], torch.ones(2, HIDDEN))


def test_random_steps_of_place_give_the_rows_of_a_plain_loop() -> None:
    for seed in range(60):
        rng = random.Random(seed)
        levels = rng.choice([0, 0, 1, 3])
        width = HIDDEN * (1 + levels)
        bad = {3, 7}
        tower = Tower(width, reuses_memory=rng.random() < 0.5, packed=rng.random() < 0.5)
        cache = make_cache(rng.choice([1, 3, 9]), width=width, page_rows=2, host_pages=rng.choice([0, 5]))
        pipeline = VisionPipeline(tower, cache, max_rows_per_encode=rng.choice([1, 5, 40]))
        token, items = 0, []
        for _ in range(rng.randrange(1, 6)):
            rows, image = rng.randrange(1, 7), rng.randrange(9)
            token += rng.randrange(3)
            items.append(Item(feature(10 * image + rows, rows), Span(token, rows), image=image))
            token += rows

        def fails(item: Item, bad: set[int] = bad) -> None:
            if item.encoder_kwargs["image"] in bad:
                raise OSError("damaged")

        tower.fails = fails
        request, start = Items(items), 0
        failed = [item for item in items if item.encoder_kwargs["image"] in bad]
        while start < token:
            length = min(rng.randrange(1, 9), token - start)
            offset = rng.randrange(3)
            chunk = Chunk(request, start, length, offset)
            errors = place(pipeline, [chunk], offset + length + 1, failed=failed, levels=levels)
            overlapping = request.within(start, start + length)
            assert {error.item for error in errors} == {
                position for position in overlapping if request[position] in failed
            }
            start += length
