"""What ranks agree on each of them encodes; flags that cannot be right are refused before that."""

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


def scene(agree: Callable[[Tensor], Any]) -> tuple[VisionPipeline, Tower, list[Item]]:
    """Three items, of which the cache has the first."""
    items = [Item(feature(seed, 3), Span(4 * seed, 3), key=KEYS[seed]) for seed in range(3)]
    tower, cache = Tower(), make_cache()
    cache.put(KEYS[0], encode_one(items[0].feature))
    return VisionPipeline(tower, cache, agree=agree), tower, items


@pytest.mark.parametrize("wanted", [[False, True, True], [True, True, True]])
def test_what_another_rank_misses_is_encoded_here_too(wanted: list[bool]) -> None:
    asked = []

    def agree(miss: Tensor) -> Tensor:
        asked.append(miss.tolist())
        return torch.tensor(wanted)

    pipeline, tower, items = scene(agree)
    again = Item(items[1].feature, Span(12, 3), key=KEYS[1])
    assert embed(pipeline, [Chunk([*items, again], 0, 16)], 16) == []
    assert asked == [[False, True, True]]
    assert tower.calls == [[item for item, flag in zip(items, wanted, strict=True) if flag]]
    # A window without items has nothing to agree on.
    assert embed(pipeline, [Chunk(items, 3, 1)], 1) == []
    assert len(asked) == 1


def test_flags_are_on_the_cpu_whatever_torchs_default_device_is() -> None:
    pipeline, tower, items = scene(lambda miss: miss)
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
def test_flags_that_cannot_be_right_are_refused_before_anything_is_encoded(
    agree: Callable[[Tensor], Any], message: str
) -> None:
    pipeline, tower, items = scene(agree)
    with pytest.raises(ValueError, match=message):
        pipeline.embed([Chunk(items, 0, 12)], make_ids(12), make_weight())
    assert tower.calls == []
    assert pipeline.cache.stats().leased_pages == 0


def test_an_item_that_has_no_key_here_cannot_be_encoded_with_the_others() -> None:
    pipeline, tower, items = scene(torch.ones_like)

    def fail() -> Tensor:
        raise OSError("no such file")

    items[1] = Item(fail, items[1].spans)
    with pytest.raises(ValueError, match="agree set flag 1, but its item failed on this rank") as caught:
        pipeline.embed([Chunk(items, 0, 12)], make_ids(12), make_weight())
    assert isinstance(caught.value.__cause__, OSError)
    assert tower.calls == []


def fail_to_load() -> Tensor:
    raise OSError("no such file")


def test_what_no_rank_can_load_is_an_error_of_its_item_alone() -> None:
    asked = []

    def agree(miss: Tensor) -> Tensor:
        asked.append(miss.tolist())
        return miss

    pipeline, tower, items = scene(agree)
    items[1] = Item(fail_to_load, items[1].spans, key=KEYS[1])
    [error] = embed(pipeline, [Chunk(items, 0, 12)], 12, failed=[items[1]])
    assert isinstance(error.cause, OSError)
    assert asked == [[False, False, True]]
    assert tower.calls == [[items[2]]]


@pytest.mark.parametrize("number", [0, 1], ids=["hit", "missing"])
def test_a_rank_that_alone_cannot_load_raises_before_it_encodes_anything(number: int) -> None:
    pipeline, tower, items = scene(torch.ones_like)
    items[number] = Item(fail_to_load, items[number].spans, key=KEYS[number])
    message = f"agree set flag {number}, but its item failed on this rank"
    with pytest.raises(ValueError, match=message) as caught:
        pipeline.embed([Chunk(items, 0, 12)], make_ids(12), make_weight())
    assert isinstance(caught.value.__cause__, OSError)
    assert tower.calls == []
    assert pipeline.cache.stats().leased_pages == 0
    assert len(pipeline.cache) == 1


def test_a_staged_feature_is_not_loaded_again() -> None:
    pipeline, _, items = scene(lambda miss: miss)
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
