"""`Item(move_feature=False)`: its feature reaches the encoder unchanged, in one batch with moved features."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from caches import make_cache
from pipeline_scene import HIDDEN, Tower, encode_one, feature, hide_images, make_ids, make_weight
from torch import Tensor

from vitcache import Chunk, Item, PinnedRing, Shadow, Span, VisionPipeline, content_key
from vitcache.pipeline.early_start import EarlyStart
from vitcache.pipeline.encoder_runner import EncoderRunner
from vitcache.pipeline.feature_mover import FeatureMover, MovedFeature, UnmovedFeature
from vitcache.pipeline.prefetched_features import PrefetchedFeatures
from vitcache.pipeline.step_item import StepItem

WEIGHT = make_weight()
KEY = bytes(32)
SECONDS = 60


class Proxy:
    """An engine's handle of a feature, which only the encoder can open."""

    def __init__(self, seed: int) -> None:
        self.seed = seed


def open_feature(given: Any) -> Tensor | np.ndarray:
    """The patches of any feature of these tests."""
    if isinstance(given, Proxy):
        return feature(given.seed, 2)
    return torch.cat(given) if isinstance(given, list) else given


class OpenTower(Tower):
    """A tower that also encodes lists and proxies. `given` contains the features of each call, unchanged."""

    def __init__(self, *, fails: Callable[[Item], None] | None = None) -> None:
        super().__init__(fails=fails)
        self.given: list[list[Any]] = []

    def __call__(self, features: list[Any], items: list[Item]) -> Any:
        self.given.append(features)
        return super().__call__([open_feature(given) for given in features], items)


def run(pipeline: VisionPipeline, items: list[Item], *, failed: int | None = None) -> None:
    """Embed a step whose item `i` has the rows of ``feature(i, 2)``, and compare every token."""
    chunks = [Chunk(items, 0, 2 * len(items) + 1)]
    ids = make_ids(chunks[0].length)
    out = torch.full((len(ids), HIDDEN), float("nan"))
    result = pipeline.embed(chunks, hide_images(ids, chunks), WEIGHT, out=out)
    wanted = [encode_one(feature(i, 2)) * (i != failed) for i in range(len(items))]
    assert torch.equal(out, torch.cat([*wanted, WEIGHT[ids[-1:]]]))
    assert [error.item for error in result.errors] == ([] if failed is None else [failed])


def place_at(i: int) -> Span:
    return Span(2 * i, 2)


def make_mixed() -> tuple[list[Item], dict[int, Any]]:
    """Items of all kinds, of which two move; and the objects that must reach the encoder, by item."""
    unmoved: dict[int, Any] = {
        1: feature(1, 2),
        2: feature(2, 2).numpy()[::-1].copy()[::-1],
        3: list(feature(3, 2).split(1)),
        4: Proxy(4),
        6: feature(6, 2),
    }
    items = [
        Item(feature(0, 2), place_at(0)),
        Item(unmoved[1], place_at(1), move_feature=False),
        Item(unmoved[2], place_at(2), move_feature=False),
        Item(unmoved[3], place_at(3), move_feature=False),
        Item(unmoved[4], place_at(4), key=KEY, move_feature=False),
        Item(lambda: feature(5, 2).numpy(), place_at(5)),
        Item(lambda: unmoved[6], place_at(6), move_feature=False),
    ]
    return items, unmoved


@pytest.mark.parametrize("max_rows", [2, 4, 64])
def test_only_moved_features_of_a_mixed_batch_pass_the_ring(max_rows: int) -> None:
    items, unmoved = make_mixed()
    tower = OpenTower()
    with (
        PinnedRing(1 << 16, backend="host") as ring,
        VisionPipeline(tower, make_cache(), ring=ring, max_rows_per_encode=max_rows) as pipeline,
    ):
        run(pipeline, items)
        moved_bytes = sum(feature(i, 2).nbytes for i in range(len(items)) if i not in unmoved)
        assert (ring.stats().copies, ring.stats().copied_bytes) == (len(items) - len(unmoved), moved_bytes)
        run(pipeline, items)  # all hits
        assert tower.encoded == items
    given = [seen for call in tower.given for seen in call]
    assert all(given[i] is wanted for i, wanted in unmoved.items())
    assert all(isinstance(seen, Tensor) for i, seen in enumerate(given) if i not in unmoved)


def test_mixed_batch_without_a_ring_hands_unmoved_features_over() -> None:
    items, unmoved = make_mixed()
    tower = OpenTower()
    run(VisionPipeline(tower, make_cache()), items)
    [given] = tower.given
    assert all(given[i] is wanted for i, wanted in unmoved.items())
    assert all(isinstance(seen, Tensor) for i, seen in enumerate(given) if i not in unmoved)


