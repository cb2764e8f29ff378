"""`move_features=False`: features reach the encoder unchanged; `Item.context` travels with the item."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from caches import make_cache
from pipeline_scene import HIDDEN, Tower, embed, feature, make_ids, make_weight

from vitcache import Chunk, Item, Items, Span, VisionPipeline

WEIGHT = make_weight()


class Proxy:
    """An engine's handle of a feature. It has no attributes of a tensor."""

    __slots__ = ("seed",)

    def __init__(self, seed: int) -> None:
        self.seed = seed


def embed_two(pipeline: VisionPipeline, items: list[Item]) -> Any:
    return pipeline.embed([Chunk(items, 0, 8)], make_ids(8), WEIGHT)


def test_features_reach_the_encoder_unchanged() -> None:
    seen: list[Any] = []
    proxy, tensor, array = Proxy(1), feature(0, 2), feature(2, 2).numpy()[::-1]
    loaded = {"pixels": feature(3, 1)}

    def encode(features: list[Any], items: list[Item]) -> list[torch.Tensor]:
        seen.extend(features)
        return [torch.full((item.num_rows, HIDDEN), float(item.context)) for item in items]

    items = Items(
        [
            Item(proxy, Span(0, 2), key=b"a" * 32, context=1),
            Item(tensor, Span(2, 2), context=2),
            Item(array, Span(4, 2), context=3),
            Item(lambda: loaded, Span(6, 1), key=b"b" * 32, context=4),
        ]
    )
    pipeline = VisionPipeline(encode, make_cache(), move_features=False)
    result = pipeline.embed([Chunk(items, 0, 8)], make_ids(8), WEIGHT)
    assert result.errors == []
    assert result.inputs_embeds[:7, 0].tolist() == [1, 1, 2, 2, 3, 3, 4]
    assert all(found is given for found, given in zip(seen, (proxy, tensor, array, loaded), strict=True))
    assert embed_two(pipeline, list(items)).errors == []
    assert len(seen) == 4


def test_moved_features_still_are_tensors_on_the_device() -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache())
    array = np.ones((4, 3), np.float32)
    assert embed(pipeline, [Chunk([Item(array, Span(0, 2))], 0, 2)], 2) == []
    assert isinstance(tower.features[0], torch.Tensor)
    [error] = embed_two(pipeline, [Item(Proxy(0), Span(0, 2), key=bytes(32))]).errors
    assert str(error.cause) == "a feature must be a tensor or a NumPy array, got Proxy"


def test_an_object_without_a_key_is_an_error_of_its_item() -> None:
    pipeline = VisionPipeline(Tower(), make_cache(), move_features=False)
    items = [Item(Proxy(0), Span(0, 2)), Item(feature(0, 2), Span(3, 2))]
    [error] = embed_two(pipeline, items).errors
    assert error.item == 0
    assert isinstance(error.cause, TypeError)
    assert "got Proxy" in str(error.cause)
    [error] = embed_two(pipeline, [Item(None, Span(0, 2), key=bytes(32))]).errors
    assert "the item has no feature" in str(error.cause)


def test_precomputed_rows_are_placed_without_moving_features() -> None:
    pipeline = VisionPipeline(Tower(), make_cache(), move_features=False)
    rows = torch.randn(2, HIDDEN)
    result = embed_two(pipeline, [Item(None, Span(1, 2), rows=rows)])
    assert torch.equal(result.inputs_embeds[1:3], rows)


@pytest.mark.parametrize("encode", [True, False])
def test_prefetch_neither_moves_nor_stores_such_features(encode: bool) -> None:
    tower = Tower()
    with VisionPipeline(tower, make_cache(), move_features=False) as pipeline:
        items = Items([Item(feature(0, 2), Span(0, 2)), Item(lambda: feature(1, 2), Span(2, 2))])
        pipeline.prefetch([Chunk(items, 0, 4)], encode=encode).wait(60)
        assert len(pipeline._prefetched) == 0
        assert len(tower.encoded) == (2 if encode else 0)
        assert embed(pipeline, [Chunk(items, 0, 4)], 4) == []
        assert len(tower.encoded) == 2


def test_an_agreed_hit_and_a_failed_batch_get_their_features_unmoved() -> None:
    proxies = [Proxy(0), Proxy(1)]
    seen: list[list[Any]] = []

    def encode(features: list[Any], items: list[Item]) -> torch.Tensor:
        seen.append(features)
        if len(features) == 2:
            raise OSError("one is damaged")
        return torch.ones(1, HIDDEN)

    items = [Item(proxy, Span(i, 1), key=bytes([i]) * 32) for i, proxy in enumerate(proxies)]
    pipeline = VisionPipeline(
        encode, make_cache(), move_features=False, agree=lambda miss: torch.ones_like(miss)
    )
    for _ in range(2):
        assert embed_two(pipeline, items).errors == []
    assert seen == [proxies, proxies[:1], proxies[1:]] * 2


def test_options_that_cannot_be_combined_and_other_types_are_refused() -> None:
    with pytest.raises(ValueError, match="feature_dtype and move_features=False cannot be combined"):
        VisionPipeline(Tower(), make_cache(), move_features=False, feature_dtype=torch.float16)
    for wrong in (0, None, "no"):
        with pytest.raises(TypeError, match="move_features must be a bool, got"):
            VisionPipeline(Tower(), make_cache(), move_features=wrong)  # type: ignore[arg-type]


def test_context_is_neither_hashed_nor_compared() -> None:
    contexts: list[Any] = []

    def encode(features: list[Any], items: list[Item]) -> list[torch.Tensor]:
        contexts.extend(item.context for item in items)
        return [torch.ones(item.num_rows, HIDDEN) for item in items]

    pipeline = VisionPipeline(encode, make_cache())
    handle = Proxy(0)
    same = [Item(feature(0, 2), Span(0, 2), context=handle), Item(feature(0, 2), Span(3, 2), context=[1])]
    assert len({pipeline.key(item) for item in same}) == 1
    assert embed_two(pipeline, same).errors == []
    assert contexts == [handle]
    assert Item(None, None).context is None
