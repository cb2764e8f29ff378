"""Features and keys of a step: what is loaded, hashed and moved, how often, and what is not."""

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
def test_a_feature_is_a_tensor_or_an_array_or_what_loads_one(
    maybe_ring: PinnedRing | None, make: Any
) -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache(), ring=maybe_ring)
    item = Item(make(feature(0, 5)), Span(2, 5))
    assert embed(pipeline, [Chunk([item], 0, 9)], 9) == []
    (got,) = tower.features
    assert isinstance(got, torch.Tensor)
    given = item.feature() if callable(item.feature) else item.feature
    assert torch.equal(got.float(), as_floats(given))


def test_features_may_be_rounded_on_the_way(maybe_ring: PinnedRing | None) -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache(), ring=maybe_ring, feature_dtype=torch.bfloat16)
    item = Item(feature(0, 2), Span(0, 2))
    pipeline.embed([Chunk([item], 0, 2)], make_ids(2), WEIGHT)
    assert torch.equal(tower.features[0], feature(0, 2).bfloat16())


def test_a_hit_never_touches_its_feature_and_a_miss_loads_it_once(maybe_ring: PinnedRing | None) -> None:
    loads = []

    def load() -> torch.Tensor:
        loads.append(1)
        return feature(0, 3)

    pipeline = VisionPipeline(Tower(), make_cache(), ring=maybe_ring)
    key = b"k" * 32
    assert embed(pipeline, [Chunk([Item(load, Span(0, 3), key=key)], 0, 4)], 4) == []
    assert len(loads) == 2  # one of them by what computes the expected rows
    ids = make_ids(4)
    never = Item(lambda: pytest.fail("a hit was loaded"), Span(0, 3), key=key)
    result = pipeline.embed([Chunk([never], 0, 4)], ids, WEIGHT)
    assert result.errors == []
    assert torch.equal(result.inputs_embeds[:3], encode_one(feature(0, 3)))
    none = Item(None, Span(0, 3), key=key)
    assert pipeline.embed([Chunk([none], 0, 4)], ids, WEIGHT).errors == []
    assert len(loads) == 2


def test_what_no_window_touches_is_neither_loaded_nor_hashed_nor_encoded() -> None:
    def load() -> None:
        pytest.fail("it was loaded")

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


def test_a_callable_without_a_key_is_loaded_once_for_hash_and_encode_and_hashed_once_for_all_chunks() -> None:
    loads = []

    def load() -> torch.Tensor:
        loads.append(1)
        return feature(0, 6)

    item = Item(load, Span(0, 6))
    pipeline = VisionPipeline(Tower(), make_cache())
    for start in (0, 3):
        pipeline.embed([Chunk([item], start, 3)], make_ids(3), WEIGHT)
    assert len(loads) == 1


def test_the_key_covers_namespace_and_encoder_arguments() -> None:
    tower = Tower()
    cache = make_cache()
    pipeline = VisionPipeline(tower, cache, namespace=b"one")
    other = VisionPipeline(tower, cache, namespace=b"other")
    for owner, arguments in ((pipeline, {}), (pipeline, {"tiles": 2}), (other, {}), (pipeline, {})):
        owner.embed([Chunk([Item(feature(0, 2), Span(0, 2), **arguments)], 0, 2)], make_ids(2), WEIGHT)
    assert len(tower.encoded) == 3
    assert content_key(feature(0, 2), namespace=b"one", extra={"tiles": 2}) in cache


def test_two_items_of_one_key_and_other_lengths_are_two_items() -> None:
    key = b"k" * 32
    pipeline = VisionPipeline(Tower(), make_cache())
    items = [Item(feature(0, 2), Span(0, 2), key=key), Item(feature(0, 3), Span(2, 3), key=key)]
    assert embed(pipeline, [Chunk(items, 0, 5)], 5) == []