def test_feature_dtype_casts_only_moved_features(maybe_ring: PinnedRing | None) -> None:
    tower = OpenTower()
    pipeline = VisionPipeline(tower, make_cache(), ring=maybe_ring, feature_dtype=torch.bfloat16)
    kept = feature(1, 2)
    items = [Item(feature(0, 2), place_at(0)), Item(kept, place_at(1), move_feature=False)]
    assert pipeline.embed([Chunk(items, 0, 4)], make_ids(4), WEIGHT).errors == []
    [[cast, unmoved]] = tower.given
    assert torch.equal(cast, feature(0, 2).bfloat16())
    assert unmoved is kept
    assert unmoved.dtype == torch.float32


def test_key_of_an_unmoved_feature_is_that_of_its_content_and_made_on_a_thread() -> None:
    threads = []
    array = feature(0, 2).numpy()
    key = content_key(array, namespace=b"model", extra={})

    def load() -> np.ndarray:
        threads.append(threading.get_ident())
        return array

    tower = OpenTower()
    pipeline = VisionPipeline(tower, make_cache(), namespace=b"model")
    item = Item(load, place_at(0), move_feature=False)
    run(pipeline, [item])
    assert len(threads) == 1  # one load for the key and the encoder
    assert threads[0] != threading.get_ident()
    assert tower.given[0][0] is array
    moved = Item(feature(0, 2), place_at(0))
    assert pipeline.key(item) == pipeline.key(moved) == key
    run(pipeline, [moved])
    assert tower.encoded == [item]


@pytest.mark.parametrize("has_keys", [True, False])
@pytest.mark.parametrize("moves_first", [True, False])
def test_equal_items_encoder_gets_the_first_and_its_own_feature(moves_first: bool, has_keys: bool) -> None:
    tower = OpenTower()
    key = KEY if has_keys else None
    items = [
        Item(feature(0, 2), place_at(i), key=key, move_feature=moves)
        for i, moves in enumerate((moves_first, not moves_first))
    ]
    with PinnedRing(1 << 16, backend="host") as ring:
        pipeline = VisionPipeline(tower, make_cache(), ring=ring)
        result = pipeline.embed([Chunk(items, 0, 4)], make_ids(4), WEIGHT)
        assert ring.stats().copies == moves_first
    assert result.errors == []
    assert torch.equal(result.inputs_embeds, encode_one(feature(0, 2)).repeat(2, 1))
    assert tower.encoded == items[:1]
    assert (tower.given[0][0] is items[0].feature) == (not moves_first)


@pytest.mark.parametrize("moves_first", [True, False])
def test_equal_item_in_place_of_one_that_cannot_be_loaded_moves_as_it_says(moves_first: bool) -> None:
    def fail() -> None:
        raise OSError("no file")

    tower = OpenTower()
    items = [
        Item(fail, place_at(0), key=KEY, move_feature=moves_first),
        Item(feature(0, 2), place_at(1), key=KEY, move_feature=not moves_first),
    ]
    with PinnedRing(1 << 16, backend="host") as ring:
        pipeline = VisionPipeline(tower, make_cache(), ring=ring)
        result = pipeline.embed([Chunk(items, 0, 4)], make_ids(4), WEIGHT)
        assert ring.stats().copies == (not moves_first)
    assert result.errors == []
    assert torch.equal(result.inputs_embeds, encode_one(feature(0, 2)).repeat(2, 1))
    assert tower.encoded == items[1:]
    assert (tower.given[0][0] is items[1].feature) == moves_first


def test_prefetch_without_encode_neither_loads_nor_moves_unmoved_features(
    maybe_ring: PinnedRing | None,
) -> None:
    loads = []
    kept = feature(1, 2)

    def load() -> Tensor:
        loads.append(1)
        return kept

    tower = OpenTower()
    with VisionPipeline(tower, make_cache(), ring=maybe_ring) as pipeline:
        items = [
            Item(feature(0, 2), place_at(0)),
            Item(load, place_at(1), key=KEY, move_feature=False),
            Item(feature(2, 2).numpy(), place_at(2), move_feature=False),
        ]
        pipeline.prefetch([Chunk(items, 0, 6)], encode=False).wait(SECONDS)
        assert (tower.given, loads, len(pipeline._prefetched)) == ([], [], 1)
        run(pipeline, items)
        assert len(pipeline._prefetched) == 0
    [given] = tower.given
    assert given[1] is kept
    assert given[2] is items[2].feature
    assert loads == [1]


def test_prefetch_with_encode_hands_unmoved_features_over(maybe_ring: PinnedRing | None) -> None:
    items, unmoved = make_mixed()
    tower = OpenTower()
    with VisionPipeline(tower, make_cache(), ring=maybe_ring, max_rows_per_encode=4) as pipeline:
        pipeline.prefetch([Chunk(items, 0, 14)]).wait(SECONDS)
        given = [seen for call in tower.given for seen in call]
        assert all(given[i] is wanted for i, wanted in unmoved.items())
        run(pipeline, items)
    assert tower.encoded == items


