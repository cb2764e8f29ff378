"""Prefetches: their work is done once, is bounded, can be cancelled, and never makes a step fail."""

from __future__ import annotations

import concurrent.futures
import gc
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
import torch
from caches import make_cache
from interrupts import interrupt
from pipeline_scene import (
    HIDDEN,
    Tower,
    expected,
    feature,
    make_ids,
    make_weight,
)

from vitcache import Chunk, Item, PinnedRing, Prefetch, Span, VisionPipeline
from vitcache.device import jobs
from vitcache.pipeline import prefetch, vision_pipeline
from vitcache.pipeline.prefetch import MAX_UNFINISHED

WEIGHT = make_weight()
SECONDS = 60


def make_items(count: int = 3, load: Callable[[int], torch.Tensor] | None = None) -> list[Item]:
    return [
        Item((lambda seed=seed: load(seed)) if load else feature(seed, 2), Span(2 * seed, 2))
        for seed in range(count)
    ]


def embed(pipeline: VisionPipeline, items: list[Item]) -> None:
    chunks, ids = [Chunk(items, 0, 8)], make_ids(8)
    result = pipeline.embed(chunks, ids, WEIGHT)
    assert result.errors == []
    assert torch.equal(result.inputs_embeds, expected(chunks, ids, WEIGHT)[0])
    pipeline.cache.check_integrity()


def test_prefetch_encodes_items_that_embed_then_hits(maybe_ring: PinnedRing | None) -> None:
    tower = Tower()
    with VisionPipeline(tower, make_cache(), ring=maybe_ring, max_rows_per_encode=4) as pipeline:
        items = make_items()
        handle = pipeline.prefetch([Chunk(items, 0, 8)])
        handle.wait(SECONDS)
        assert handle.done
        assert [len(call) for call in tower.calls] == [2, 1]
        embed(pipeline, items)
        pipeline.prefetch([Chunk(items, 0, 8)]).wait(SECONDS)
        assert len(tower.calls) == 2
        assert pipeline.cache.stats().hits == 3


def test_prefetch_loads_only_items_in_the_chunk() -> None:
    tower, loaded = Tower(), []

    def load(seed: int) -> torch.Tensor:
        loaded.append(seed)
        return feature(seed, 2)

    with VisionPipeline(tower, make_cache()) as pipeline:
        pipeline.prefetch([Chunk(make_items(3, load), 2, 2)]).wait(SECONDS)
    assert loaded == [1]


@pytest.mark.parametrize("reason", ["encode=False", "agree"])
def test_prefetch_without_encode_moves_features_for_embed(maybe_ring: PinnedRing | None, reason: str) -> None:
    tower, loaded = Tower(), []

    def load(seed: int) -> torch.Tensor:
        loaded.append(seed)
        return feature(seed, 2)

    agree = (lambda miss: miss) if reason == "agree" else None
    with VisionPipeline(tower, make_cache(), ring=maybe_ring, agree=agree) as pipeline:
        items = make_items(3, load)
        pipeline.prefetch([Chunk(items, 0, 8)], encode=reason == "agree").wait(SECONDS)
        assert tower.calls == []
        assert loaded == [0, 1, 2]
        chunks, ids = [Chunk(items, 0, 8)], make_ids(8)
        assert pipeline.embed(chunks, ids, WEIGHT).errors == []
        assert loaded == [0, 1, 2]  # the features were not hashed or moved again
        assert len(tower.encoded) == 3
        assert len(pipeline._prefetched) == 0


def test_cancel_frees_moved_features_and_stops_prefetches(maybe_ring: PinnedRing | None) -> None:
    started, may_go_on = threading.Event(), threading.Event()

    def block(seed: int) -> torch.Tensor:
        started.set()
        may_go_on.wait()
        return feature(seed, 2)

    tower = Tower()
    with VisionPipeline(tower, make_cache(), ring=maybe_ring) as pipeline:
        moved = pipeline.prefetch([Chunk(make_items(), 0, 8)], encode=False)
        moved.wait(SECONDS)
        assert len(pipeline._prefetched) == 3
        pipeline.cancel(moved)
        assert len(pipeline._prefetched) == 0
        running = pipeline.prefetch([Chunk(make_items(2, block), 0, 8)])
        waiting = pipeline.prefetch([Chunk(make_items(), 0, 8)])
        started.wait()
        pipeline.cancel(waiting)
        pipeline.cancel(running)
        may_go_on.set()
        for handle in (running, waiting):
            handle.wait(SECONDS)
            assert handle.done
        assert tower.calls == []


