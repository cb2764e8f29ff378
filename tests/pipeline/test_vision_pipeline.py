"""Steps of a pipeline: which items are encoded, and which rows are placed and cached."""

from __future__ import annotations

import numpy as np
import torch
from caches import make_cache
from pairwise import pairwise
from pipeline_scene import (
    HIDDEN,
    VOCABULARY,
    Tower,
    embed,
    encode_one,
    expected,
    feature,
    make_ids,
    make_weight,
)

from vitcache import Chunk, Item, Items, PinnedRing, Span, VisionPipeline

WEIGHT = make_weight()


def test_chunked_request_encodes_each_image_once_when_its_chunk_needs_it(
    maybe_ring: PinnedRing | None,
) -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache(), ring=maybe_ring)
    items = Items([Item(feature(seed, 5), Span(3 + 10 * seed, 5)) for seed in range(4)])
    encoded = []
    for start in range(0, 40, 6):
        assert embed(pipeline, [Chunk(items, start, min(6, 40 - start))], min(6, 40 - start)) == []
        encoded.append(len(tower.encoded))
    assert encoded == [1, 1, 2, 3, 3, 4, 4]
    assert [items[:].index(item) for item in tower.encoded] == [0, 1, 2, 3]


def test_step_of_two_requests_encodes_equal_images_once_in_one_call(
    maybe_ring: PinnedRing | None,
) -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache(), ring=maybe_ring)
    shared = feature(0, 3)
    first = [Item(shared, Span(1, 3)), Item(feature(1, 2), Span(6, 2))]
    second = [Item(shared.numpy().copy(), Span(4, 3)), Item(feature(2, 4), Span(0, 4))]
    assert embed(pipeline, [Chunk(first, 0, 9), Chunk(second, 0, 8, 9)], 20) == []
    # The encoder gets items in the order of their tokens in the batch.
    assert [[item.num_rows for item in call] for call in tower.calls] == [[3, 2, 4]]
    assert len(pipeline.cache) == 3


@pairwise(reuses_memory=[False, True], packed=[False, True], pages=[1, 3, 64])
def test_micro_batches_are_full_and_the_encoder_may_reuse_its_memory(
    maybe_ring: PinnedRing | None, reuses_memory: bool, packed: bool, pages: int
) -> None:
    tower = Tower(reuses_memory=reuses_memory, packed=packed)
    pipeline = VisionPipeline(tower, make_cache(pages), ring=maybe_ring, max_rows_per_encode=6)
    lengths = [3, 3, 1, 9, 2, 2, 2, 1]
    starts = np.cumsum([0, *lengths[:-1]])
    items = [
        Item(feature(seed, rows), Span(int(start), rows))
        for seed, (rows, start) in enumerate(zip(lengths, starts, strict=True))
    ]
    for _ in range(2):
        assert embed(pipeline, [Chunk(items, 0, sum(lengths))], sum(lengths)) == []
    batches = [[item.num_rows for item in call] for call in tower.calls]
    assert batches[:4] == [[3, 3], [1], [9], [2, 2, 2]]
    assert batches[4] == [1]
    if pages == 64:
        assert len(batches) == 5


def test_embed_writes_deepstack_levels_and_zeroes_them_at_text(maybe_ring: PinnedRing | None) -> None:
    tower = Tower(HIDDEN * 3)
    pipeline = VisionPipeline(tower, make_cache(width=3 * HIDDEN), ring=maybe_ring)
    items = [Item(feature(0, 5), [Span(2, 3), Span(8, 2, 3)]), Item(feature(1, 2), Span(6, 2))]
    for start in (0, 3):
        assert embed(pipeline, [Chunk(items, start, 8)], 8, levels=2) == []


