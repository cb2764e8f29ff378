"""Items with rows of several widths in one cache: deepstack images beside plain audio."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from caches import make_cache
from pipeline_scene import HIDDEN, Tower, embed, feature, make_ids, make_weight, place

from vitcache import Chunk, Item, Items, PinnedRing, Span, VisionPipeline

LEVELS = 2
WIDTH = HIDDEN * (1 + LEVELS)


def mixed(seed: int = 0) -> Items:
    """An image with deepstack, audio without, and another image whose spans enclose the audio's."""
    return Items(
        [
            Item(feature(seed, 3), Span(1, 3)),
            Item(feature(seed + 1, 4), [Span(6, 2), Span(10, 2, 2)], row_width=HIDDEN),
            Item(feature(seed + 2, 4), [Span(4, 2), Span(12, 2, 2)], row_width=WIDTH),
            Item(feature(seed + 3, 2), Span(15, 2), row_width=HIDDEN),
        ]
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("max_rows", [1, 7, 99])
@pytest.mark.parametrize("step", [embed, place])
def test_mixed_widths_are_encoded_once_and_zero_in_the_levels_of_narrow_rows(
    maybe_ring: PinnedRing | None, packed: bool, max_rows: int, step: Any
) -> None:
    tower = Tower(WIDTH, packed=packed, reuses_memory=True)
    pipeline = VisionPipeline(tower, make_cache(width=WIDTH), ring=maybe_ring, max_rows_per_encode=max_rows)
    items = mixed()
    for _ in range(2):
        for start in range(0, 18, 5):
            assert step(pipeline, [Chunk(items, start, 5, 1)], 7, levels=LEVELS) == []
    assert len(tower.encoded) == 4
    assert len(pipeline.cache) == 4
    widths = []
    for item in items:
        with pipeline.cache.get(pipeline.key(item)) as lease:
            widths.append(lease.row_width)
    assert widths == [WIDTH, HIDDEN, WIDTH, HIDDEN]


@pytest.mark.parametrize("step", [embed, place])
@pytest.mark.parametrize("host_pages", [0, 30])
def test_mixed_widths_from_both_tiers_and_from_rejected_rows(step: Any, host_pages: int) -> None:
    tower = Tower(WIDTH)
    pipeline = VisionPipeline(tower, make_cache(2, host_pages, width=WIDTH))
    items = mixed()
    for _ in range(3):
        for start in range(0, 18, 3):
            assert step(pipeline, [Chunk(items, start, 3)], 3, levels=LEVELS) == []
    assert len(tower.encoded) == (4 if host_pages else 12)
    assert pipeline._kept.num_bytes == 0


def test_narrow_precomputed_rows_name_their_width() -> None:
    pipeline = VisionPipeline(Tower(WIDTH), make_cache(width=WIDTH))
    narrow = torch.randn(2, HIDDEN)
    items = [
        Item(None, Span(0, 2), rows=narrow, row_width=HIDDEN),
        Item(None, Span(3, 2), rows=narrow),
        Item(None, Span(6, 2), rows=torch.randn(2, WIDTH)),
    ]
    [error] = embed(pipeline, [Chunk(items, 0, 8)], 8, failed=[items[1]], levels=LEVELS)
    assert error.item == 1
    assert str(error.cause) == "rows must have the cache's row_width, which is 12, got 4"


@pytest.mark.parametrize(
    ("width", "levels", "message"),
    [
        (5, LEVELS, "row_width is 5, it must divide the cache's row_width, which is 12"),
        (24, LEVELS, "row_width is 24, it must divide the cache's row_width, which is 12"),
        (6, LEVELS, "row_width is 6, it must be 4 or 12, the width of the destination's rows"),
        (2, 0, "row_width is 2, it must be 4, the width of the destination's rows"),
    ],
)
@pytest.mark.parametrize("step", [embed, place])
def test_a_width_that_the_step_does_not_place_is_an_error_of_the_item(
    step: Any, width: int, levels: int, message: str
) -> None:
    def load() -> torch.Tensor:
        raise AssertionError("loaded")

    cache_width = HIDDEN * (1 + levels)
    tower = Tower(cache_width)
    pipeline = VisionPipeline(tower, make_cache(width=cache_width))
    items = [
        Item(load, Span(0, 2), key=bytes(32), row_width=width),
        Item(load, Span(3, 2), row_width=width),
        Item(feature(0, 2), Span(6, 2)),
    ]
    errors = step(pipeline, [Chunk(items, 0, 8)], 8, failed=items[:2], levels=levels)
    assert [(error.item, error.expected, error.found) for error in errors] == [(0, 2, None), (1, 2, None)]
    assert {str(error.cause) for error in errors} == {message}
    assert {type(error.cause) for error in errors} == {ValueError}
    assert len(tower.encoded) == 1
    assert pipeline.cache.stats().misses == 1  # the key of such an item is not looked up


def test_an_entry_of_another_width_is_a_miss_and_is_replaced() -> None:
    tower = Tower(WIDTH)
    pipeline = VisionPipeline(tower, make_cache(width=WIDTH))
    key = bytes(32)
    wide = Items([Item(feature(0, 2), Span(1, 2), key=key)])
    narrow = Items([Item(feature(0, 2), Span(1, 2), key=key, row_width=HIDDEN)])
    for items, encodes in ((wide, 1), (narrow, 2), (narrow, 2), (wide, 3)):
        assert embed(pipeline, [Chunk(items, 0, 4)], 4, levels=LEVELS) == []
        assert (len(tower.encoded), len(pipeline.cache)) == (encodes, 1)
    both = [Chunk(wide, 0, 4), Chunk(narrow, 0, 4, 4)]
    assert embed(pipeline, both, 8, levels=LEVELS) == []


@pytest.mark.parametrize(
    ("encode", "message", "found"),
    [
        (lambda features, items: torch.ones(2, 5), r"shape \(num_rows, 4\), got \(2, 5\)", None),
        (lambda features, items: [torch.ones(2, WIDTH)], r"shape \(num_rows, 4\), got \(2, 12\)", None),
        (lambda features, items: [torch.ones(3, HIDDEN)], "2 rows for the item, got 3", 3),
    ],
)
def test_encoder_output_is_checked_against_the_width_of_its_item(
    encode: Any, message: str, found: int | None
) -> None:
    pipeline = VisionPipeline(encode, make_cache(width=WIDTH))
    items = [Item(feature(0, 2), Span(1, 2), row_width=HIDDEN)]
    deepstack = torch.ones(LEVELS, 4, HIDDEN)
    [error] = pipeline.place([Chunk(items, 0, 4)], torch.ones(4, HIDDEN), deepstack=deepstack).errors
    assert error.found == found
    with pytest.raises(ValueError, match=message):
        raise error.cause
    assert not deepstack[:, 1:3].any()
    assert deepstack[:, [0, 3]].all()


def test_one_tensor_for_items_of_two_widths_is_refused_and_they_are_encoded_alone() -> None:
    calls = []

    def encode(features: list[torch.Tensor], items: list[Item]) -> torch.Tensor:
        calls.append(len(items))
        return torch.ones(sum(item.num_rows for item in items), items[0].row_width or WIDTH)

    items = [Item(feature(0, 2), Span(0, 2), row_width=HIDDEN), Item(feature(1, 2), Span(3, 2))]
    pipeline = VisionPipeline(encode, make_cache(width=WIDTH))
    deepstack = torch.empty(LEVELS, 6, HIDDEN)
    result = pipeline.embed([Chunk(items, 0, 6)], make_ids(6), make_weight(), deepstack=deepstack)
    assert result.errors == []
    assert calls == [2, 1, 1]
    assert deepstack[:, 3:5].all()
    assert not deepstack[:, :3].any()


def test_prefetch_encodes_narrow_rows() -> None:
    tower = Tower(WIDTH)
    with VisionPipeline(tower, make_cache(width=WIDTH)) as pipeline:
        items = mixed()
        pipeline.prefetch([Chunk(items, 0, 18)]).wait(60)
        assert len(tower.encoded) == 4
        assert place(pipeline, [Chunk(items, 0, 18)], 18, levels=LEVELS) == []
        assert len(tower.encoded) == 4


def test_random_chunked_steps_of_mixed_widths_give_the_rows_of_a_plain_loop() -> None:
    for seed in range(80):
        rng = random.Random(seed)
        levels = rng.choice([0, 1, 3])
        width = HIDDEN * (1 + levels)
        tower = Tower(width, reuses_memory=rng.random() < 0.5, packed=rng.random() < 0.5)
        cache = make_cache(
            rng.choice([1, 3, 9]), width=width, page_rows=rng.choice([1, 2, 5]), host_pages=rng.choice([0, 5])
        )
        pipeline = VisionPipeline(
            tower,
            cache,
            max_rows_per_encode=rng.choice([1, 5, 40]),
            keep_bytes=rng.choice([0, 100, 1 << 20]),
            namespace=rng.choice([b"", b"here"]),
        )
        bad = {3, 7}

        def fails(item: Item, bad: set[int] = bad) -> None:
            if item.encoder_kwargs["image"] in bad:
                raise OSError("damaged")

        tower.fails = fails
        requests: list[tuple[Items, int]] = []
        for _ in range(2):
            token, items = 0, []
            for _ in range(rng.randrange(1, 6)):
                rows, image = rng.randrange(1, 7), rng.randrange(9)
                token += rng.randrange(3)
                spans = [Span(token, rows)]
                if rows > 1 and rng.random() < 0.4:  # text between two spans of one item
                    spans = [Span(token, 1), Span(token + 2, rows - 1, 1)]
                    token += 1
                item_width = [None, width, HIDDEN][image % 3]
                key = bytes([image, rows]) * 16 if rng.random() < 0.5 else None
                pixels = feature(10 * image + rows, rows)
                items.append(Item(pixels, spans, key=key, row_width=item_width, image=image))
                token += rows
            requests.append((Items(items), token))
        failed = [item for items, _ in requests for item in items if item.encoder_kwargs["image"] in bad]
        starts = [0] * len(requests)
        while any(start < token for start, (_, token) in zip(starts, requests, strict=True)):
            chunks, offset = [], 0
            for number, (request, token) in enumerate(requests):
                length = min(rng.randrange(1, 9), token - starts[number])
                if length > 0:
                    offset += rng.randrange(2)
                    chunks.append(Chunk(request, starts[number], length, offset))
                    offset += length
                    starts[number] += length
            step = rng.choice([embed, place])
            errors = step(pipeline, chunks, offset + 1, failed=failed, levels=levels)
            for error in errors:
                assert chunks[error.chunk].items[error.item] in failed
                assert isinstance(error.cause, OSError)
        assert pipeline._kept.num_bytes == 0