def test_prefetch_is_refused_while_the_maximum_is_unfinished() -> None:
    started, may_go_on = threading.Event(), threading.Event()

    def block(seed: int) -> torch.Tensor:
        started.set()
        may_go_on.wait()
        return feature(seed, 2)

    with VisionPipeline(Tower(), make_cache()) as pipeline:
        handles = [pipeline.prefetch([Chunk(make_items(1, block), 0, 2)]) for _ in range(MAX_UNFINISHED + 2)]
        started.wait()
        assert [handle.is_refused for handle in handles] == [False] * MAX_UNFINISHED + [True] * 2
        assert handles[-1].done
        handles[-1].wait()
        with pytest.raises(TimeoutError, match="not done within 0 s"):
            handles[0].wait(0)
        may_go_on.set()
        for handle in handles:
            handle.wait(SECONDS)
        assert not pipeline.prefetch([]).is_refused


def test_embed_repeats_the_work_of_a_failed_prefetch(caplog: pytest.LogCaptureFixture) -> None:
    def fail(item: Item) -> None:
        raise MemoryError

    tower = Tower(fails=fail)
    with VisionPipeline(tower, make_cache()) as pipeline:
        items = make_items()
        pipeline.prefetch([Chunk(items, 0, 8)]).wait(SECONDS)
        tower.fails = None
        embed(pipeline, items)
        overlapping = [Item(feature(0, 2), [Span(0, 2), Span(1, 1)])]
        with caplog.at_level(logging.WARNING, "vitcache.prefetch"):
            pipeline.prefetch([Chunk(overlapping, 0, 8)]).wait(SECONDS)
        assert "a prefetch failed" in caplog.text


def test_prefetch_worker_uses_the_torch_modes_of_the_caller() -> None:
    seen = []

    def record_modes(item: Item) -> None:
        seen.append(
            (
                torch.is_grad_enabled(),
                torch.is_inference_mode_enabled(),
                torch.is_autocast_enabled("cpu"),
                torch.get_autocast_dtype("cpu"),
            )
        )

    with VisionPipeline(Tower(fails=record_modes), make_cache()) as pipeline:
        for seed, modes in enumerate(
            [
                torch.enable_grad(),
                torch.no_grad(),
                torch.inference_mode(),
                torch.autocast("cpu", torch.float16),
            ]
        ):
            with modes:
                handle = pipeline.prefetch([Chunk([Item(feature(seed, 2), Span(0, 2))], 0, 2)])
            handle.wait(SECONDS)
    assert [modes[:3] for modes in seen] == [
        (True, False, False),
        (False, False, False),
        (False, True, False),
        (True, False, True),
    ]
    assert seen[-1][3] == torch.float16


def test_close_cancels_queued_prefetches() -> None:
    started, may_go_on = threading.Event(), threading.Event()

    def block(seed: int) -> torch.Tensor:
        started.set()
        may_go_on.wait()
        return feature(seed, 2)

    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache())
    handles: list[Prefetch] = [pipeline.prefetch([Chunk(make_items(1, block), 0, 2)]) for _ in range(3)]
    started.wait()
    closing = threading.Thread(target=pipeline.close)
    closing.start()
    while not all(handle.is_cancelled for handle in handles):
        time.sleep(0.001)
    may_go_on.set()
    closing.join(SECONDS)
    assert all(handle.done for handle in handles)
    assert tower.calls == []


