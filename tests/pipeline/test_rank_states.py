"""`agree` with a method `states`: an item that fails on any rank fails on this one, and is not encoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from caches import make_cache
from pipeline_scene import Tower, embed, encode_one, feature, make_ids, make_weight
from torch import Tensor

from vitcache import Chunk, Item, Items, Span, VisionPipeline

KEYS = [bytes([number]) * 32 for number in range(4)]
HIT, MISS, FAILED = range(3)


class OtherRanks:
    """Stands in for the other ranks, whose states of each call are given."""

    def __init__(self, *states: list[int]) -> None:
        self.others = list(states)
        self.mine: list[list[int]] = []

    def __call__(self, miss: Tensor) -> Tensor:
        raise AssertionError("the pipeline must call states")

    def states(self, states: Tensor) -> Tensor:
        assert states.dtype == torch.uint8
        assert states.device.type == "cpu"
        self.mine.append(states.tolist())
        other = self.others.pop(0) if self.others else [HIT] * len(states)
        return torch.maximum(states, torch.tensor(other, dtype=torch.uint8))


def make_scene(agree: Any, **options: Any) -> tuple[VisionPipeline, Tower, list[Item]]:
    """Three items; the cache contains the rows of the first one."""
    items = [Item(feature(seed, 3), Span(4 * seed, 3), key=KEYS[seed]) for seed in range(3)]
    tower, cache = Tower(), make_cache()
    cache.put(KEYS[0], encode_one(items[0].feature))
    return VisionPipeline(tower, cache, agree=agree, **options), tower, items


def refuse() -> Tensor:
    raise OSError("damaged file")


def test_states_are_shared_once_at_the_look_up_and_before_each_encode() -> None:
    ranks = OtherRanks()
    pipeline, tower, items = make_scene(ranks, max_rows_per_encode=3)
    assert embed(pipeline, [Chunk(items, 0, 12)], 12) == []
    assert ranks.mine == [[HIT, MISS, MISS], [MISS], [MISS]]
    assert tower.calls == [[items[1]], [items[2]]]
    assert embed(pipeline, [Chunk(items, 0, 12)], 12) == []
    assert ranks.mine[3:] == [[HIT, HIT, HIT]]


def test_items_that_another_rank_misses_are_encoded_hits_included() -> None:
    pipeline, tower, items = make_scene(OtherRanks([MISS, HIT, MISS]))
    assert embed(pipeline, [Chunk(items, 0, 12)], 12) == []
    assert tower.calls == [items]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_item_that_failed_on_another_rank_fails_here_and_is_not_cached(number: int) -> None:
    pipeline, tower, items = make_scene(
        OtherRanks([FAILED if other == number else HIT for other in range(3)])
    )
    [error] = embed(pipeline, [Chunk(items, 0, 12)], 12, failed=[items[number]])
    assert (error.item, error.found) == (number, None)
    assert isinstance(error.cause, RuntimeError)
    assert "failed on another rank" in str(error.cause)
    assert tower.calls == [[item for item in items[1:] if item is not items[number]]]
    assert (KEYS[number] in pipeline.cache) == (number == 0)  # the rows of the hit are right
    assert embed(pipeline, [Chunk(items, 0, 12)], 12) == []
    assert pipeline.cache.stats().leased_pages == 0


def test_item_that_another_rank_cannot_copy_is_left_out_of_the_call_of_the_encoder() -> None:
    pipeline, tower, items = make_scene(OtherRanks([HIT] * 3, [FAILED, MISS]))
    [error] = embed(pipeline, [Chunk(items, 0, 12)], 12, failed=[items[1]])
    assert isinstance(error.cause, RuntimeError)
    assert tower.calls == [[items[2]]]
    assert KEYS[1] not in pipeline.cache


def test_hit_that_this_rank_cannot_load_fails_before_the_call_of_the_encoder() -> None:
    ranks = OtherRanks([MISS, HIT, HIT])
    pipeline, tower, items = make_scene(ranks)
    items[0] = Item(refuse, items[0].spans, key=KEYS[0])
    [error] = embed(pipeline, [Chunk(items, 0, 12)], 12, failed=[items[0]])
    assert isinstance(error.cause, OSError)
    assert ranks.mine == [[HIT, MISS, MISS], [FAILED, MISS, MISS]]
    assert tower.calls == [items[1:]]


def test_item_that_cannot_be_hashed_or_loaded_is_shared_as_failed() -> None:
    ranks = OtherRanks([MISS] * 3)
    pipeline, tower, items = make_scene(ranks)
    items[1:] = [Item(refuse, items[1].spans), Item(refuse, items[2].spans, key=KEYS[2])]
    errors = embed(pipeline, [Chunk(items, 0, 12)], 12, failed=items[1:])
    assert [type(error.cause) for error in errors] == [OSError, OSError]
    # If any item has failed, the states are shared once more.
    assert ranks.mine == [[HIT, FAILED, FAILED], [MISS, FAILED, FAILED], [MISS]]
    assert tower.calls == [items[:1]]


def test_item_that_another_rank_cannot_hash_fails_with_its_equals_of_the_step() -> None:
    """On the other rank, the first and the last item are two items, because it cannot hash the last one."""
    ranks = OtherRanks([HIT, MISS, FAILED])
    pipeline, tower, items = make_scene(ranks)
    items[2] = Item(feature(0, 3), items[2].spans, key=KEYS[0])
    errors = embed(pipeline, [Chunk(items, 0, 12)], 12, failed=[items[0], items[2]])
    assert [error.item for error in errors] == [0, 2]
    assert ranks.mine == [[HIT, MISS, HIT], [FAILED, MISS, FAILED], [MISS]]
    assert tower.calls == [[items[1]]]


def test_equal_items_fail_if_this_rank_cannot_hash_one_of_them_and_others_can() -> None:
    """The other rank tells in the second exchange that the first item is equal to the one without a key."""
    ranks = OtherRanks([MISS, MISS, MISS], [FAILED, MISS, FAILED])
    pipeline, tower, items = make_scene(ranks)
    items[2] = Item(refuse, items[2].spans)
    errors = embed(pipeline, [Chunk(items, 0, 12)], 12, failed=[items[0], items[2]])
    assert [type(error.cause) for error in errors] == [RuntimeError, OSError]
    assert ranks.mine == [[HIT, MISS, FAILED], [MISS, MISS, FAILED], [MISS]]
    assert tower.calls == [[items[1]]]


def test_item_with_precomputed_rows_fails_if_another_rank_has_none_of_them() -> None:
    ranks = OtherRanks([HIT, HIT, HIT, FAILED])
    pipeline, _, items = make_scene(ranks)
    items.append(Item(None, Span(12, 3), rows=encode_one(feature(3, 3))))
    [error] = embed(pipeline, [Chunk(items, 0, 16)], 16, failed=[items[3]])
    assert error.item == 3
    assert ranks.mine[0] == [HIT, MISS, MISS, HIT]


def test_feature_whose_copy_fails_is_left_out_of_the_call_on_all_ranks() -> None:
    ranks = OtherRanks()
    pipeline, tower, items = make_scene(ranks)
    items[1] = Item("no tensor", items[1].spans, key=KEYS[1])
    [error] = embed(pipeline, [Chunk(items, 0, 12)], 12, failed=[items[1]])
    assert isinstance(error.cause, TypeError)
    assert ranks.mine == [[HIT, MISS, MISS], [FAILED, MISS]]
    assert tower.calls == [[items[2]]]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda states: None, "agree.states must return a uint8 tensor of 3 states, got None"),
        (lambda states: states.int(), "agree.states must return a uint8 tensor of 3 states"),
        (lambda states: states[:2], "agree.states must return a uint8 tensor of 3 states"),
        (lambda states: states * 0, r"must return the largest states of all ranks, got \[0, 0, 0\]"),
        (lambda states: states + 3, "must return the largest states of all ranks"),
    ],
)
def test_embed_refuses_invalid_states_before_it_encodes(
    answer: Callable[[Tensor], Any], message: str
) -> None:
    ranks = OtherRanks()
    ranks.states = answer  # type: ignore[method-assign]
    pipeline, tower, items = make_scene(ranks)
    with pytest.raises(ValueError, match=message):
        pipeline.embed([Chunk(items, 0, 12)], make_ids(12), make_weight())
    assert tower.calls == []
    assert pipeline.cache.stats().leased_pages == 0


def test_states_are_not_shared_in_a_step_without_items() -> None:
    ranks = OtherRanks()
    pipeline, _, items = make_scene(ranks)
    assert embed(pipeline, [Chunk(items, 3, 1)], 1) == []
    assert ranks.mine == []


def test_kept_rows_are_dropped_if_another_rank_misses_or_lacks_their_item() -> None:
    """Rows that the cache rejected are a hit in the next chunk of their request."""
    for state, encodes in ((HIT, 1), (MISS, 2), (FAILED, 1)):
        ranks = OtherRanks([MISS], [MISS], [state])
        tower, cache = Tower(), make_cache(device_pages=1)
        request = Items([Item(feature(1, 40), Span(0, 40), key=KEYS[1])])
        pipeline = VisionPipeline(tower, cache, agree=ranks)
        assert embed(pipeline, [Chunk(request, 0, 20)], 20) == []
        errors = embed(
            pipeline, [Chunk(request, 20, 20)], 20, failed=list(request) if state == FAILED else []
        )
        assert len(tower.calls) == encodes, state
        assert len(errors) == (state == FAILED)
