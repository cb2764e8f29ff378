"""A step through the pipeline: what is encoded, what is placed, what fails, and that nothing else happens."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_scene import (
    HIDDEN,
    VOCABULARY,
    Tower,
    as_floats,
    encode_one,
    expected,
    feature,
    hide_images,
    make_cache,
    make_ids,
    make_weight,
)

from vitcache import (
    Chunk,
    EmbeddingCache,
    Item,
    ItemError,
    Items,
    PinnedRing,
    Span,
    VisionPipeline,
    content_key,
)

WEIGHT = make_weight()


@pytest.fixture(params=["no ring", "ring"])
def ring(request: pytest.FixtureRequest) -> Iterator[PinnedRing | None]:
    if request.param == "no ring":
        yield None
        return
    with PinnedRing(1 << 16, backend="host", num_threads=2) as made:
        yield made


def embed(
    pipeline: VisionPipeline, chunks: list[Chunk], num_tokens: int, *, failed: Any = (), levels: int = 0
) -> list[ItemError]:
    """Embed a step into poisoned memory, and compare each token with what must be there."""
    ids = make_ids(num_tokens)
    out = torch.full((num_tokens, HIDDEN), float("nan"))
    deepstack = torch.full((levels, num_tokens, HIDDEN), float("nan")) if levels else None
    result = pipeline.embed(chunks, hide_images(ids, chunks), WEIGHT, out=out, deepstack=deepstack)
    wanted, wanted_levels = expected(chunks, ids, WEIGHT, failed=failed, levels=levels)
    assert result.inputs_embeds is out
    assert torch.equal(out, wanted)
    if deepstack is not None:
        assert torch.equal(deepstack, wanted_levels)
    pipeline.cache.check_integrity()
    assert pipeline.cache.stats().leased_pages == 0
    assert len(pipeline.cache._single_flight) == 0
    return result.errors


def test_a_request_chunk_by_chunk_encodes_each_image_once_and_only_when_it_is_needed(
    ring: PinnedRing | None,
) -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache(), ring=ring)
    items = Items([Item(feature(seed, 5), Span(3 + 10 * seed, 5)) for seed in range(4)])
    encoded = []
    for start in range(0, 40, 6):
        assert embed(pipeline, [Chunk(items, start, min(6, 40 - start))], min(6, 40 - start)) == []
        encoded.append(len(tower.encoded))
    assert encoded == [1, 1, 2, 3, 3, 4, 4]
    assert [items[:].index(item) for item in tower.encoded] == [0, 1, 2, 3]


def test_images_of_several_requests_are_encoded_in_one_call_and_equal_ones_once(
    ring: PinnedRing | None,
) -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache(), ring=ring)
    shared = feature(0, 3)
    one = [Item(shared, Span(1, 3)), Item(feature(1, 2), Span(6, 2))]
    other = [Item(shared.numpy().copy(), Span(4, 3)), Item(feature(2, 4), Span(0, 4))]
    assert embed(pipeline, [Chunk(one, 0, 9), Chunk(other, 0, 8, 9)], 20) == []
    # In the order of the batch: what the first tokens need comes first.
    assert [[item.num_rows for item in call] for call in tower.calls] == [[3, 2, 4]]
    assert len(pipeline.cache) == 3


@pytest.mark.parametrize("reuses_memory", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("pages", [1, 3, 64])
def test_micro_batches_are_as_full_as_they_may_be_and_an_encoder_may_reuse_its_memory(
    ring: PinnedRing | None, reuses_memory: bool, packed: bool, pages: int
) -> None:
    tower = Tower(reuses_memory=reuses_memory, packed=packed)
    pipeline = VisionPipeline(tower, make_cache(pages), ring=ring, max_rows_per_encode=6)
    lengths = [3, 3, 1, 9, 2, 2, 2, 1]
    starts = np.cumsum([0, *lengths[:-1]])
    items = [
        Item(feature(seed, rows), Span(int(start), rows))
        for seed, (rows, start) in enumerate(zip(lengths, starts, strict=True))
    ]
    for _ in range(2):
        assert embed(pipeline, [Chunk(items, 0, sum(lengths))], sum(lengths)) == []
    batches = [[item.num_rows for item in call] for call in tower.calls]
    assert batches[:4] == [[3, 3], [1], [9], [2, 2, 2]]
    assert batches[4] == [1]
    if pages == 64:
        assert len(batches) == 5


def test_deepstack_levels_go_where_they_belong_and_are_zero_at_text(ring: PinnedRing | None) -> None:
    tower = Tower(HIDDEN * 3)
    pipeline = VisionPipeline(tower, make_cache(levels=2), ring=ring)
    items = [Item(feature(0, 5), [Span(2, 3), Span(8, 2, 3)]), Item(feature(1, 2), Span(6, 2))]
    for start in (0, 3):
        assert embed(pipeline, [Chunk(items, start, 8)], 8, levels=2) == []


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
def test_a_feature_is_a_tensor_or_an_array_or_what_loads_one(ring: PinnedRing | None, make: Any) -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache(), ring=ring)
    item = Item(make(feature(0, 5)), Span(2, 5))
    assert embed(pipeline, [Chunk([item], 0, 9)], 9) == []
    (got,) = tower.features
    assert isinstance(got, torch.Tensor)
    given = item.feature() if callable(item.feature) else item.feature
    assert torch.equal(got.float(), as_floats(given))


def test_a_hit_never_touches_its_feature_and_a_miss_loads_it_once(ring: PinnedRing | None) -> None:
    loads = []

    def load() -> torch.Tensor:
        loads.append(1)
        return feature(0, 3)

    pipeline = VisionPipeline(Tower(), make_cache(), ring=ring)
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


def test_precomputed_rows_lie_beside_raw_ones(ring: PinnedRing | None) -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache(), ring=ring)
    rows = torch.randn(6, HIDDEN)
    items = [
        Item(None, [Span(0, 2, 4), Span(5, 1)], rows=rows),
        Item(feature(0, 3), Span(2, 3)),
        Item(None, Span(6, 6), rows=rows.to(torch.bfloat16)),
    ]
    ids = make_ids(13)
    result = pipeline.embed([Chunk(items, 0, 13)], ids, WEIGHT)
    assert result.errors == []
    assert torch.equal(result.inputs_embeds[[0, 1, 5]], rows[[4, 5, 0]])
    assert torch.equal(result.inputs_embeds[6:12], rows.to(torch.bfloat16).float())
    assert len(pipeline.cache) == 1


def test_a_miss_and_a_hit_give_the_same_bits_in_the_caches_dtype() -> None:
    pipeline = VisionPipeline(Tower(), make_cache(dtype=torch.bfloat16))
    full = VisionPipeline(Tower(), make_cache(1, dtype=torch.bfloat16))
    item = Item(feature(0, 5), Span(1, 5))
    ids = make_ids(7)
    miss, hit, refused = (
        owner.embed([Chunk([item], 0, 7)], ids, WEIGHT).inputs_embeds for owner in (pipeline, pipeline, full)
    )
    assert torch.equal(miss, hit)
    assert torch.equal(miss, refused)
    assert len(full.cache) == 0
    assert torch.equal(miss[1:6], encode_one(feature(0, 5)).bfloat16().float())


# Failures


def fail_for(*bad: Item) -> Any:
    def fails(item: Item) -> None:
        if any(item is other for other in bad):
            raise ZeroDivisionError(f"item of {item.num_rows} rows")

    return fails


def test_an_item_whose_encode_raises_fails_alone(ring: PinnedRing | None) -> None:
    good = [Item(feature(seed, 2 + seed), Span(10 * seed, 2 + seed)) for seed in range(3)]
    bad = Item(feature(9, 4), [Span(5, 2), Span(15, 2, 2)])
    tower = Tower(fails=fail_for(bad), reuses_memory=True)
    pipeline = VisionPipeline(tower, make_cache(), ring=ring)
    chunks = [Chunk([good[0], bad], 0, 20), Chunk([good[1], bad, good[2]], 0, 30, 20)]
    errors = embed(pipeline, chunks, 50, failed=[bad])
    assert [error[:4] for error in errors] == [(0, 1, 4, None), (1, 1, 4, None)]
    assert all(isinstance(error.cause, ZeroDivisionError) for error in errors)
    assert len(tower.calls) == 1 + 4
    assert len(pipeline.cache) == 3
    # The next step tries it again.
    tower.fails = None
    assert embed(pipeline, chunks, 50) == []


class Wrong(Tower):
    """Returns something else for items of four rows."""

    def __init__(self, wrong: Any, *, packed: bool = False) -> None:
        super().__init__(packed=packed)
        self.wrong = wrong

    def __call__(self, features: list[torch.Tensor], items: list[Item]) -> Any:
        self.packed, packed = False, self.packed
        rows = list(super().__call__(features, items))
        self.packed = packed
        rows = [
            self.wrong(part) if item.num_rows == 4 else part for part, item in zip(rows, items, strict=True)
        ]
        return torch.cat(rows) if packed else rows


@pytest.mark.parametrize(
    ("wrong", "found", "error", "message"),
    [
        (lambda rows: rows[:3], 3, ValueError, "encode returned 3 rows, the item has 4"),
        (lambda rows: torch.cat([rows, rows]), 8, ValueError, "encode returned 8 rows, the item has 4"),
        (
            lambda rows: rows[:, :2],
            None,
            ValueError,
            r"encode returned shape \(4, 2\), it must be \(rows, 4\)",
        ),
        (lambda rows: rows[None], None, ValueError, r"encode returned shape \(1, 4, 4\)"),
        (lambda rows: rows.double(), None, TypeError, "encode returned torch.float64"),
        (lambda rows: rows.to("meta"), None, ValueError, "encode returned rows on meta, the cache is on cpu"),
        (lambda rows: rows.tolist(), None, TypeError, "encode must return tensors, one is list"),
    ],
)
def test_wrong_rows_are_the_error_of_their_item(
    wrong: Any, found: int | None, error: type[Exception], message: str
) -> None:
    pipeline = VisionPipeline(Wrong(wrong), make_cache())
    items = [
        Item(feature(0, 2), Span(0, 2)),
        Item(feature(1, 4), Span(4, 4)),
        Item(feature(2, 3), Span(9, 3)),
    ]
    errors = embed(pipeline, [Chunk(items, 0, 14)], 14, failed=[items[1]])
    ((chunk, item, wanted, got, cause),) = errors
    assert (chunk, item, wanted, got) == (0, 1, 4, found)
    with pytest.raises(error, match=message):
        raise cause
    assert len(pipeline.cache) == 2


def test_a_tensor_of_another_length_for_all_is_narrowed_down_to_its_item() -> None:
    tower = Wrong(lambda rows: rows[:3], packed=True)
    pipeline = VisionPipeline(tower, make_cache())
    items = [
        Item(feature(0, 2), Span(0, 2)),
        Item(feature(1, 4), Span(4, 4)),
        Item(feature(2, 3), Span(9, 3)),
    ]
    (error,) = embed(pipeline, [Chunk(items, 0, 14)], 14, failed=[items[1]])
    assert error[:4] == (0, 1, 4, 3)
    assert [len(call) for call in tower.calls] == [3, 1, 1, 1]


@pytest.mark.parametrize("wrong", [None, 3, [], [torch.zeros(2, HIDDEN)] * 2])
def test_an_encoder_that_returns_no_tensors_fails_every_item(wrong: Any) -> None:
    pipeline = VisionPipeline(lambda features, items: wrong, make_cache())
    items = [
        Item(feature(0, 2), Span(0, 2)),
        Item(feature(1, 4), Span(4, 4)),
        Item(feature(2, 3), Span(9, 3)),
    ]
    errors = embed(pipeline, [Chunk(items, 0, 14)], 14, failed=items)
    assert [error.item for error in errors] == [0, 1, 2]
    assert all(error.found is None for error in errors)
    assert len(pipeline.cache) == 0


def test_rows_that_are_not_numbers_pass_through() -> None:
    pipeline = VisionPipeline(lambda features, items: [torch.full((2, HIDDEN), float("nan"))], make_cache())
    result = pipeline.embed([Chunk([Item(feature(0, 2), Span(0, 2))], 0, 3)], make_ids(3), WEIGHT)
    assert result.errors == []
    assert result.inputs_embeds[:2].isnan().all()


def raise_key_error() -> None:
    raise KeyError("gone")


@pytest.mark.parametrize(
    ("item", "error"),
    [
        (Item(raise_key_error, Span(4, 4)), KeyError),
        (Item(raise_key_error, Span(4, 4), key=b"a" * 32), KeyError),
        (Item("a path", Span(4, 4)), TypeError),
        (Item("a path", Span(4, 4), key=b"a" * 32), TypeError),
        (Item(feature(1, 4), Span(4, 4), what=object()), TypeError),
        (Item(None, Span(4, 4), key=b"a" * 32), ValueError),
        (Item(lambda: None, Span(4, 4)), ValueError),
        (Item(np.array(["a"]), Span(4, 4), key=b"a" * 32), TypeError),
        (Item(None, Span(4, 4), rows=torch.zeros(4, 3)), ValueError),
        (Item(None, Span(4, 4), rows=torch.zeros(4, HIDDEN, dtype=torch.float64)), TypeError),
        (Item(None, Span(4, 4), rows=torch.zeros(4, HIDDEN, device="meta")), TypeError),
        (Item(None, Span(4, 4), rows=torch.zeros(4, HIDDEN).to_sparse()), TypeError),
    ],
)
def test_what_cannot_be_loaded_hashed_moved_or_placed_fails_alone(
    ring: PinnedRing | None, item: Item, error: type[Exception]
) -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache(), ring=ring)
    items = [Item(feature(0, 2), Span(0, 2)), item]
    errors = embed(pipeline, [Chunk(items, 0, 9)], 9, failed=[item])
    assert [failed[:4] for failed in errors] == [(0, 1, 4, None)]
    assert isinstance(errors[0].cause, error)
    assert len(tower.encoded) == len(pipeline.cache) == 1


def test_a_copy_that_fails_is_the_error_of_its_item(monkeypatch: pytest.MonkeyPatch) -> None:
    with PinnedRing(1 << 16, backend="host") as ring:
        pipeline = VisionPipeline(Tower(), make_cache(), ring=ring)
        items = [Item(feature(0, 2), Span(0, 2)), Item(feature(1, 4), Span(4, 4))]
        copy_to = ring.copy_to

        def fail(dst: Any, src: Any, **options: Any) -> Any:
            if src.shape[0] == 8:
                raise TimeoutError("no room")
            return copy_to(dst, src, **options)

        monkeypatch.setattr(ring, "copy_to", fail)
        (error,) = embed(pipeline, [Chunk(items, 0, 9)], 9, failed=[items[1]])
        assert isinstance(error.cause, TimeoutError)


def test_an_interrupt_leaves_nothing_behind() -> None:
    def interrupt(item: Item) -> None:
        if len(tower.calls) == 3:
            raise KeyboardInterrupt

    tower = Tower(fails=interrupt)
    pipeline = VisionPipeline(tower, make_cache(), max_rows_per_encode=2)
    items = [Item(feature(seed, 2), Span(2 * seed, 2)) for seed in range(4)]
    with pytest.raises(KeyboardInterrupt):
        pipeline.embed([Chunk(items, 0, 8)], make_ids(8), WEIGHT)
    gc.collect()
    tower.fails = None
    assert embed(pipeline, [Chunk(items, 0, 8)], 8) == []


# What is refused before anything is done


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"chunks": 3}, TypeError, "chunks must be a list of Chunk"),
        ({"chunks": [Chunk([], 0, 9)]}, IndexError, "chunk 0 ends at token 9 of the batch, which has 8"),
        ({"chunks": [Chunk([], 0, 4), Chunk([], 0, 4, 3)]}, ValueError, "chunk 1 begins at 3"),
        ({"input_ids": [1, 2]}, TypeError, "input_ids must be a tensor, it is list"),
        ({"weight": None}, TypeError, "weight must be a tensor"),
        ({"weight": torch.zeros(5, 3)}, ValueError, "rows of width 3 .*, those of the cache have 4"),
        (
            {"deepstack": torch.zeros(1, 8, HIDDEN)},
            ValueError,
            "rows of width 8 .*, those of the cache have 4",
        ),
        ({"weight": WEIGHT.to("meta")}, ValueError, "weight is on meta, the cache is on cpu"),
    ],
)
def test_a_call_that_cannot_be_right_encodes_nothing(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache())
    item = Item(feature(0, 2), Span(0, 2))
    good = {"chunks": [Chunk([item], 0, 8)], "input_ids": make_ids(8), "weight": WEIGHT}
    with pytest.raises(error, match=message):
        pipeline.embed(**{**good, **arguments})
    assert tower.calls == []
    assert len(pipeline.cache) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"encode": 3}, TypeError, "encode must be callable, it is int"),
        ({"cache": {}}, TypeError, "cache must be an EmbeddingCache, it is dict"),
        ({"namespace": "a"}, TypeError, "namespace must be bytes, it is str"),
        ({"max_rows_per_encode": 0}, ValueError, "max_rows_per_encode is 0, it must be at least 1"),
        ({"max_rows_per_encode": 1.5}, TypeError, "max_rows_per_encode must be an int, it is 1.5"),
        ({"feature_dtype": torch.float32}, TypeError, "feature_dtype is torch.float32"),
        ({"agree": 1}, TypeError, "agree must be callable, it is int"),
        ({"ring": 1}, TypeError, "ring must be a PinnedRing, it is int"),
    ],
)
def test_a_pipeline_that_cannot_work_is_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    good: dict[str, Any] = {"encode": Tower(), "cache": make_cache()}
    with pytest.raises(error, match=message):
        VisionPipeline(**{**good, **arguments})


def test_an_encode_begun_before_an_epoch_is_not_inserted_after_it() -> None:
    cache = make_cache()
    tower = Tower(fails=lambda item: cache.advance_epoch())
    pipeline = VisionPipeline(tower, cache)
    assert embed(pipeline, [Chunk([Item(feature(0, 2), Span(0, 2))], 0, 3)], 3) == []
    assert len(cache) == 0


def test_two_items_of_one_key_and_other_lengths_are_two_items() -> None:
    key = b"k" * 32
    pipeline = VisionPipeline(Tower(), make_cache())
    items = [Item(feature(0, 2), Span(0, 2), key=key), Item(feature(0, 3), Span(2, 3), key=key)]
    assert embed(pipeline, [Chunk(items, 0, 5)], 5) == []


def test_features_may_be_rounded_on_the_way(ring: PinnedRing | None) -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache(), ring=ring, feature_dtype=torch.bfloat16)
    item = Item(feature(0, 2), Span(0, 2))
    pipeline.embed([Chunk([item], 0, 2)], make_ids(2), WEIGHT)
    assert torch.equal(tower.features[0], feature(0, 2).bfloat16())


def test_the_weight_may_be_a_parameter_and_the_encoder_may_record_gradients() -> None:
    scale = torch.nn.Parameter(torch.ones(()))
    pipeline = VisionPipeline(
        lambda features, items: [encode_one(part) * scale for part in features], make_cache()
    )
    item = Item(feature(0, 2), Span(0, 2))
    for _ in range(2):
        result = pipeline.embed([Chunk([item], 0, 3)], make_ids(3), torch.nn.Parameter(WEIGHT))
        assert not result.inputs_embeds.requires_grad
    with torch.inference_mode():
        assert (
            pipeline.embed([Chunk([Item(feature(1, 2), Span(0, 2))], 0, 3)], make_ids(3), WEIGHT).errors == []
        )


def test_ids_may_be_of_two_dimensions_and_there_may_be_no_image() -> None:
    pipeline = VisionPipeline(Tower(), make_cache())
    items = [Item(feature(0, 2), Span(3, 2))]
    ids = make_ids(2, 4)
    result = pipeline.embed([Chunk(items, 0, 8)], ids, WEIGHT)
    assert torch.equal(result.inputs_embeds, expected([Chunk(items, 0, 8)], ids, WEIGHT)[0])
    assert torch.equal(pipeline.embed([], ids, WEIGHT).inputs_embeds, WEIGHT[ids])
    assert int(ids.max()) < VOCABULARY


def test_a_closed_pipeline_prefetches_nothing_and_closes_again(ring: PinnedRing | None) -> None:
    with VisionPipeline(Tower(), make_cache(), ring=ring) as pipeline:
        pass
    pipeline.close()
    with pytest.raises(RuntimeError, match="the pipeline was closed"):
        pipeline.prefetch([])


def test_a_closed_cache_is_an_error_of_the_step() -> None:
    pipeline = VisionPipeline(Tower(), make_cache())
    pipeline.cache.close()
    with pytest.raises(RuntimeError, match="the cache was closed"):
        pipeline.embed([Chunk([Item(feature(0, 2), Span(0, 2))], 0, 3)], make_ids(3), WEIGHT)
    assert isinstance(pipeline.cache, EmbeddingCache)


def test_what_is_hit_again_in_host_memory_moves_to_the_device_as_it_is_placed() -> None:
    cache = make_cache(2, host_pages=8)
    pipeline = VisionPipeline(Tower(), cache)
    old, new = (Item(feature(seed, 3), Span(1, 3)) for seed in range(2))
    for item in (old, new):
        assert embed(pipeline, [Chunk([item], 0, 5)], 5) == []
    tiers = []
    for _ in range(3):
        with cache.get(pipeline.key(old)) as lease:
            tiers.append(lease.tier)
        assert embed(pipeline, [Chunk([old], 0, 5)], 5) == []
    assert tiers == ["host", "device", "device"]
    assert len(cache) == 2


def test_a_step_that_needs_the_whole_device_tier_keeps_its_last_rows_too() -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache(4, host_pages=20))
    items = [Item(feature(seed, 3), Span(3 * seed, 3)) for seed in range(6)]
    for count in range(1, 7):
        assert embed(pipeline, [Chunk(items[:count], 0, 3 * count)], 3 * count) == []
        assert len(pipeline.cache) == count
    assert len(tower.encoded) == 6


def test_an_item_whose_number_of_rows_is_absurd_fails_alone() -> None:
    pipeline = VisionPipeline(Tower(), make_cache())
    items = [Item(feature(0, 2), Span(0, 2)), Item(feature(1, 4), Span(4, 4), num_rows=2**62)]
    (error,) = embed(pipeline, [Chunk(items, 0, 9)], 9, failed=[items[1]])
    assert error[:4] == (0, 1, 2**62, 4)


@pytest.mark.parametrize("first", [None, raise_key_error])
def test_of_equal_items_the_one_that_has_a_feature_is_loaded(first: Any) -> None:
    pipeline = VisionPipeline(Tower(), make_cache())
    key = b"k" * 32
    items = [Item(first, Span(0, 2), key=key), Item(feature(0, 2), Span(4, 2), key=key)]
    result = pipeline.embed([Chunk(items, 0, 6)], make_ids(6), WEIGHT)
    assert result.errors == []
    assert torch.equal(result.inputs_embeds[:2], encode_one(feature(0, 2)))
    assert torch.equal(result.inputs_embeds[4:], encode_one(feature(0, 2)))
