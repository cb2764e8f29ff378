"""A step in arrays: random steps in threads equal a loop over tokens, and a hit makes no object per item."""

from __future__ import annotations

import gc
import random
import threading
from typing import Any

import pytest
import torch
from caches import make_cache
from failure import Failure, fail
from torch import Tensor

from vitcache import Chunk, EmbeddingCache, Item, Items, Span, VisionPipeline
from vitcache.testing import inspect

WIDTH = 4
CONTENTS = 12  # different images; image `n` has 1 + n % 6 rows
WEIGHT = -1.0 - torch.arange(8.0)[:, None].expand(-1, WIDTH).contiguous()
STEPS, THREADS = 10_000, 4


def num_rows_of(content: int) -> int:
    return 1 + content % 6


def rows_of(content: int) -> Tensor:
    rows = 100.0 * (1 + content) + torch.arange(float(num_rows_of(content)))
    return rows[:, None].expand(-1, WIDTH).contiguous()


ROWS = [rows_of(content) for content in range(CONTENTS)]


def encode(features: list[Tensor], items: list[Item]) -> Tensor:
    return torch.cat([ROWS[int(feature[0])] for feature in features])


def make_request(rng: random.Random) -> tuple[Items, list[float]]:
    """Return a prompt and, per token, the first element of its row; 0 for a text token."""
    items, tokens = [], [0.0] * rng.randint(0, 3)
    for _ in range(rng.randint(0, 8)):
        content = rng.randrange(CONTENTS)
        num_rows, spans, first = num_rows_of(content), [], 0
        while first < num_rows:
            length = rng.randint(1, num_rows - first)
            spans.append(Span(len(tokens), length, first))
            tokens += ROWS[content][first : first + length, 0].tolist()
            tokens += [0.0] * rng.randint(0, 2)
            first += length
        kind = rng.random()
        feature = torch.tensor([content])
        if kind < 0.7:
            items.append(Item(feature, spans, key=bytes([content]) * 32))
        elif kind < 0.85:
            items.append(Item(lambda feature=feature: feature, spans))
        else:
            items.append(Item(None, spans, rows=ROWS[content]))
    order = list(range(len(items)))
    rng.shuffle(order)
    return Items([items[position] for position in order]), tokens


def run_steps(
    pipeline: VisionPipeline, shared: list[tuple[Items, list[float]]], seed: int, steps: int
) -> None:
    rng = random.Random(seed)
    requests = [*(make_request(rng) for _ in range(8)), *shared]
    for _ in range(steps):
        chunks, ids, expected = [], [], []
        for _ in range(rng.randint(1, 3)):
            if rng.random() < 0.02:
                requests[rng.randrange(8)] = make_request(rng)
            items, tokens = rng.choice(requests)
            start = rng.randint(0, len(tokens))
            length = rng.randint(0, len(tokens) - start)
            chunks.append(Chunk(items, start, length, len(ids)))
            for token in tokens[start : start + length]:
                ids.append(rng.randrange(len(WEIGHT)) if token == 0.0 else 1 << 40)
                expected.append(float(WEIGHT[ids[-1], 0]) if token == 0.0 else token)
        out = torch.full((len(ids), WIDTH), torch.nan)
        rows, errors = pipeline.embed(chunks, torch.tensor(ids, dtype=torch.int64), WEIGHT, out=out)
        assert errors == []
        assert torch.equal(rows, torch.tensor(expected)[:, None].expand(-1, WIDTH))
        if rng.random() < 0.002:
            pipeline.cache.advance_epoch()


