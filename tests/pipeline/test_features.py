"""Features and keys of a step: which features are loaded, hashed and moved, and how often."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from caches import make_cache
from pipeline_scene import (
    Tower,
    as_floats,
    embed,
    encode_one,
    feature,
    make_ids,
    make_weight,
)

from vitcache import Chunk, Item, PinnedRing, Span, VisionPipeline, content_key

WEIGHT = make_weight()


@pytest.mark.parametrize(
    "make",
    [
        lambda tensor: tensor,
        lambda tensor: tensor.numpy(),
        lambda tensor: tensor.numpy()[::-1].copy()[::-1],
        lambda tensor: tensor.t().contiguous().t(),
        lambda tensor: lambda: tensor,
        lambda tensor: lambda: tensor.numpy(),
        lambda tensor: (tensor * 0 + 1).to(torch.uint8),
        lambda tensor: np.ones((10, 3), np.uint8),
        lambda tensor: tensor.to(torch.bfloat16),
        lambda tensor: np.broadcast_to(np.float32(2), (10, 3)),
    ],
)
def test_encoder_gets_a_tensor_with_the_values_of_any_kind_of_feature(
    maybe_ring: PinnedRing | None, make: Any
) -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache(), ring=maybe_ring)
    item = Item(make(feature(0, 5)), Span(2, 5))
    assert embed(pipeline, [Chunk([item], 0, 9)], 9) == []
    (moved,) = tower.features
    assert isinstance(moved, torch.Tensor)
    given = item.feature() if callable(item.feature) else item.feature
    assert torch.equal(moved.float(), as_floats(given))


def test_feature_dtype_rounds_float32_features(maybe_ring: PinnedRing | None) -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache(), ring=maybe_ring, feature_dtype=torch.bfloat16)
    item = Item(feature(0, 2), Span(0, 2))
    pipeline.embed([Chunk([item], 0, 2)], make_ids(2), WEIGHT)
    assert torch.equal(tower.features[0], feature(0, 2).bfloat16())


def test_embed_loads_the_feature_of_a_miss_once_and_of_a_hit_never(maybe_ring: PinnedRing | None) -> None:
    loads = []

    def load() -> torch.Tensor:
        loads.append(1)
        return feature(0, 3)

    pipeline = VisionPipeline(Tower(), make_cache(), ring=maybe_ring)
    key = b"k" * 32
    assert embed(pipeline, [Chunk([Item(load, Span(0, 3), key=key)], 0, 4)], 4) == []
    assert len(loads) == 2  # `expected` calls it, too
    ids = make_ids(4)
    unloadable = Item(lambda: pytest.fail("a hit was loaded"), Span(0, 3), key=key)
    result = pipeline.embed([Chunk([unloadable], 0, 4)], ids, WEIGHT)
    assert result.errors == []
    assert torch.equal(result.inputs_embeds[:3], encode_one(feature(0, 3)))
    without_feature = Item(None, Span(0, 3), key=key)
    assert pipeline.embed([Chunk([without_feature], 0, 4)], ids, WEIGHT).errors == []
    assert len(loads) == 2


def test_embed_neither_loads_nor_encodes_items_outside_of_the_chunk() -> None:
    def load() -> None:
        pytest.fail("an item outside of the chunk was loaded")

    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache())
    items = [
        Item(load, None),
        Item(load, []),
        Item(load, Span(0, 4)),
        Item(load, Span(20, 4)),
        Item(load, Span(9, 0)),
    ]
    assert embed(pipeline, [Chunk(items, 4, 16)], 16) == []
    assert tower.calls == []


def test_callable_without_a_key_is_called_once_for_all_chunks() -> None:
    loads = []

    def load() -> torch.Tensor:
        loads.append(1)
        return feature(0, 6)

    item = Item(load, Span(0, 6))
    pipeline = VisionPipeline(Tower(), make_cache())
    for start in (0, 3):
        pipeline.embed([Chunk([item], start, 3)], make_ids(3), WEIGHT)
    assert len(loads) == 1


def test_computed_key_covers_namespace_and_encoder_kwargs() -> None:
    tower = Tower()
    cache = make_cache()
    pipeline = VisionPipeline(tower, cache, namespace=b"one")
    other = VisionPipeline(tower, cache, namespace=b"other")
    for owner, arguments in ((pipeline, {}), (pipeline, {"tiles": 2}), (other, {}), (pipeline, {})):
        owner.embed([Chunk([Item(feature(0, 2), Span(0, 2), **arguments)], 0, 2)], make_ids(2), WEIGHT)
    assert len(tower.encoded) == 3
    assert content_key(feature(0, 2), namespace=b"one", extra={"tiles": 2}) in cache


def test_items_with_one_key_and_different_num_rows_are_placed_separately() -> None:
    key = b"k" * 32
    pipeline = VisionPipeline(Tower(), make_cache())
    items = [Item(feature(0, 2), Span(0, 2), key=key), Item(feature(0, 3), Span(2, 3), key=key)]
    assert embed(pipeline, [Chunk(items, 0, 5)], 5) == []