def test_feature_that_a_prefetch_moved_is_not_for_an_equal_unmoved_item(
    maybe_ring: PinnedRing | None,
) -> None:
    tower = OpenTower()
    with VisionPipeline(tower, make_cache(), ring=maybe_ring) as pipeline:
        pipeline.prefetch([Chunk([Item(feature(0, 2), place_at(0))], 0, 2)], encode=False).wait(SECONDS)
        item = Item(feature(0, 2), place_at(0), move_feature=False)
        run(pipeline, [item])
        assert len(pipeline._prefetched) == 0
    assert tower.given[0][0] is item.feature


def test_take_moved_of_an_unmoved_item_keeps_only_the_ticket(ring: PinnedRing) -> None:
    item = Item(feature(0, 2), place_at(0), key=KEY, move_feature=False)
    step_item = StepItem(0, item, KEY, HIDDEN)
    target = torch.empty(4, 3)
    moved = MovedFeature(target, ring.copy_to(target, feature(0, 2)))
    step_item.take_moved(moved)
    assert (step_item.moved, step_item.ticket) == (None, moved.ticket)
    step_item.take_moved(UnmovedFeature(item.feature))
    assert step_item.moved is not None
    assert step_item.moved.ready() is item.feature
    assert step_item.ticket is moved.ticket


def test_early_start_moves_the_features_of_one_micro_batch_except_unmoved_ones() -> None:
    cache = make_cache()
    runner = EncoderRunner(OpenTower(), cache, FeatureMover(cache.device, None, None), 4)
    start = EarlyStart(cache, runner, PrefetchedFeatures(), 4)
    step_items = [
        StepItem(i, Item(feature(i, 2), place_at(i), move_feature=i > 0), bytes([i]) * 32, HIDDEN)
        for i in range(3)
    ]
    for step_item in step_items:
        start(step_item)
    assert [step_item.moved is not None for step_item in step_items] == [False, True, False]


def test_failed_mixed_micro_batch_fails_only_the_faulty_item(maybe_ring: PinnedRing | None) -> None:
    items, unmoved = make_mixed()
    for faulty in (0, 3):  # a moved one and an unmoved one

        def refuse(item: Item, bad: Item = items[faulty]) -> None:
            if item is bad:
                raise ValueError("bad")

        tower = OpenTower(fails=refuse)
        run(VisionPipeline(tower, make_cache(), ring=maybe_ring), items, failed=faulty)
        assert [len(call) for call in tower.given] == [len(items)] + [1] * len(items)
        assert all(tower.given[1 + i][0] is wanted for i, wanted in unmoved.items())


def test_object_without_a_key_fails_alone_in_a_mixed_batch() -> None:
    items = [
        Item(feature(0, 2), place_at(0)),
        Item(Proxy(1), place_at(1), move_feature=False),
        Item(feature(2, 2), place_at(2), move_feature=False),
    ]
    pipeline = VisionPipeline(OpenTower(), make_cache())
    run(pipeline, items, failed=1)
    with pytest.raises(TypeError, match="Proxy"):
        pipeline.key(items[1])


def test_shadow_encodes_a_hit_again_with_its_unmoved_feature(maybe_ring: PinnedRing | None) -> None:
    reports: list[tuple[bytes, float]] = []
    tower = OpenTower()
    shadow = Shadow(1, lambda *report: reports.append(report))
    pipeline = VisionPipeline(tower, make_cache(), ring=maybe_ring, shadow=shadow)
    item = Item(Proxy(0), place_at(0), key=KEY, move_feature=False)
    for _ in range(2):
        run(pipeline, [item])
    assert reports == [(KEY, 0.0)]
    assert tower.given == [[item.feature], [item.feature]]


def test_agreed_hit_is_encoded_with_its_unmoved_feature(maybe_ring: PinnedRing | None) -> None:
    items, unmoved = make_mixed()
    tower = OpenTower()
    pipeline = VisionPipeline(tower, make_cache(), ring=maybe_ring, agree=torch.ones_like)
    for _ in range(2):
        run(pipeline, items)
    assert len(tower.given) == 2
    assert all(given[i] is wanted for given in tower.given for i, wanted in unmoved.items())


def test_unmoved_item_can_be_copied_and_pickled_and_has_a_repr() -> None:
    for moves in (True, False):
        item = Item(feature(0, 2), place_at(0), move_feature=moves)
        for copied in (copy.copy(item), copy.deepcopy(item), pickle.loads(pickle.dumps(item))):
            assert copied.move_feature is moves
            assert torch.equal(copied.feature, item.feature)
    assert repr(item) == "<Item unmoved Tensor, 2 rows in 1 span, tokens [0, 2)>"
    rows = Item(None, place_at(0), rows=torch.ones(2, HIDDEN), move_feature=False)
    assert repr(rows) == "<Item Tensor, 2 rows in 1 span, tokens [0, 2)>"


def test_unmoved_item_with_precomputed_rows_places_them() -> None:
    rows = encode_one(feature(0, 2))
    tower = OpenTower()
    run(VisionPipeline(tower, make_cache()), [Item(None, place_at(0), rows=rows, move_feature=False)])
    assert tower.given == []
