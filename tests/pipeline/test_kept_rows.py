"""Rows that the cache rejected are kept for the later chunks of their request."""

from __future__ import annotations

import gc
import random
import threading
from typing import Any

import pytest
import torch
from caches import make_cache
from pairwise import pairwise
from pipeline_scene import HIDDEN, Tower, embed, feature

from vitcache import Chunk, Item, Items, Span, VisionPipeline

ROW_BYTES = HIDDEN * 4
ROWS = 12


def small_cache(**options: Any) -> Any:
    """A cache of two pages of 2 rows: it rejects an item of 12 rows."""
    return make_cache(2, page_rows=2, **options)


def request(*seeds: int, key: bool = True) -> Items:
    """Items of 12 rows at tokens 0, 12, 24, ..."""
    return Items(
        [
            Item(feature(seed, ROWS), Span(number * ROWS, ROWS), key=bytes([seed]) * 32 if key else None)
            for number, seed in enumerate(seeds)
        ]
    )


def run_chunks(pipeline: VisionPipeline, items: Items, starts: range, failed: Any = ()) -> list[int]:
    """Embed chunks of `starts.step` tokens, and return the kept bytes after each."""
    kept = []
    for start in starts:
        embed(pipeline, [Chunk(items, start, starts.step)], starts.step, failed=failed)
        kept.append(pipeline._kept.num_bytes)
    return kept


@pairwise(key=[True, False], reuses_memory=[False, True], packed=[False, True], max_rows=[1, 12, 99])
def test_rejected_image_is_encoded_once_per_request(
    key: bool, reuses_memory: bool, packed: bool, max_rows: int
) -> None:
    tower = Tower(reuses_memory=reuses_memory, packed=packed)
    pipeline = VisionPipeline(tower, small_cache(), namespace=b"here", max_rows_per_encode=max_rows)
    items = request(0, 1, 2, key=key)
    kept = run_chunks(pipeline, items, range(0, 36, 5))
    assert len(tower.encoded) == 3
    assert max(kept) == 1 * ROWS * ROW_BYTES  # an image is dropped in the chunk that ends it
    assert kept[-1] == 0
    assert len(pipeline.cache) == 0
    stats = pipeline.cache.stats()
    assert stats.hits == 0
    run_chunks(pipeline, items, range(0, 36, 36))  # a request that ends in its first chunk keeps nothing
    assert len(tower.encoded) == 6
    assert pipeline._kept.num_bytes == 0


def test_keep_bytes_0_encodes_a_rejected_image_once_per_chunk() -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, small_cache(), keep_bytes=0)
    assert run_chunks(pipeline, request(0), range(0, 12, 4)) == [0, 0, 0]
    assert len(tower.encoded) == 3


@pytest.mark.parametrize(("keep_bytes", "encodes"), [(ROWS * ROW_BYTES, 1), (ROWS * ROW_BYTES - 1, 3)])
def test_kept_rows_are_bounded_in_bytes(keep_bytes: int, encodes: int) -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, small_cache(), keep_bytes=keep_bytes)
    first, second = request(0), request(1)
    kept = run_chunks(pipeline, first, range(0, 8, 4))
    assert max(kept) <= keep_bytes
    assert len(tower.encoded) == min(encodes, 2)
    tower.calls.clear()
    if encodes == 1:  # all bytes are in use: the first request keeps its rows
        run_chunks(pipeline, second, range(0, 8, 4))
        assert len(tower.encoded) == 2
        run_chunks(pipeline, first, range(8, 12, 4))
        assert len(tower.encoded) == 2
        tower.calls.clear()
        run_chunks(pipeline, second, range(0, 12, 4))
        assert len(tower.encoded) == 1


def test_keep_bytes_may_be_a_size_and_is_checked() -> None:
    VisionPipeline(Tower(), small_cache(), keep_bytes="1 MiB")
    with pytest.raises(ValueError, match="keep_bytes is -1, it must be at least 0"):
        VisionPipeline(Tower(), small_cache(), keep_bytes=-1)
    for wrong in (True, None, 1.5):
        with pytest.raises(TypeError, match="keep_bytes must be an int or a str"):
            VisionPipeline(Tower(), small_cache(), keep_bytes=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keep_bytes is 'much'"):
        VisionPipeline(Tower(), small_cache(), keep_bytes="much")


def test_one_image_of_two_requests_is_counted_once_and_kept_until_the_last_one_ends() -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, small_cache())
    first, second = request(0), Items([Item(feature(0, ROWS), Span(20, ROWS), key=bytes(32))])
    embed(pipeline, [Chunk(first, 0, 6), Chunk(second, 14, 12, 6)], 18)
    assert pipeline._kept.num_bytes == ROWS * ROW_BYTES
    embed(pipeline, [Chunk(first, 6, 6)], 6)
    assert pipeline._kept.num_bytes == ROWS * ROW_BYTES
    embed(pipeline, [Chunk(second, 26, 4)], 4)
    assert len(tower.encoded) == 1
    embed(pipeline, [Chunk(second, 30, 2)], 2)
    assert pipeline._kept.num_bytes == 0
    embed(pipeline, [Chunk(first, 6, 6)], 6)  # begins again: its rows were dropped
    assert len(tower.encoded) == 2


