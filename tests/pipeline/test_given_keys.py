"""Given keys: the namespace of a pipeline is folded into them, once per `Items` object and namespace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caches import make_cache
from pipeline_scene import Tower, embed, feature, make_ids, make_weight

from vitcache import Chunk, Item, Items, Namespace, Span, VisionPipeline, content_key
from vitcache.keys.folding import fold_keys
from vitcache.pipeline import step_keys

KEYS = [bytes([number]) * 32 for number in range(4)]


def test_fold_keys_gives_every_namespace_and_key_a_key_of_its_own() -> None:
    folded = {key for namespace in (b"a", b"b", Namespace("a")) for key in fold_keys(KEYS, namespace)}
    assert len(folded | set(KEYS)) == 3 * len(KEYS) + len(KEYS)
    assert all(len(key) == 32 for key in folded)
    assert fold_keys(KEYS, b"") == KEYS
    assert fold_keys(KEYS[:1], Namespace("a")) == fold_keys(KEYS[:1], Namespace("a").digest())
    assert fold_keys([], b"a") == []
    # The end of a namespace and the beginning of a key are not mixed up.
    assert fold_keys([b"x" * 32], b"ab") != fold_keys([b"bx" + b"x" * 30], b"a")


@pytest.mark.parametrize("namespace", [b"", b"a"])
def test_fold_keys_refuses_other_types(namespace: bytes) -> None:
    with pytest.raises(TypeError, match="key must be bytes, got str"):
        fold_keys(["a"], namespace)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="key has 1 bytes, it must have 32"):
        fold_keys([b"a"], namespace)
    with pytest.raises(TypeError, match="namespace must be bytes or a Namespace, got str"):
        fold_keys([], "a")  # type: ignore[arg-type]


def test_two_namespaces_share_no_rows_of_one_given_key() -> None:
    cache, towers = make_cache(), [Tower(), Tower(), Tower()]
    namespaces: list[Any] = [b"", b"one model", Namespace("another model")]
    pipelines = [
        VisionPipeline(tower, cache, namespace=namespace)
        for tower, namespace in zip(towers, namespaces, strict=True)
    ]
    items = Items([Item(feature(0, 2), Span(1, 2), key=KEYS[0])])
    for _ in range(3):
        for pipeline in pipelines:
            assert embed(pipeline, [Chunk(items, 0, 4)], 4) == []
    assert [len(tower.encoded) for tower in towers] == [1, 1, 1]
    keys = {pipeline.key(items[0]) for pipeline in pipelines}
    assert len(keys) == len(cache) == 3
    assert all(key in cache for key in keys)
    assert KEYS[0] in keys
    assert pipelines[2].namespace == Namespace("another model").digest()


def test_a_complete_key_is_used_unchanged() -> None:
    cache = make_cache()
    one, two = (VisionPipeline(Tower(), cache, namespace=name) for name in (b"one", b"two"))
    item = Item(feature(0, 2), Span(1, 2), key=KEYS[0], complete_key=True)
    for pipeline in (one, two):
        assert pipeline.key(item) == KEYS[0]
        assert embed(pipeline, [Chunk([item], 0, 4)], 4) == []
    assert len(cache) == 1
    assert KEYS[0] in cache


def test_pipeline_key_of_an_item_is_the_key_of_its_rows_in_the_cache() -> None:
    pipeline = VisionPipeline(Tower(), make_cache(), namespace=b"here")
    loads = []

    def load() -> torch.Tensor:
        loads.append(1)
        return feature(2, 2)

    items = [
        Item(feature(0, 2), Span(0, 2), key=KEYS[0]),
        Item(feature(1, 2), Span(2, 2), grid=3),
        Item(load, Span(4, 2)),
    ]
    [folded] = fold_keys(KEYS[:1], b"here")
    expected = [
        folded,
        content_key(feature(1, 2), namespace=b"here", extra={"grid": 3}),
        content_key(feature(2, 2), namespace=b"here", extra={}),
    ]
    assert [pipeline.key(item) for item in items] == expected
    assert [pipeline.key(item) for item in items] == expected
    assert loads == [1]  # the key of its content is stored
    assert embed(pipeline, [Chunk(items, 0, 6)], 6) == []
    assert all(key in pipeline.cache for key in expected)


@pytest.mark.parametrize("as_items", [True, False])
def test_keys_are_folded_once_per_request_and_namespace(
    monkeypatch: pytest.MonkeyPatch, as_items: bool
) -> None:
    calls: list[tuple[int, bytes]] = []

    def note(keys: Any, namespace: bytes) -> list[bytes]:
        keys = list(keys)
        calls.append((len(keys), namespace))
        return fold_keys(keys, namespace)

    monkeypatch.setattr(step_keys, "fold_keys", note)
    cache = make_cache()
    one, two, empty = (VisionPipeline(Tower(), cache, namespace=name) for name in (b"one", b"two", b""))
    items: Any = [Item(feature(seed, 2), Span(4 * seed, 2), key=KEYS[seed]) for seed in range(4)]
    items = Items(items) if as_items else items
    for _ in range(2):  # of the whole request at once, also of the items of later chunks
        for pipeline in (one, two) if as_items else (one,):
            for start in range(0, 16, 4):
                assert embed(pipeline, [Chunk(items, start, 4)], 4) == []
    expected = [(4, b"one"), (4, b"two")] if as_items else [(4, b"one")]
    assert [call for call in calls if call[0]] == expected
    calls.clear()
    assert embed(empty, [Chunk(items, 0, 16)], 16) == []
    complete = Items([Item(feature(9, 2), Span(0, 2), key=b"c" * 32, complete_key=True)])
    assert embed(one, [Chunk(complete, 0, 4)], 4) == []
    assert calls == []


def test_a_key_that_was_set_later_is_folded_again() -> None:
    pipeline = VisionPipeline(Tower(), make_cache(), namespace=b"one")
    item = Item(feature(0, 2), Span(0, 2), key=KEYS[0])
    first = pipeline.key(item)
    item.key = KEYS[1]
    assert pipeline.key(item) == fold_keys(KEYS[1:2], b"one")[0] != first
    assert embed(pipeline, [Chunk([item], 0, 2)], 2) == []
    assert pipeline.key(item) in pipeline.cache
    assert first not in pipeline.cache
    item.key = None
    assert pipeline.key(item) == content_key(feature(0, 2), namespace=b"one", extra={})


def test_prefetch_and_a_step_look_up_the_same_folded_keys() -> None:
    tower = Tower()
    with VisionPipeline(tower, make_cache(), namespace=b"one") as pipeline:
        items = Items([Item(feature(seed, 2), Span(4 * seed, 2), key=KEYS[seed]) for seed in range(2)])
        pipeline.prefetch([Chunk(items, 0, 8)]).wait(60)
        assert len(tower.encoded) == 2
        assert embed(pipeline, [Chunk(items, 0, 8)], 8) == []
        assert len(tower.encoded) == 2


def test_items_with_one_given_key_in_two_requests_are_encoded_once() -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache(), namespace=b"one")
    requests = [Items([Item(feature(0, 2), Span(1, 2), key=KEYS[0])]) for _ in range(2)]
    assert embed(pipeline, [Chunk(items, 0, 4, 4 * i) for i, items in enumerate(requests)], 8) == []
    assert len(tower.encoded) == 1


def test_pipeline_accepts_a_namespace_object_and_refuses_other_types() -> None:
    cache, item = make_cache(), Item(feature(0, 2), Span(0, 2))
    keys = {
        VisionPipeline(Tower(), cache, namespace=name).key(Item(item.feature, item.spans))
        for name in (Namespace("a"), Namespace("a").digest())
    }
    assert len(keys) == 1
    for wrong in ("a", None, 3):
        with pytest.raises(TypeError, match="namespace must be bytes or a Namespace, got"):
            VisionPipeline(Tower(), cache, namespace=wrong)  # type: ignore[arg-type]
    result = VisionPipeline(Tower(), cache).embed([], make_ids(2), make_weight())
    assert result.errors == []
