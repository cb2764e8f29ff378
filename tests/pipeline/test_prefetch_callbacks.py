"""Call-backs of a pipeline that submit, wait and close: they work, or an error names both calls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from caches import make_cache
from hang_guard import wait_until
from interrupts import interrupt, raise_interrupt
from pipeline_scene import Tower, feature, make_ids, make_weight

from vitcache import Chunk, Item, KeyThreads, Prefetch, Span, VisionPipeline
from vitcache.device import jobs, worker_threads
from vitcache.keys import threads as key_threads
from vitcache.pipeline import prefetch, prefetched_features

SECONDS = 60
WEIGHT = make_weight()


def within_time(call: Callable[[], Any]) -> Any:
    """Return the result of a call in another thread, and fail if it hangs."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert results, "the call has raised, or it waits"
    return results[0]


def step(pipeline: VisionPipeline, *features: Any) -> list[Any]:
    items = [Item(given, Span(number, 1), num_rows=2) for number, given in enumerate(features)]
    result = pipeline.place([Chunk(items, 0, 8)], WEIGHT[make_ids(8)])
    return [str(error.cause) for error in result.errors]


@pytest.mark.parametrize("num_items", [1, 4, 8])
def test_callable_features_that_each_run_a_step_of_their_pipeline_load(
    monkeypatch: pytest.MonkeyPatch, num_items: int
) -> None:
    monkeypatch.setattr(key_threads, "_DEFAULT_THREADS", 2)
    with VisionPipeline(Tower(), make_cache()) as pipeline:

        def load(number: int) -> torch.Tensor:
            assert step(pipeline, lambda: feature(100 + number, 2)) == []
            return feature(number, 2)

        loads = [lambda number=number: load(number) for number in range(num_items)]
        assert within_time(lambda: (step(pipeline, *loads),)) == ([],)
        assert len(pipeline.cache) == 2 * num_items


def test_callable_features_of_two_pipelines_that_run_steps_of_each_other_load() -> None:
    with VisionPipeline(Tower(), make_cache()) as one, VisionPipeline(Tower(), make_cache()) as other:

        def load(depth: int) -> torch.Tensor:
            if depth:
                pipeline = other if depth % 2 else one
                assert step(pipeline, *[lambda depth=depth: load(depth - 1)] * 5) == []
            return feature(depth, 2)

        assert within_time(lambda: (step(one, lambda: load(4)),)) == ([],)