def test_an_image_that_comes_twice_in_a_request_is_kept_until_its_second_span() -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, small_cache())
    items = request(0, 1, 0)
    kept = run_chunks(pipeline, items, range(0, 36, 6))
    assert len(tower.encoded) == 2
    assert [num_bytes // (ROWS * ROW_BYTES) for num_bytes in kept] == [1, 1, 2, 1, 1, 0]


def test_kept_rows_are_dropped_with_their_items_object() -> None:
    pipeline = VisionPipeline(Tower(), small_cache())
    items = request(0)
    run_chunks(pipeline, items, range(0, 4, 4))
    assert (len(pipeline._kept), pipeline._kept.num_bytes) == (1, ROWS * ROW_BYTES)
    del items
    gc.collect()
    assert (len(pipeline._kept), pipeline._kept.num_bytes) == (0, 0)
    embed(
        pipeline, [Chunk([Item(feature(0, ROWS), Span(0, ROWS))], 0, 4)], 4
    )  # without an `Items` object of the caller
    gc.collect()
    assert pipeline._kept.num_bytes == 0


@pytest.mark.parametrize("method", ["advance_epoch", "clear"])
def test_kept_rows_of_an_earlier_epoch_are_encoded_again(method: str) -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, small_cache())
    items = request(0)
    run_chunks(pipeline, items, range(0, 4, 4))
    getattr(pipeline.cache, method)()
    assert embed(pipeline, [], 1) == []  # any step frees the rows
    assert len(pipeline._kept) == 0
    assert pipeline._kept.num_bytes == 0
    run_chunks(pipeline, items, range(4, 12, 4))
    assert len(tower.encoded) == 2


def test_rows_whose_encode_began_before_a_new_epoch_are_not_kept() -> None:
    tower = Tower(fails=lambda item: cache.advance_epoch())
    cache = small_cache()
    pipeline = VisionPipeline(tower, cache)
    assert run_chunks(pipeline, request(0), range(0, 4, 4)) == [0]


def test_a_hit_is_preferred_to_kept_rows_which_end_with_the_request() -> None:
    tower = Tower()
    cache = make_cache(6, page_rows=2)
    pipeline = VisionPipeline(tower, cache)
    items = request(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "reserve", lambda *_, **__: None)  # everything is leased
        run_chunks(pipeline, items, range(0, 4, 4))
    other = request(0)
    run_chunks(pipeline, other, range(0, 12, 12))
    assert (len(tower.encoded), len(cache)) == (2, 1)
    assert pipeline._kept.num_bytes > 0
    run_chunks(pipeline, items, range(4, 12, 4))
    assert len(tower.encoded) == 2
    assert pipeline._kept.num_bytes == 0
    assert cache.stats().hits == 2


def test_another_key_or_length_finds_no_kept_rows() -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, small_cache())
    items = request(0)
    run_chunks(pipeline, items, range(0, 4, 4))
    longer = Items([Item(feature(0, ROWS + 1), Span(0, ROWS), num_rows=ROWS + 1, key=bytes(32))])
    run_chunks(pipeline, longer, range(4, 8, 4))
    assert len(tower.encoded) == 2


def test_a_chunk_behind_the_image_ends_the_keeping() -> None:
    pipeline = VisionPipeline(Tower(), small_cache())
    items = request(0)
    run_chunks(pipeline, items, range(0, 4, 4))
    embed(pipeline, [Chunk(items, 40, 2)], 2)
    assert (len(pipeline._kept), pipeline._kept.num_bytes) == (0, 0)


def test_rows_that_the_host_tier_accepts_after_the_step_are_not_kept() -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache(4, host_pages=40, page_rows=4))
    items = request(0, 1, 2)
    run_chunks(pipeline, items, range(0, 30, 30))
    run_chunks(pipeline, items, range(30, 36, 6))
    assert len(tower.encoded) == 3
    assert pipeline._kept.num_bytes == 0