@pytest.mark.parametrize(
    ("device_pages", "host_pages", "policy"),
    [(60, 0, "lru"), (12, 0, "s3fifo"), (3, 0, "lru"), (12, 20, "cost")],
    ids=["all fit", "evictions", "refusals", "demotions"],
)
def test_random_steps_in_threads_equal_a_loop_over_tokens(
    device_pages: int, host_pages: int, policy: str
) -> None:
    cache = make_cache(device_pages, host_pages, width=WIDTH, page_rows=1, policy=policy)
    shared = [make_request(random.Random(number)) for number in range(4)]
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            run_steps(pipeline, shared, seed, STEPS // THREADS // 4)
        except BaseException as error:
            failures.append(error)

    with VisionPipeline(encode, cache, max_rows_per_encode=7) as pipeline:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    cache.check_integrity()
    stats = cache.stats()
    assert (stats.leased_pages, inspect(cache).num_claims) == (0, 0)
    assert stats.hits > 0
    assert stats.rejections > 0 or device_pages > 3
    assert (stats.demotions > 0) == (host_pages > 0)


def make_hits(num_items: int) -> tuple[EmbeddingCache, Items, Tensor]:
    """A cache with `num_items` entries of one row, and a prompt that needs all of them."""
    cache = make_cache(num_items, width=WIDTH, page_rows=1)
    keys = [number.to_bytes(32, "little") for number in range(num_items)]
    for key in keys:
        cache.put(key, torch.ones(1, WIDTH))
    items = [Item(None, Span(2 * token, 1), key=key) for token, key in enumerate(keys)]
    return cache, Items(items), torch.zeros(2 * num_items, dtype=torch.int64)


def test_step_of_hits_starts_no_garbage_collection() -> None:
    cache, items, ids = make_hits(512)
    starts: list[Any] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            starts.append(info)

    with VisionPipeline(encode, cache) as pipeline:
        for repeats in (3, 20):  # the first steps fill caches
            gc.collect()
            gc.callbacks.append(note)
            for _ in range(repeats):
                _, errors = pipeline.embed([Chunk(items, 0, len(ids))], ids, WEIGHT)
                assert errors == []
            gc.callbacks.remove(note)
            if repeats == 3:
                starts.clear()
    assert starts == []


def test_features_start_to_move_before_the_last_key_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(32, width=WIDTH, page_rows=1)
    moved, may_load = threading.Event(), threading.Event()

    def load_last() -> Tensor:
        may_load.set()
        assert moved.wait(60)  # the last key is computed after the first feature has started to move
        return torch.tensor([1])

    with VisionPipeline(encode, cache) as pipeline:
        start = pipeline._mover.start

        def note_start(feature: Any, **options: Any) -> Any:
            assert may_load.wait(60)
            moved.set()
            return start(feature, **options)

        monkeypatch.setattr(pipeline._mover, "start", note_start)
        items = [Item(torch.tensor([0]), Span(0, 1)), Item(load_last, Span(1, 2))]
        rows, errors = pipeline.embed([Chunk(items, 0, 3)], torch.zeros(3, dtype=torch.int64), WEIGHT)
    assert errors == []
    assert torch.equal(rows, torch.cat(ROWS[:2]))


def test_features_of_hits_and_of_equal_items_do_not_start_early(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, moved = make_cache(32, width=WIDTH, page_rows=1), []
    with VisionPipeline(encode, cache) as pipeline:
        start = pipeline._mover.start

        def note_start(feature: Any, **options: Any) -> Any:
            moved.append(int(feature[0]))
            return start(feature, **options)

        monkeypatch.setattr(pipeline._mover, "start", note_start)
        for contents, expected in (([0], [0]), ([0, 1, 1], [1]), ([1, 0], [])):
            moved.clear()
            items, token = [], 0
            for content in contents:
                items.append(Item(torch.tensor([content]), Span(token, num_rows_of(content))))
                token += num_rows_of(content)
            rows, errors = pipeline.embed(
                [Chunk(items, 0, token)], torch.zeros(token, dtype=torch.int64), WEIGHT
            )
            assert errors == []
            assert torch.equal(rows, torch.cat([ROWS[content] for content in contents]))
            assert moved == expected


@pytest.mark.parametrize("call", ["embed", "prefetch"])
@pytest.mark.parametrize("change", ["replace a chunk", "clear the list", "replace the items"])
def test_chunks_changed_while_a_feature_is_loaded_do_not_change_the_step(call: str, change: str) -> None:
    cache = make_cache(32, width=WIDTH, page_rows=1)
    keys = [bytes([number]) * 32 for number in range(3)]
    second = Items([Item(torch.tensor([1]), Span(0, 2), key=keys[1])])
    other = Items([Item(torch.tensor([2]), Span(0, 3), key=keys[2])])

    def load() -> Tensor:
        if change == "replace a chunk":
            chunks[1] = Chunk(other, 0, 2, 1)
        elif change == "clear the list":
            chunks.clear()
        else:
            chunks[1].items = other
        return torch.tensor([0])

    first = Item(load, Span(0, 1))
    chunks = [Chunk([first], 0, 1), Chunk(second, 0, 2, 1)]
    with VisionPipeline(encode, cache) as pipeline:
        if call == "embed":
            rows, errors = pipeline.embed(chunks, torch.zeros(3, dtype=torch.int64), WEIGHT)
            assert errors == []
            assert torch.equal(rows, torch.cat(ROWS[:2]))
        else:
            pipeline.prefetch(chunks).wait(60)
    with cache.get(keys[1]) as lease:  # type: ignore[union-attr]
        assert torch.equal(lease.to_tensor(), ROWS[1])
    assert keys[2] not in cache


def test_step_of_hits_beside_prefetched_features_of_other_items_makes_no_step_items(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache, items, ids = make_hits(8)
    with VisionPipeline(encode, cache) as pipeline:
        handle = pipeline.prefetch([Chunk([Item(torch.tensor([5]), Span(0, 6))], 0, 6)], encode=False)
        handle.wait(60)
        assert len(pipeline._prefetched) == 1
        monkeypatch.setattr("vitcache.pipeline.step_item.StepItem.of", None)
        _, errors = pipeline.embed([Chunk(items, 0, len(ids))], ids, WEIGHT)
        assert errors == []
        assert len(pipeline._prefetched) == 1


def test_step_that_raises_leaves_no_lease_in_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, items, ids = make_hits(4)
    monkeypatch.setattr("vitcache.placement.reference.embed_tokens", fail)
    with VisionPipeline(encode, cache) as pipeline:
        with pytest.raises(Failure) as raised:
            pipeline.embed([Chunk(items, 0, len(ids))], ids, WEIGHT, scale=2.0)
        assert cache.stats().leased_pages == 0
    del raised