def test_step_whose_key_threads_are_all_busy_loads_its_items_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The busy threads wait for the step."""
    monkeypatch.setattr(key_threads, "_DEFAULT_THREADS", 1)
    loaded = threading.Event()
    with VisionPipeline(Tower(), make_cache()) as pipeline:
        begun = threading.Event()

        def wait_for_the_step() -> torch.Tensor:
            begun.set()
            assert loaded.wait(SECONDS)
            return feature(1, 2)

        handle = pipeline.prefetch([Chunk([Item(wait_for_the_step, Span(0, 1), num_rows=2)], 0, 8)])
        assert begun.wait(SECONDS)
        assert within_time(lambda: (step(pipeline, lambda: feature(2, 2)),)) == ([],)
        assert not handle.done
        loaded.set()
        handle.wait(SECONDS)


@pytest.mark.parametrize("method", ["encode", "feature"])
def test_prefetch_that_waits_for_itself_is_refused_by_name(method: str) -> None:
    refused: list[str] = []
    handles: list[Prefetch] = []
    made = threading.Event()

    def wait(*_: Any) -> torch.Tensor:
        assert made.wait(SECONDS)
        try:
            handles[0].wait()
        except RuntimeError as error:
            refused.append(str(error))
        return feature(1, 2)

    tower = Tower(fails=wait if method == "encode" else None)
    with VisionPipeline(tower, make_cache()) as pipeline:
        given = feature(1, 2) if method == "encode" else wait
        handles.append(pipeline.prefetch([Chunk([Item(given, Span(0, 1), num_rows=2)], 0, 8)]))
        made.set()
        handles[0].wait(SECONDS)
        assert len(pipeline.cache) == 1
    [message] = refused
    assert message.startswith("Prefetch.wait was called from inside VisionPipeline.prefetch")


@pytest.mark.parametrize("is_own", [True, False])
def test_prefetch_awaited_by_the_encoder_that_it_needs_is_refused_by_name(is_own: bool) -> None:
    """Also if another thread has submitted it."""
    handles: list[Prefetch] = []
    refused: list[str] = []

    def submit() -> Prefetch:
        return pipeline.prefetch([Chunk([Item(feature(2, 2), Span(0, 1), num_rows=2)], 0, 8)])

    def wait(item: Item) -> None:
        if not handles:
            handles.append(submit() if is_own else within_time(submit))
            try:
                handles[0].wait()
            except RuntimeError as error:
                refused.append(str(error))

    with VisionPipeline(Tower(fails=wait), make_cache()) as pipeline:
        assert within_time(lambda: (step(pipeline, feature(1, 2)),)) == ([],)
        handles[0].wait(SECONDS)
        assert step(pipeline, feature(2, 2)) == []
    [message] = refused
    assert message.startswith("Prefetch.wait was called from inside VisionPipeline.place")


def test_pipeline_closed_by_the_encoder_that_a_prefetch_of_another_thread_needs_ends() -> None:
    handles: list[Prefetch] = []

    def close(item: Item) -> None:
        if not handles:
            chunks = [Chunk([Item(feature(2, 2), Span(0, 1), num_rows=2)], 0, 8)]
            handles.append(within_time(lambda: pipeline.prefetch(chunks)))
            pipeline.close()

    pipeline = VisionPipeline(Tower(fails=close), make_cache())
    within_time(lambda: [step(pipeline, feature(1, 2))])
    within_time(lambda: [handles[0].wait()])
    within_time(lambda: [pipeline.close()])
    with pytest.raises(RuntimeError, match="closed"):
        step(pipeline, feature(1, 2))


@pytest.mark.parametrize("method", ["prefetch", "feature", "encode"])
def test_pipeline_closed_in_its_own_call_back_ends(method: str) -> None:
    pipeline = VisionPipeline(Tower(), make_cache())

    def close(*_: Any) -> torch.Tensor:
        pipeline.close()
        return feature(1, 2)

    if method == "encode":
        pipeline = VisionPipeline(Tower(fails=close), make_cache())
    given = feature(1, 2) if method == "encode" else close
    if method == "prefetch":
        handle = pipeline.prefetch([Chunk([Item(given, Span(0, 1), num_rows=2)], 0, 8)])
        within_time(lambda: [handle.wait()])
    else:
        within_time(lambda: [step(pipeline, given)])
    within_time(lambda: [pipeline.close()])
    with pytest.raises(RuntimeError, match="closed"):
        step(pipeline, feature(1, 2))


@pytest.mark.parametrize("timeout_s", [True, "1", float("nan"), float("inf"), -1, 10**400, 1e300])
def test_prefetch_wait_refuses_a_timeout_that_is_no_time(timeout_s: Any) -> None:
    for handle in (Prefetch(), refused_handle()):
        with pytest.raises((TypeError, ValueError), match="timeout_s"):
            handle.wait(timeout_s)


def refused_handle() -> Prefetch:
    handle = Prefetch()
    handle.is_refused = True
    return handle


def test_prefetch_whose_worker_cannot_start_is_refused_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with VisionPipeline(Tower(), make_cache()) as pipeline:
        chunks = [Chunk([Item(feature(1, 2), Span(0, 1), num_rows=2)], 0, 8)]
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            handle = pipeline.prefetch(chunks)
        assert handle.is_refused
        assert handle.done
        handle.wait()
        assert "a prefetch was refused" in caplog.text
        assert step(pipeline, feature(2, 2)) == []
        pipeline.prefetch(chunks).wait(SECONDS)
        assert len(pipeline.cache) == 2


def test_late_prefetches_at_the_limit_of_bytes_move_their_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """The features of a step that began before its prefetch ended are never taken: they go first."""
    chunk_of = [[Chunk([Item(feature(seed, 2), Span(0, 1), num_rows=2)], 0, 8)] for seed in range(20)]
    with VisionPipeline(Tower(), make_cache(), agree=lambda miss: miss) as pipeline:
        staged = pipeline._prefetched
        monkeypatch.setattr(staged, "_max_bytes", 3 * feature(0, 2).nbytes)
        for seed, chunks in enumerate(chunk_of):
            pipeline.prefetch(chunks).wait(SECONDS)
            assert pipeline.key(chunks[0].items[0]) in {identity[0] for identity in staged._features}, seed
            assert len(staged) <= 3
        before = len(staged)
        pipeline.place(chunk_of[-1], WEIGHT[make_ids(8)])
        assert len(staged) == before - 1


HANDLERS: list[Callable[[VisionPipeline, Prefetch], object]] = [
    lambda pipeline, handle: pipeline.cancel(handle),
    lambda pipeline, handle: handle.wait(SECONDS),
    lambda pipeline, handle: step(pipeline, feature(3, 2)),
    lambda pipeline, handle: pipeline.prefetch([Chunk([Item(feature(4, 2), Span(0, 2))], 0, 8)]).wait(
        SECONDS
    ),
    lambda pipeline, handle: pipeline.close(),
    lambda pipeline, handle: raise_interrupt(),
]


@pytest.mark.parametrize("handler", HANDLERS)
def test_prefetch_with_a_signal_handler_at_any_line_leaves_the_pipeline_usable(
    handler: Callable[[VisionPipeline, Prefetch], object],
) -> None:
    files = {prefetch.__file__, prefetched_features.__file__, worker_threads.__file__, jobs.__file__}
    line, is_called = 1, True
    while is_called:
        pipeline = VisionPipeline(Tower(), make_cache())
        first = pipeline.prefetch([Chunk([Item(feature(1, 2), Span(0, 2))], 0, 8)], encode=False)

        refused: list[str] = []

        def call(pipeline: VisionPipeline = pipeline, refused: list[str] = refused) -> None:
            try:
                second = pipeline.prefetch([Chunk([Item(feature(2, 2), Span(0, 2))], 0, 8)], encode=False)
                second.wait(SECONDS)
                pipeline.cancel(second)
            except RuntimeError as error:
                refused.append(str(error))

        is_called = interrupt(
            call, line, files, lambda pipeline=pipeline, first=first: handler(pipeline, first)
        )
        assert all("closed" in message or "shutdown" in message for message in refused), refused
        within_time(lambda first=first: [first.wait(SECONDS)])
        if not pipeline._is_closed:
            assert within_time(lambda pipeline=pipeline: (step(pipeline, feature(1, 2), feature(2, 2)),)) == (
                [],
            )
        pipeline.cache.check_integrity()
        within_time(lambda pipeline=pipeline: [pipeline.close()])
        assert len(pipeline._prefetched) == 0, line
        line += 1
    assert line > 20


def test_workers_that_are_gone_leave_no_ident(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(worker_threads._workers)
    with KeyThreads(2) as threads:
        for future in threads.submit_many([b"a"] * 4):
            future.result(SECONDS)
        assert worker_threads._workers > before
    assert worker_threads._workers <= before
    assert not worker_threads.runs_job_here()


@pytest.mark.parametrize("waits", ["wait", "close"])
def test_encode_of_a_prefetch_that_waits_for_a_claim_of_its_waiting_thread_raises(
    waits: str,
) -> None:
    cache, key = make_cache(), bytes(range(32))
    is_waiting, errors, handles = threading.Event(), [], []

    def encode(features: list[torch.Tensor], items: list[Item]) -> list[torch.Tensor]:
        is_waiting.set()
        try:
            cache.claim(key).wait()
        except RuntimeError as error:
            errors.append(str(error))
        return Tower()(features, items)

    def run() -> int:
        with cache.claim(key):
            submit = threading.Thread(target=lambda: handles.append(pipeline.prefetch([Chunk([item], 0, 8)])))
            submit.start()
            submit.join()
            assert is_waiting.wait(SECONDS)
            if waits == "wait":
                handles[0].wait()
            else:
                pipeline.close()
        return len(errors)

    item = Item(feature(1, 2), Span(0, 2))
    with VisionPipeline(encode, cache) as pipeline:
        assert within_time(run) == 1
    assert errors[0].startswith("Claim.wait would never return: it waits for EmbeddingCache.claim")


def test_prefetch_waits_for_its_submitter_which_waits_for_other_jobs_in_the_encoder() -> None:
    with VisionPipeline(Tower(), make_cache()) as other:

        def encode(features: list[torch.Tensor], items: list[Item]) -> list[torch.Tensor]:
            if not handles:
                handles.append(pipeline.prefetch([Chunk([Item(feature(2, 2), Span(0, 2))], 0, 8)]))
                wait_until(lambda: pipeline._runner.turn.num_waiting)
                assert step(other, *[lambda n=n: feature(n, 2) for n in range(3, 7)]) == []
            return Tower()(features, items)

        handles: list[Prefetch] = []
        with VisionPipeline(encode, make_cache()) as pipeline:
            assert step(pipeline, feature(1, 2)) == []
            handles[0].wait(SECONDS)
            assert len(pipeline.cache) == 2