def test_prefetch_keeps_rejected_rows_for_the_step() -> None:
    tower = Tower()
    with VisionPipeline(tower, small_cache()) as pipeline:
        items = request(0)
        for _ in range(2):
            pipeline.prefetch([Chunk(items, 0, 4)]).wait(60)
        assert len(tower.encoded) == 1
        assert pipeline._kept.num_bytes == ROWS * ROW_BYTES
        assert run_chunks(pipeline, items, range(0, 12, 4))[-1] == 0
        assert len(tower.encoded) == 1
    pipeline._kept.clear()


def test_close_drops_kept_rows() -> None:
    pipeline = VisionPipeline(Tower(), small_cache())
    items = request(0)
    run_chunks(pipeline, items, range(0, 4, 4))
    pipeline.close()
    assert len(pipeline._kept) == 0


@pytest.mark.parametrize("others_miss", [False, True])
def test_agree_is_told_that_a_kept_item_is_no_miss(others_miss: bool) -> None:
    flags: list[list[bool]] = []

    def agree(miss: torch.Tensor) -> torch.Tensor:
        flags.append(miss.tolist())
        return miss | others_miss

    tower = Tower()
    pipeline = VisionPipeline(tower, small_cache(), agree=agree)
    items = request(0)
    kept = run_chunks(pipeline, items, range(0, 12, 4))
    assert flags == [[True], [False], [False]]
    assert len(tower.encoded) == (3 if others_miss else 1)
    assert kept == [ROWS * ROW_BYTES, ROWS * ROW_BYTES, 0]


def test_a_failed_item_keeps_nothing_and_is_tried_again() -> None:
    item = request(0)[0]

    def fail(_: Item) -> None:
        raise OSError("damaged")

    tower = Tower(fails=fail)
    pipeline = VisionPipeline(tower, small_cache())
    items = Items([item])
    assert run_chunks(pipeline, items, range(0, 8, 4), failed=[item]) == [0, 0]
    tower.fails = None
    run_chunks(pipeline, items, range(8, 12, 4))
    assert len(tower.encoded) == 3


def test_threads_that_embed_chunks_of_many_requests_keep_exact_counts() -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, small_cache(), keep_bytes=3 * ROWS * ROW_BYTES)
    failures: list[BaseException] = []

    def serve(number: int) -> None:
        try:
            for seed in range(4):
                items = request(16 * number + seed)
                for start in range(0, 12, 3):
                    result = pipeline.embed(
                        [Chunk(items, start, 3)], torch.zeros(3, dtype=torch.int64), torch.zeros(1, HIDDEN)
                    )
                    assert result.errors == []
                    assert 0 <= pipeline._kept.num_bytes <= 3 * ROWS * ROW_BYTES
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    gc.collect()
    assert (len(pipeline._kept), pipeline._kept.num_bytes) == (0, 0)


def test_random_requests_with_rejections_give_the_rows_of_a_plain_loop() -> None:
    for seed in range(40):
        rng = random.Random(seed)
        tower = Tower(reuses_memory=rng.random() < 0.5, packed=rng.random() < 0.5)
        cache = make_cache(rng.choice([1, 3, 6]), page_rows=2, host_pages=rng.choice([0, 0, 4]))
        keep_bytes = rng.choice([0, 6 * ROW_BYTES, 1 << 20])
        pipeline = VisionPipeline(
            tower, cache, keep_bytes=keep_bytes, max_rows_per_encode=rng.choice([1, 6, 40])
        )
        requests = []
        for _ in range(3):
            token, items = 0, []
            for _ in range(rng.randrange(1, 5)):
                rows, image = rng.randrange(1, 9), rng.randrange(6)
                token += rng.randrange(3)
                items.append(Item(feature(10 * image + rows, rows), Span(token, rows)))
                token += rows
            requests.append((Items(items), token))
        starts = [0] * len(requests)
        while any(start < token for start, (_, token) in zip(starts, requests, strict=True)):
            chunks, offset = [], 0
            for number, (items, token) in enumerate(requests):
                length = min(rng.randrange(1, 8), token - starts[number])
                if length > 0 and rng.random() < 0.8:
                    chunks.append(Chunk(items, starts[number], length, offset))
                    offset += length
                    starts[number] += length
            assert embed(pipeline, chunks, offset) == []
            assert pipeline._kept.num_bytes <= keep_bytes
            if rng.random() < 0.1:
                cache.advance_epoch()
        assert len(pipeline._kept) == 0