def test_embed_places_precomputed_rows_and_does_not_cache_them(maybe_ring: PinnedRing | None) -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache(), ring=maybe_ring)
    rows = torch.randn(6, HIDDEN)
    items = [
        Item(None, [Span(0, 2, 4), Span(5, 1)], rows=rows),
        Item(feature(0, 3), Span(2, 3)),
        Item(None, Span(6, 6), rows=rows.to(torch.bfloat16)),
    ]
    ids = make_ids(13)
    result = pipeline.embed([Chunk(items, 0, 13)], ids, WEIGHT)
    assert result.errors == []
    assert torch.equal(result.inputs_embeds[[0, 1, 5]], rows[[4, 5, 0]])
    assert torch.equal(result.inputs_embeds[6:12], rows.to(torch.bfloat16).float())
    assert len(pipeline.cache) == 1


def test_miss_hit_and_rejected_rows_give_the_same_bits() -> None:
    pipeline = VisionPipeline(Tower(), make_cache(dtype=torch.bfloat16))
    full = VisionPipeline(Tower(), make_cache(1, dtype=torch.bfloat16))
    item = Item(feature(0, 5), Span(1, 5))
    ids = make_ids(7)
    miss, hit, rejected = (
        owner.embed([Chunk([item], 0, 7)], ids, WEIGHT).inputs_embeds for owner in (pipeline, pipeline, full)
    )
    assert torch.equal(miss, hit)
    assert torch.equal(miss, rejected)
    assert len(full.cache) == 0
    assert torch.equal(miss[1:6], encode_one(feature(0, 5)).bfloat16().float())


def test_rows_encoded_before_advance_epoch_are_not_inserted_after_it() -> None:
    cache = make_cache()
    tower = Tower(fails=lambda item: cache.advance_epoch())
    pipeline = VisionPipeline(tower, cache)
    assert embed(pipeline, [Chunk([Item(feature(0, 2), Span(0, 2))], 0, 3)], 3) == []
    assert len(cache) == 0


def test_embed_records_no_gradients_of_weight_and_encoder() -> None:
    scale = torch.nn.Parameter(torch.ones(()))
    pipeline = VisionPipeline(
        lambda features, items: [encode_one(part) * scale for part in features], make_cache()
    )
    item = Item(feature(0, 2), Span(0, 2))
    for _ in range(2):
        result = pipeline.embed([Chunk([item], 0, 3)], make_ids(3), torch.nn.Parameter(WEIGHT))
        assert not result.inputs_embeds.requires_grad
    with torch.inference_mode():
        assert (
            pipeline.embed([Chunk([Item(feature(1, 2), Span(0, 2))], 0, 3)], make_ids(3), WEIGHT).errors == []
        )


def test_embed_accepts_ids_of_two_dimensions_and_steps_without_items() -> None:
    pipeline = VisionPipeline(Tower(), make_cache())
    items = [Item(feature(0, 2), Span(3, 2))]
    ids = make_ids(2, 4)
    result = pipeline.embed([Chunk(items, 0, 8)], ids, WEIGHT)
    assert torch.equal(result.inputs_embeds, expected([Chunk(items, 0, 8)], ids, WEIGHT)[0])
    assert torch.equal(pipeline.embed([], ids, WEIGHT).inputs_embeds, WEIGHT[ids])
    assert int(ids.max()) < VOCABULARY


def test_entry_hit_again_in_the_host_tier_is_promoted_as_it_is_placed() -> None:
    cache = make_cache(2, host_pages=8)
    pipeline = VisionPipeline(Tower(), cache)
    old, new = (Item(feature(seed, 3), Span(1, 3)) for seed in range(2))
    for item in (old, new):
        assert embed(pipeline, [Chunk([item], 0, 5)], 5) == []
    tiers = []
    for _ in range(3):
        with cache.get(pipeline.key(old)) as lease:
            tiers.append(lease.tier)
        assert embed(pipeline, [Chunk([old], 0, 5)], 5) == []
    assert tiers == ["host", "device", "device"]
    assert len(cache) == 2


def test_step_that_pins_the_whole_device_tier_still_caches_its_last_rows() -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache(4, host_pages=20))
    items = [Item(feature(seed, 3), Span(3 * seed, 3)) for seed in range(6)]
    for count in range(1, 7):
        assert embed(pipeline, [Chunk(items[:count], 0, 3 * count)], 3 * count) == []
        assert len(pipeline.cache) == count
    assert len(tower.encoded) == 6
