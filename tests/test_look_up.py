"""What ranks agree on each of them encodes; flags that cannot be right are refused before that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pipeline_scene import Tower, embed, encode_one, feature, make_cache, make_ids, make_weight
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


@pytest.mark.parametrize(
    ("agree", "message"),
    [
        (lambda miss: None, "agree must return 3 flags as a bool tensor, it returned None"),
        (lambda miss: miss.int(), "agree must return 3 flags as a bool tensor"),
        (lambda miss: miss[:2], "agree must return 3 flags as a bool tensor"),
        (lambda miss: miss & False, "agree cleared flag 1, of an item that is missing here"),
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
    with pytest.raises(ValueError, match="agree set flag 1, of an item that failed here") as caught:
        pipeline.embed([Chunk(items, 0, 12)], make_ids(12), make_weight())
    assert isinstance(caught.value.__cause__, OSError)
    assert tower.calls == []
