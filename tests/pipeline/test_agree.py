"""`agree`: every rank encodes the flagged items; invalid flags are refused before any encode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from caches import make_cache
from pipeline_scene import Tower, embed, encode_one, feature, make_ids, make_weight
from torch import Tensor

from vitcache import Chunk, Item, Span, VisionPipeline

KEYS = [bytes([number]) * 32 for number in range(3)]


def make_scene(agree: Callable[[Tensor], Any]) -> tuple[VisionPipeline, Tower, list[Item]]:
    """Three items; the cache contains the rows of the first one."""
    items = [Item(feature(seed, 3), Span(4 * seed, 3), key=KEYS[seed]) for seed in range(3)]
    tower, cache = Tower(), make_cache()
    cache.put(KEYS[0], encode_one(items[0].feature))
    return VisionPipeline(tower, cache, agree=agree), tower, items


@pytest.mark.parametrize("agreed", [[False, True, True], [True, True, True]])
def test_embed_encodes_every_item_whose_flag_agree_returns(agreed: list[bool]) -> None:
    misses = []

    def agree(miss: Tensor) -> Tensor:
        misses.append(miss.tolist())
        return torch.tensor(agreed)

    pipeline, tower, items = make_scene(agree)
    duplicate = Item(items[1].feature, Span(12, 3), key=KEYS[1])
    assert embed(pipeline, [Chunk([*items, duplicate], 0, 16)], 16) == []
    assert misses == [[False, True, True]]
    assert tower.calls == [[item for item, flag in zip(items, agreed, strict=True) if flag]]
    # A chunk without items: `agree` is not called.
    assert embed(pipeline, [Chunk(items, 3, 1)], 1) == []
    assert len(misses) == 1


def test_agree_gets_cpu_flags_under_another_default_device() -> None:
    pipeline, tower, items = make_scene(lambda miss: miss)
    ids, weight = make_ids(12), make_weight()
    with torch.device("meta"):
        assert pipeline.embed([Chunk(items, 0, 12)], ids, weight).errors == []
    assert tower.calls == [items[1:]]


@pytest.mark.parametrize(
    ("agree", "message"),
    [
        (lambda miss: None, "agree must return a bool tensor of 3 flags, got None"),
        (lambda miss: miss.int(), "agree must return a bool tensor of 3 flags"),
        (lambda miss: miss[:2], "agree must return a bool tensor of 3 flags"),
        (lambda miss: miss & False, "agree cleared flag 1, but its item is missing on this rank"),
    ],
)
def test_embed_refuses_invalid_flags_before_it_encodes(agree: Callable[[Tensor], Any], message: str) -> None:
    pipeline, tower, items = make_scene(agree)
    with pytest.raises(ValueError, match=message):
        pipeline.embed([Chunk(items, 0, 12)], make_ids(12), make_weight())
    assert tower.calls == []
    assert pipeline.cache.stats().leased_pages == 0


def test_embed_raises_if_agree_flags_an_item_whose_hashing_failed() -> None:
    pipeline, tower, items = make_scene(torch.ones_like)

    def fail() -> Tensor:
        raise OSError("damaged file")

    items[1] = Item(fail, items[1].spans)
    with pytest.raises(ValueError, match="agree set flag 1, but its item failed on this rank") as caught:
        pipeline.embed([Chunk(items, 0, 12)], make_ids(12), make_weight())
    assert isinstance(caught.value.__cause__, OSError)
    assert tower.calls == []


def fail_to_load() -> Tensor:
    raise OSError("damaged file")


def test_item_that_no_rank_can_load_fails_alone() -> None:
    misses = []

    def agree(miss: Tensor) -> Tensor:
        misses.append(miss.tolist())
        return miss

    pipeline, tower, items = make_scene(agree)
    items[1] = Item(fail_to_load, items[1].spans, key=KEYS[1])
    [error] = embed(pipeline, [Chunk(items, 0, 12)], 12, failed=[items[1]])
    assert isinstance(error.cause, OSError)
    assert misses == [[False, False, True]]
    assert tower.calls == [[items[2]]]


@pytest.mark.parametrize("number", [0, 1], ids=["hit", "missing"])
def test_embed_raises_before_encoding_if_only_this_rank_cannot_load_an_item(number: int) -> None:
    pipeline, tower, items = make_scene(torch.ones_like)
    items[number] = Item(fail_to_load, items[number].spans, key=KEYS[number])
    message = f"agree set flag {number}, but its item failed on this rank"
    with pytest.raises(ValueError, match=message) as caught:
        pipeline.embed([Chunk(items, 0, 12)], make_ids(12), make_weight())
    assert isinstance(caught.value.__cause__, OSError)
    assert tower.calls == []
    assert pipeline.cache.stats().leased_pages == 0
    assert len(pipeline.cache) == 1


def test_embed_with_agree_does_not_load_a_prefetched_feature_again() -> None:
    pipeline, _, items = make_scene(lambda miss: miss)
    loads = []

    def load() -> Tensor:
        loads.append(1)
        return feature(1, 3)

    items[1] = Item(load, items[1].spans, key=KEYS[1])
    chunk = Chunk(items, 0, 12)
    pipeline.prefetch([chunk]).wait(60)
    assert pipeline.embed([chunk], make_ids(12), make_weight()).errors == []
    assert loads == [1]
    pipeline.close()