def test_interpreter_exits_while_prefetches_are_queued() -> None:
    program = """
import torch
from vitcache import Chunk, EmbeddingCache, Item, Span, VisionPipeline
cache = EmbeddingCache(4, dtype=torch.float32, device="cpu", device_bytes=1 << 20)
encoded = []
def encode(features, items):
    encoded.append(1)
    while not handles[0].is_cancelled:  # until the interpreter exits
        pass
    return [torch.zeros(2, 4)]
pipeline = VisionPipeline(encode, cache)
handles = []
for number in range(8):
    handles.append(pipeline.prefetch([Chunk([Item(torch.full((4, 3), float(number)), Span(0, 2))], 0, 2)]))
while not encoded:
    pass
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_collected_pipeline_ends_its_worker_thread() -> None:
    pipeline = VisionPipeline(Tower(), make_cache())
    pipeline.prefetch([Chunk(make_items(), 0, 8)]).wait(SECONDS)
    [thread] = pipeline._worker.workers.threads
    del pipeline
    gc.collect()
    thread.join(SECONDS)
    assert not thread.is_alive()


def test_prefetch_cancelled_in_an_interrupted_call_can_be_cancelled_again() -> None:
    files = {prefetch.__file__, jobs.__file__, concurrent.futures._base.__file__, threading.__file__}
    for line in range(1, 12):
        handle = Prefetch()
        handle._job = jobs.Job(lambda: None)
        interrupt(handle.cancel, line, files)
        thread = threading.Thread(target=handle.cancel, daemon=True)
        thread.start()
        thread.join(SECONDS)
        assert not thread.is_alive(), line
        assert handle.is_cancelled
        assert handle.done


def test_collected_pipeline_whose_finalizer_is_interrupted_ends_its_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(parts: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vision_pipeline, "_stop_threads", interrupted)
    pipeline = VisionPipeline(Tower(), make_cache())
    pipeline.prefetch([Chunk([Item(feature(1, 2), Span(0, 2))], 0, 8)]).wait(SECONDS)
    threads = {*pipeline._worker.workers.threads, *pipeline._keys._workers.threads}
    assert len(threads) == 2
    ignored: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    del pipeline
    gc.collect()
    monkeypatch.undo()
    assert len(ignored) == 1
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()


def test_prefetch_worker_survives_a_callable_that_raises_system_exit() -> None:
    def exit_thread() -> torch.Tensor:
        raise SystemExit

    tower = Tower()
    with VisionPipeline(tower, make_cache()) as pipeline:
        handle = pipeline.prefetch([Chunk([Item(exit_thread, Span(0, 2), key=b"k" * 32)], 0, 2)])
        handle.wait(SECONDS)
        assert handle.done
        pipeline.prefetch([Chunk(make_items(), 0, 8)]).wait(SECONDS)
    assert len(tower.encoded) == 3


def test_finalizer_of_a_pipeline_does_not_wait_for_its_worker() -> None:
    """The garbage collector may run in a thread that holds a lock, and the worker may wait for this lock."""
    started, may_go_on = threading.Event(), threading.Event()

    def block(item: Item) -> None:
        started.set()
        may_go_on.wait()

    pipeline = VisionPipeline(Tower(fails=block), make_cache())
    pipeline.prefetch([Chunk(make_items(), 0, 8)])
    [thread] = pipeline._worker.workers.threads
    started.wait()
    for owner in (pipeline._worker, pipeline._keys):
        owner.stop()  # the finalizer calls `stop`, which returns while the worker is busy
    assert thread.is_alive()
    may_go_on.set()
    thread.join(SECONDS)
    assert not thread.is_alive()


def test_feature_moved_in_inference_mode_can_be_encoded_outside_of_it() -> None:
    layer = torch.nn.Linear(3, HIDDEN)
    with PinnedRing(1 << 16, backend="host") as ring:
        pipeline = VisionPipeline(
            lambda features, items: [layer(part[:2]) for part in features], make_cache(), ring=ring
        )
        items = [Item(feature(0, 2), Span(0, 2))]
        with torch.inference_mode():
            pipeline.prefetch([Chunk(items, 0, 2)], encode=False).wait(SECONDS)
        assert pipeline.embed([Chunk(items, 0, 2)], make_ids(2), WEIGHT).errors == []
        pipeline.close()
