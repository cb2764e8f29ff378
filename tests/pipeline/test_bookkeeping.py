"""Counts of a step: bytes of prefetched features, errors in order, claims and promotions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caches import make_cache

from vitcache import Chunk, Item, Span, VisionPipeline
from vitcache._native import StepPlan, read_requests
from vitcache.cache.claims import Claim
from vitcache.pipeline.feature_mover import MovedFeature
from vitcache.pipeline.prefetched_features import PrefetchedFeatures
from vitcache.pipeline.results import list_errors
from vitcache.pipeline.step_item import StepItem

WIDTH = 4
KEYS = [bytes([number]) * 32 for number in range(4)]
WEIGHT, IDS = torch.zeros(2, WIDTH), torch.zeros(8, dtype=torch.int64)


def feature(num_bytes: int) -> MovedFeature:
    return MovedFeature(torch.zeros(num_bytes, dtype=torch.uint8))


def test_prefetched_features_take_frees_bytes_for_another_feature() -> None:
    features = PrefetchedFeatures(max_bytes=10)
    features.add("a", feature(6), owner := object())
    assert features.make_room(owner)  # the last feature may exceed the limit
    features.add("b", feature(6), owner)
    assert not features.make_room(owner)
    assert features.take("a") is not None
    assert features.take("a") is None
    assert features.make_room(owner)
    features.add("c", feature(6), owner)
    assert not features.make_room(owner)
    assert [name in features for name in "abc"] == [False, True, True]


def test_prefetched_features_make_room_removes_the_oldest_of_other_owners() -> None:
    features = PrefetchedFeatures(max_bytes=10)
    older, mine, newer = object(), object(), object()
    for name, owner in (("a", mine), ("b", older), ("c", older), ("d", newer)):
        features.add(name, feature(4), owner)
    assert features.make_room(mine)
    assert [name in features for name in "abcd"] == [True, False, False, True]
    features.add("e", feature(8), mine)
    assert not features.make_room(mine)
    assert [name in features for name in "ade"] == [True, False, True]


def test_prefetched_features_drop_removes_only_the_features_of_one_owner() -> None:
    features = PrefetchedFeatures(max_bytes=10)
    mine, other = object(), object()
    for name, owner in (("a", mine), ("b", other), ("c", mine)):
        features.add(name, feature(5), owner)
    features.drop(mine)
    assert [name in features for name in "abc"] == [False, True, False]
    assert features.num_bytes == 5
    features.clear()
    assert len(features) == 0
    assert features.num_bytes == 0


def test_prefetched_features_add_counts_a_second_feature_of_an_item_once() -> None:
    features = PrefetchedFeatures(max_bytes=10)
    first = feature(6)
    features.add("a", first, object())
    features.add("a", feature(6), object())
    assert features.num_bytes == 6
    assert features.take("a") is first


def test_list_errors_returns_one_per_occurrence_sorted_by_chunk_and_item() -> None:
    chunks = [
        Chunk([Item(None, Span(2, 1), key=KEYS[0]), Item(None, Span(0, 1), key=KEYS[1])], 0, 4, 0),
        Chunk([Item(None, Span(0, 1), key=KEYS[1]), Item(None, Span(1, 1), key=KEYS[2])], 0, 4, 4),
    ]
    requests = read_requests(chunks, Chunk)
    plan = StepPlan(chunks, requests, b"", 8)
    step_items = [StepItem.of(plan, requests, number) for number in range(len(plan))]
    for step_item in step_items:
        if step_item.key != KEYS[2]:
            step_item.fail(ValueError("wrong"), found=7)
    assert [
        (error.chunk, error.item, error.expected, error.found) for error in list_errors(step_items, plan)
    ] == [
        (0, 0, 1, 7),
        (0, 1, 1, 7),
        (1, 0, 1, 7),
    ]


def chunk(*keys: bytes) -> list[Chunk]:
    items = [Item(torch.ones(1), Span(token, 1), key=key) for token, key in enumerate(keys)]
    return [Chunk(items, 0, len(IDS))]


def test_embed_releases_the_claim_on_a_key_inserted_since_the_look_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache, claimed = make_cache(4, page_rows=1), []
    claim = cache.claim

    def insert_and_claim(key: bytes) -> Claim:
        if key == KEYS[0]:
            cache.put(key, torch.full((1, WIDTH), 5.0))
        return claim(key)

    def encode(features: list[Any], items: list[Item]) -> torch.Tensor:
        claimed.append([key for key in KEYS if not claim(key).is_mine])
        return torch.full((len(items), WIDTH), 7.0)

    monkeypatch.setattr(cache, "claim", insert_and_claim)
    with VisionPipeline(encode, cache) as pipeline:
        rows, errors = pipeline.embed(chunk(KEYS[0], KEYS[1]), IDS, WEIGHT)
    assert errors == []
    assert rows[:2, 0].tolist() == [5.0, 7.0]
    assert claimed == [[KEYS[1]]]


def test_embed_promotes_a_host_entry_on_its_second_hit() -> None:
    cache = make_cache(1, 2, page_rows=1)
    for number in (0, 1):  # inserting the second entry demotes the first one
        cache.put(KEYS[number], torch.full((1, WIDTH), float(number + 1)))
    with VisionPipeline(lambda features, items: None, cache) as pipeline:  # type: ignore[arg-type,return-value]
        for promotions in (0, 1):
            rows, errors = pipeline.embed(chunk(KEYS[0]), IDS, WEIGHT)
            assert (errors, rows[0, 0].item()) == ([], 1.0)
            assert cache.stats().promotions == promotions
