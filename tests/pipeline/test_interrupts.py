"""Interrupts pass through a step, which then has no lease, claim or reservation left."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import Any

import pytest
import torch
from caches import make_cache
from interrupts import interrupt
from pipeline_scene import HIDDEN, Tower, embed, feature, make_ids, make_weight

import vitcache.keys.threads
from vitcache import Chunk, Item, Items, KeyThreads, Span, VisionPipeline, content_key
from vitcache.pipeline import step_keys
from vitcache.testing import inspect

PASSING = [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit]
OF_THE_ITEM = [
    ValueError,
    StopIteration,
    StopAsyncIteration,
    MemoryError,
    RecursionError,
    asyncio.TimeoutError,
]
WEIGHT = make_weight()


def check_nothing_is_held(pipeline: VisionPipeline) -> None:
    cache = pipeline.cache
    cache.check_integrity()
    stats = cache.stats()
    assert stats.leased_pages == 0
    assert inspect(cache).num_claims == 0
    page_bytes = 2 * HIDDEN * 4
    assert stats.device_bytes == stats.entries * page_bytes  # every entry has one page, and none is reserved


def run(pipeline: VisionPipeline, items: Items, method: str) -> Any:
    ids = make_ids(12)
    if method == "embed":
        return pipeline.embed([Chunk(items, 0, 12)], ids, WEIGHT)
    return pipeline.place([Chunk(items, 0, 12)], WEIGHT[ids])


@pytest.mark.parametrize("error", PASSING)
@pytest.mark.parametrize("method", ["embed", "place"])
@pytest.mark.parametrize("max_rows", [2, 99])
def test_an_interrupt_of_the_encoder_passes_after_clean_up(
    error: type[BaseException], method: str, max_rows: int
) -> None:
    def fails(item: Item) -> None:
        if item is items[2]:
            raise error("stop")

    items = Items([Item(feature(seed, 2), Span(3 * seed, 2)) for seed in range(4)])
    tower = Tower(fails=fails)
    pipeline = VisionPipeline(tower, make_cache(), max_rows_per_encode=max_rows)
    assert embed(pipeline, [Chunk(items, 0, 2)], 2) == []  # one hit, which the step leases
    with pytest.raises(error, match="stop") as raised:
        run(pipeline, items, method)
    assert raised.value.__traceback__ is not None  # it keeps the frames, and so the step's objects, alive
    check_nothing_is_held(pipeline)
    assert len(pipeline.cache) == 1
    tower.fails = None
    assert embed(pipeline, [Chunk(items, 0, 12)], 12) == []
    assert len(pipeline.cache) == 4


@pytest.mark.parametrize("error", PASSING)
@pytest.mark.parametrize("key", [None, bytes(32)])
@pytest.mark.parametrize("moves", [True, False])
def test_an_interrupt_of_a_loader_passes_after_clean_up(
    error: type[BaseException], key: bytes | None, moves: bool
) -> None:
    calls = []

    def load() -> torch.Tensor:
        calls.append(1)
        if len(calls) == 1:
            raise error("stop")
        return feature(3, 2)

    items = Items(
        [Item(feature(0, 2), Span(0, 2)), Item(load, Span(3, 2), key=key), Item(feature(1, 2), Span(6, 2))]
    )
    pipeline = VisionPipeline(Tower(), make_cache(), max_rows_per_encode=2, move_features=moves)
    with pytest.raises(error, match="stop") as raised:
        run(pipeline, items, "embed")
    assert raised.value.__traceback__ is not None
    check_nothing_is_held(pipeline)
    assert run(pipeline, items, "embed").errors == []
    assert len(pipeline.cache) == 3


@pytest.mark.parametrize("is_queued", [False, True])
def test_an_interrupt_of_a_submit_cancels_the_loads_that_wait(
    monkeypatch: pytest.MonkeyPatch, is_queued: bool
) -> None:
    loaded: list[int] = []
    may_load = threading.Event()
    submit_many = KeyThreads.submit_many

    def load(number: int) -> torch.Tensor:
        may_load.wait(60)
        loaded.append(number)
        return feature(number, 2)

    def submit_and_stop(threads: KeyThreads, *args: Any, **kwargs: Any) -> Any:
        if is_queued:  # the interrupt occurs before the step can store the futures
            submit_many(threads, *args, **kwargs)
        raise KeyboardInterrupt("stop")

    items = Items([Item(partial(load, number), Span(number, 1), num_rows=2) for number in range(12)])
    with VisionPipeline(Tower(), make_cache()) as pipeline:
        with monkeypatch.context() as patch:
            patch.setattr(KeyThreads, "submit_many", submit_and_stop)
            with pytest.raises(KeyboardInterrupt, match="stop"):
                run(pipeline, items, "place")
        last = pipeline._keys.submit(b"behind the loads of the step")
        may_load.set()
        last.result(60)
        assert len(loaded) <= pipeline._keys.num_threads  # the loads that had begun
        check_nothing_is_held(pipeline)
        assert run(pipeline, items, "place").errors == []


def test_a_step_interrupted_at_any_line_of_its_hashing_leaves_no_thread_and_no_load() -> None:
    files = {step_keys.__file__, vitcache.keys.threads.__file__}
    line, is_interrupted = 1, True
    before = set(threading.enumerate())
    while is_interrupted:
        loaded: list[int] = []
        may_load = threading.Event()

        def load(number: int, loaded: list[int] = loaded, may_load: threading.Event = may_load) -> Any:
            loaded.append(number)
            may_load.wait(60)
            return feature(number, 2)

        items = Items([Item(partial(load, number), Span(number, 1), num_rows=2) for number in range(3)])
        with VisionPipeline(Tower(), make_cache()) as pipeline:
            opener = threading.Timer(0.01, may_load.set)  # a step that waits is interrupted behind its wait
            opener.start()
            is_interrupted = interrupt(partial(run, pipeline, items, "place"), line, files)
            num_begun = len(loaded)
            if is_interrupted and not may_load.is_set():
                assert num_begun <= pipeline._keys.num_threads, line
            opener.join(60)
            keys: list[bytes] = []
            submit = pipeline._keys.submit
            other = threading.Thread(
                target=lambda keys=keys, submit=submit: keys.append(submit(b"a").result(60).key)
            )
            other.start()
            other.join(60)
            assert keys == [content_key(b"a")], line
            check_nothing_is_held(pipeline)
            assert len(loaded) - num_begun <= pipeline._keys.num_threads, line
            assert run(pipeline, items, "place").errors == [], line
        assert set(threading.enumerate()) <= before, line
        line += 1
    assert line > 50


@pytest.mark.parametrize("error", PASSING)
def test_an_interrupt_of_agree_passes_after_clean_up(error: type[BaseException]) -> None:
    def agree(miss: torch.Tensor) -> torch.Tensor:
        raise error("stop")

    items = Items([Item(feature(seed, 2), Span(3 * seed, 2)) for seed in range(2)])
    pipeline = VisionPipeline(Tower(), make_cache(), agree=agree)
    with pytest.raises(error, match="stop") as raised:
        run(pipeline, items, "place")
    assert raised.value.__traceback__ is not None
    check_nothing_is_held(pipeline)
    assert len(pipeline.cache) == 0


@pytest.mark.parametrize("error", OF_THE_ITEM)
def test_every_exception_of_an_item_is_its_error(error: type[Exception]) -> None:
    def fail(*_: Any) -> Any:
        raise error("bad")

    def fails(item: Item) -> None:
        if item is items[0]:
            fail()

    items = Items(
        [
            Item(feature(0, 2), Span(0, 2)),
            Item(fail, Span(3, 2)),
            Item(fail, Span(6, 2), key=bytes(32)),
            Item(feature(1, 2), Span(9, 2)),
        ]
    )
    pipeline = VisionPipeline(Tower(fails=fails), make_cache())
    errors = embed(pipeline, [Chunk(items, 0, 12)], 12, failed=items[:3])
    assert [(found.item, type(found.cause)) for found in errors] == [(number, error) for number in range(3)]
    check_nothing_is_held(pipeline)


@pytest.mark.parametrize("error", PASSING)
def test_a_prefetch_that_is_interrupted_leaves_nothing_and_the_step_repeats_its_work(
    error: type[BaseException],
) -> None:
    def fails(item: Item) -> None:
        if item is items[1]:
            raise error("stop")

    items = Items([Item(feature(seed, 2), Span(3 * seed, 2)) for seed in range(3)])
    tower = Tower(fails=fails)
    with VisionPipeline(tower, make_cache()) as pipeline:
        pipeline.prefetch([Chunk(items, 0, 12)]).wait(60)
        check_nothing_is_held(pipeline)
        tower.fails = None
        assert run(pipeline, items, "place").errors == []
        assert len(pipeline.cache) == 3
