"""A call from inside the pipeline's own call works, or raises RuntimeError that names both; none hangs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from caches import make_cache
from hang_guard import Running
from pipeline_scene import Tower, embed, encode_one, feature, make_ids, make_weight
from torch import Tensor

from vitcache import Chunk, EmbedResult, Item, KeyThreads, Shadow, Span, VisionPipeline
from vitcache.pipeline import vision_pipeline
from vitcache.testing import inspect

WEIGHT = make_weight()
HELD = "which holds the pipeline's encoder"


def chunk_of(seed: int, **options: Any) -> Chunk:
    return Chunk([Item(feature(seed, 2), Span(1, 2), **options)], 0, 4)


def step(pipeline: VisionPipeline, chunk: Chunk) -> EmbedResult:
    return pipeline.embed([chunk], make_ids(4), WEIGHT)


def run(*calls: Callable[[], Any]) -> list[Any]:
    """Run calls in threads; a call that hangs fails the test."""
    return Running(*calls).results()


class CallingTower(Tower):
    """A tower that makes a call, once, when it encodes the item of seed 0; it stores the result or error."""

    def __init__(self) -> None:
        super().__init__()
        self.call: Callable[[], Any] | None = None
        self.result: Any = None

    def __call__(self, features: list[Tensor], items: list[Item]) -> Any:
        call, self.call = self.call, None
        if call is not None:
            try:
                self.result = call()
            except RuntimeError as error:
                self.result = error
        return super().__call__(features, items)


def check_free(pipeline: VisionPipeline) -> None:
    """Check that no claim and no lease is left, and that another thread can encode."""
    assert inspect(pipeline.cache).num_claims == 0
    assert pipeline.cache.stats().leased_pages == 0
    pipeline.cache.check_integrity()
    [result] = run(lambda: step(pipeline, chunk_of(99)))
    assert result.errors == []


@pytest.mark.parametrize("inner", ["embed", "place"])
@pytest.mark.parametrize("outer", ["embed", "place", "prefetch"])
def test_encode_that_calls_its_pipeline_for_a_missing_item_gets_an_error(outer: str, inner: str) -> None:
    def call(method: str, seed: int) -> Any:
        chunks = [chunk_of(seed)]
        if method == "prefetch":
            return pipeline.prefetch(chunks).wait(60)
        arguments = (make_ids(4), WEIGHT) if method == "embed" else (WEIGHT[make_ids(4)],)
        return getattr(pipeline, method)(chunks, *arguments)

    tower = CallingTower()
    with VisionPipeline(tower, make_cache()) as pipeline:
        tower.call = partial(call, inner, 1)
        [result] = run(partial(call, outer, 0))
        assert not isinstance(result, BaseException)
        message = f"VisionPipeline.{inner} was called from inside VisionPipeline.{outer}, {HELD}"
        assert message in str(tower.result)
        assert len(pipeline.cache) == 1
        check_free(pipeline)


def test_encode_that_lets_the_error_pass_fails_its_item_alone() -> None:
    def encode(features: list[Tensor], items: list[Item]) -> list[Tensor]:
        for item in items:
            if item is bad:
                step(pipeline, chunk_of(1))
        return [encode_one(values) for values in features]

    pipeline = VisionPipeline(encode, make_cache())
    good, bad = Item(feature(5, 2), Span(0, 2)), Item(feature(6, 2), Span(3, 2))
    [error] = embed(pipeline, [Chunk([good, bad], 0, 6)], 6, failed=[bad])
    assert "VisionPipeline.embed was called from inside VisionPipeline.embed" in str(error.cause)
    check_free(pipeline)


def test_encode_may_call_its_pipeline_for_hits_and_prefetches() -> None:
    tower = CallingTower()
    with VisionPipeline(tower, make_cache()) as pipeline:
        step(pipeline, chunk_of(1))
        tower.call = lambda: (step(pipeline, chunk_of(1)), pipeline.prefetch([chunk_of(2)]))
        [result] = run(lambda: step(pipeline, chunk_of(0)))
        assert result.errors == []
        (inner, handle) = tower.result
        assert inner.errors == []
        handle.wait(60)
        assert len(pipeline.cache) == 3
        check_free(pipeline)


def test_encode_that_waits_for_a_prefetch_of_its_pipeline_does_not_hang() -> None:
    tower = CallingTower()
    with VisionPipeline(tower, make_cache()) as pipeline:
        tower.call = lambda: pipeline.prefetch([chunk_of(2)]).wait()
        [result] = run(lambda: step(pipeline, chunk_of(0)))
        assert result.errors == []
        check_free(pipeline)


@pytest.mark.parametrize("is_same_item", [True, False])
def test_encode_may_call_another_pipeline_for_another_item_of_the_cache(is_same_item: bool) -> None:
    tower, cache = CallingTower(), make_cache()
    with VisionPipeline(tower, cache) as pipeline, VisionPipeline(Tower(), cache) as other:
        tower.call = lambda: step(other, chunk_of(0 if is_same_item else 1))
        [result] = run(lambda: step(pipeline, chunk_of(0)))
        assert result.errors == []
        if is_same_item:
            assert isinstance(tower.result, RuntimeError)
            assert str(tower.result).startswith("VisionPipeline.embed was called from inside")
            assert "is encoding this item" in str(tower.result)
        else:
            assert tower.result.errors == []
        check_free(pipeline)
        check_free(other)


@pytest.mark.parametrize("has_one_cache", [True, False])
def test_two_pipelines_that_call_each_other_in_two_threads_do_not_hang(has_one_cache: bool) -> None:
    begun = [threading.Event(), threading.Event()]
    towers = [CallingTower(), CallingTower()]
    cache = make_cache()
    pipelines = [VisionPipeline(tower, cache if has_one_cache else make_cache()) for tower in towers]

    def call_the_other(number: int) -> EmbedResult:
        begun[number].set()
        assert begun[1 - number].wait(60)
        return step(pipelines[1 - number], chunk_of(10 + number))

    for number, tower in enumerate(towers):
        tower.call = partial(call_the_other, number)
    results = run(*(partial(step, pipelines[number], chunk_of(number)) for number in (0, 1)))
    assert [result.errors for result in results] == [[], []]
    refused = [tower.result for tower in towers if isinstance(tower.result, RuntimeError)]
    assert len(refused) == 1
    assert str(refused[0]).count("VisionPipeline.embed") == 2
    for pipeline in pipelines:
        check_free(pipeline)


def test_agree_may_call_its_pipeline_for_hits_and_another_pipeline() -> None:
    calls: list[Any] = []

    def agree(miss: Tensor) -> Tensor:
        if not calls:
            calls.append(None)
            calls.append(step(pipeline, chunk_of(1)))
            calls.append(step(other, chunk_of(0)))
        return miss

    cache = make_cache()
    pipeline, other = VisionPipeline(Tower(), cache, agree=agree), VisionPipeline(Tower(), cache)
    step(other, chunk_of(1))
    [result] = run(lambda: step(pipeline, chunk_of(0)))
    assert [inner.errors for inner in (result, *calls[1:])] == [[]] * 3
    check_free(pipeline)


@pytest.mark.parametrize("is_hit", [True, False])
def test_the_report_of_a_shadow_may_call_its_pipeline_for_hits_only(is_hit: bool) -> None:
    found: list[Any] = []

    def report(key: bytes, difference: float) -> None:
        if not found:
            found.append(None)
            try:
                found.append(step(pipeline, chunk_of(0 if is_hit else 1)))
            except RuntimeError as error:
                found.append(error)

    pipeline = VisionPipeline(Tower(), make_cache(), shadow=Shadow(2, report))
    for _ in range(3):
        [result] = run(lambda: step(pipeline, chunk_of(0)))
        assert result.errors == []
    if is_hit:
        assert found[1].errors == []
    else:
        message = f"VisionPipeline.embed was called from inside VisionPipeline.embed, {HELD}"
        assert message in str(found[1])
    check_free(pipeline)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_features_that_call_embed_work_although_all_key_threads_load_them(
    monkeypatch: pytest.MonkeyPatch, num_threads: int
) -> None:
    monkeypatch.setattr(vision_pipeline, "KeyThreads", partial(KeyThreads, num_threads))

    def load(seed: int) -> Tensor:
        assert step(pipeline, chunk_of(10 + seed)).errors == []
        return feature(seed, 2)

    with VisionPipeline(Tower(), make_cache()) as pipeline:
        items = [Item(partial(load, seed), Span(3 * seed, 2), num_rows=2) for seed in range(4)]
        [result] = run(lambda: pipeline.embed([Chunk(items, 0, 12)], make_ids(12), WEIGHT))
        assert result.errors == []
        assert len(pipeline.cache) == 8
        check_free(pipeline)


def test_a_feature_with_a_key_that_calls_embed_for_a_miss_fails_its_item_alone() -> None:
    def load() -> Tensor:
        return step(pipeline, chunk_of(1)).inputs_embeds

    pipeline = VisionPipeline(Tower(), make_cache())
    items = [Item(load, Span(0, 2), key=bytes(32)), Item(feature(3, 2), Span(3, 2))]
    [result] = run(lambda: pipeline.embed([Chunk(items, 0, 6)], make_ids(6), WEIGHT))
    [error] = result.errors
    assert error.item == 0
    assert f"VisionPipeline.embed was called from inside VisionPipeline.embed, {HELD}" in str(error.cause)
    check_free(pipeline)


def test_a_signal_handler_that_calls_the_pipeline_gets_an_error_or_a_result() -> None:
    found: list[Any] = []

    def handle(*_: Any) -> None:
        found.append(step(pipeline, chunk_of(1)).errors)  # a hit
        found.append(pipeline.key(Item(feature(2, 2), Span(0, 2))))
        handle = pipeline.prefetch([])
        pipeline.cancel(handle)
        try:
            found.append(step(pipeline, chunk_of(2)))
        except RuntimeError as error:
            found.append(str(error))

    tower = CallingTower()
    with VisionPipeline(tower, make_cache()) as pipeline:
        step(pipeline, chunk_of(1))
        before = signal.signal(signal.SIGUSR1, handle)
        try:
            tower.call = lambda: signal.raise_signal(signal.SIGUSR1)
            assert step(pipeline, chunk_of(0)).errors == []
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert found[0] == []
        assert f"VisionPipeline.embed was called from inside VisionPipeline.embed, {HELD}" in found[2]
        check_free(pipeline)


@pytest.mark.parametrize("outer", ["embed", "prefetch"])
def test_a_pipeline_that_its_encoder_closes_ends_its_step_and_refuses_the_next(outer: str) -> None:
    tower = CallingTower()
    pipeline = VisionPipeline(tower, make_cache())
    tower.call = pipeline.close
    if outer == "embed":
        [result] = run(lambda: step(pipeline, chunk_of(0)))
        assert result.errors == []
    else:
        run(lambda: pipeline.prefetch([chunk_of(0)]).wait(60))
    assert run(pipeline.close) == [None]
    with pytest.raises(RuntimeError, match="the pipeline was closed"):
        step(pipeline, chunk_of(0))
    assert inspect(pipeline.cache).num_claims == 0


def test_a_step_whose_feature_closes_the_pipeline_raises_or_ends() -> None:
    def load() -> Tensor:
        pipeline.close()
        return feature(0, 2)

    pipeline = VisionPipeline(Tower(), make_cache())
    items = [Item(load, Span(0, 2), num_rows=2), Item(partial(feature, 1, 2), Span(3, 2), num_rows=2)]
    [result] = run(lambda: pipeline.embed([Chunk(items, 0, 6)], make_ids(6), WEIGHT))
    if isinstance(result, BaseException):
        assert isinstance(result, RuntimeError)
        assert "closed" in str(result)
    else:
        assert result.errors == []
    assert inspect(pipeline.cache).num_claims == 0
    assert pipeline.cache.stats().leased_pages == 0
    pipeline.cache.check_integrity()
