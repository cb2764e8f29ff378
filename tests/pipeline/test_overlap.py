"""Copies overlap encodes, the host does not wait for them, and concurrent steps share encoded rows."""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from caches import make_cache
from pipeline_scene import HIDDEN, Tower, expected, feature, make_ids, make_weight
from rings import copy_stream, wait_on_stream

from vitcache import Chunk, Item, PinnedRing, Span, Ticket, VisionPipeline
from vitcache.pipeline.feature_mover import RING_BYTES
from vitcache.pipeline.vision_pipeline import MAX_ROWS_PER_ENCODE
from vitcache.ring.pinned_ring import PIECE_BYTES
from vitcache.testing import stand_in

WEIGHT = make_weight()


def make_items(count: int, num_rows: int = 2) -> list[Item]:
    return [
        Item(feature(seed, num_rows), Span(num_rows * seed, num_rows), key=bytes([seed]) * 32)
        for seed in range(count)
    ]


def test_embed_queues_the_next_copy_before_it_calls_encode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []
    tower = Tower(fails=lambda item: log.append(f"encode {item.spans[0].start // 2}"))
    with PinnedRing(1 << 16, backend="host") as ring:
        copy_to, copies = ring.copy_to, iter(range(9))

        def record_copy(*arguments: Any, **options: Any) -> Ticket:
            log.append(f"copy {next(copies)}")
            return copy_to(*arguments, **options)

        monkeypatch.setattr(ring, "copy_to", record_copy)
        pipeline = VisionPipeline(tower, make_cache(), ring=ring, max_rows_per_encode=2)
        pipeline.embed([Chunk(make_items(3), 0, 6)], make_ids(6), WEIGHT)
    assert log == ["copy 0", "copy 1", "encode 0", "copy 2", "encode 1", "encode 2"]


class DeviceTower:
    """A tower that never reads a feature on the host, as a tower on a GPU."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, features: list[torch.Tensor], items: list[Item]) -> torch.Tensor:
        self.calls += 1
        return torch.ones(sum(item.num_rows for item in items), HIDDEN)


def test_embed_returns_without_a_synchronizing_call_while_streams_are_paused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The items have keys and the ring has free bytes, so no call has a reason to wait."""
    with PinnedRing(1 << 16, backend="host") as ring:
        stream = copy_stream(ring)
        # As on a GPU: a stream waits for the ticket, the host does not.
        monkeypatch.setattr(Ticket, "wait", lambda ticket, _=None: wait_on_stream(ticket, stream))
        tower = DeviceTower()
        pipeline = VisionPipeline(tower, make_cache(), ring=ring, max_rows_per_encode=2)
        pipeline.embed([Chunk(make_items(1), 0, 2)], make_ids(2), WEIGHT)
        while ring.stats().num_slots:
            pass  # until the copy of the first feature is complete
        stand_in.reset()
        with stand_in.paused():
            result = pipeline.embed([Chunk(make_items(4)[1:], 2, 6)], make_ids(6), WEIGHT)
            assert ring.stats().num_slots == 3
            assert stand_in.count().synchronizing_calls == 0
        assert result.errors == []
        assert tower.calls == 4


SCALE = 64  # features and rings have this fraction of their true bytes
IMAGE_ROWS, IMAGE_BYTES = (
    2040,
    8160 * 1536 * 4,
)  # 1920x1080 pixels in Qwen3-VL: the rows, and the float32 patches


class RecordingTower(DeviceTower):
    """Records its calls, and resumes the streams in the first one: only before it must the host not wait."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = log

    def __call__(self, features: list[torch.Tensor], items: list[Item]) -> torch.Tensor:
        self.log.append(f"encode {len(items)}")
        stand_in.pause(False)
        return super().__call__(features, items)


def embed_1080p_images(
    monkeypatch: pytest.MonkeyPatch, ring_bytes: int, *, has_keys: bool, num_images: int = 8
) -> list[str]:
    """Embed images in a pipeline with the default options, on paused streams; return the copies and encodes.

    A copy that would wait for a slot before the first encode raises TimeoutError.
    """
    log: list[str] = []
    elements = IMAGE_BYTES // 4 // SCALE
    items = [
        Item(
            torch.full((elements,), float(image)),
            Span(image * IMAGE_ROWS, IMAGE_ROWS),
            key=bytes([image]) * 32 if has_keys else None,
        )
        for image in range(num_images)
    ]
    ids = make_ids(num_images * IMAGE_ROWS)
    stand_in.reset()
    with PinnedRing(ring_bytes // SCALE, backend="host", piece_bytes=PIECE_BYTES // SCALE) as ring:
        copy_to, stream = ring.copy_to, copy_stream(ring)

        def record_copy(*arguments: Any, **options: Any) -> Ticket:
            log.append("copy")
            has_encoded = any(line != "copy" for line in log)
            return copy_to(*arguments, **options, timeout_s=None if has_encoded else 0)

        monkeypatch.setattr(ring, "copy_to", record_copy)
        monkeypatch.setattr(Ticket, "wait", lambda ticket, _=None: wait_on_stream(ticket, stream))
        cache = make_cache(num_images * IMAGE_ROWS // 2)
        with VisionPipeline(RecordingTower(log), cache, ring=ring) as pipeline, stand_in.paused():
            assert pipeline.embed([Chunk(items, 0, len(ids))], ids, WEIGHT).errors == []
    return log


@pytest.mark.parametrize("has_keys", [True, False])
def test_embed_with_defaults_never_waits_for_a_slot_before_the_first_encode(
    monkeypatch: pytest.MonkeyPatch, has_keys: bool
) -> None:
    """A micro-batch has two images. The default ring has enough bytes for two micro-batches."""
    log = embed_1080p_images(monkeypatch, RING_BYTES, has_keys=has_keys)
    assert log[:5] == [*["copy"] * 4, "encode 2"]
    assert log.count("copy") == 8
    assert [line for line in log if line != "copy"] == ["encode 2"] * 4


@pytest.mark.parametrize("has_keys", [True, False])
@pytest.mark.parametrize(("ring_images", "copies_before"), [(2.1, 2), (3.2, 3)])
def test_embed_copies_features_without_free_bytes_after_the_call_of_encode(
    monkeypatch: pytest.MonkeyPatch, has_keys: bool, ring_images: float, copies_before: int
) -> None:
    log = embed_1080p_images(monkeypatch, int(ring_images * IMAGE_BYTES), has_keys=has_keys)
    assert log[: copies_before + 2] == [*["copy"] * copies_before, "encode 2", "copy"]
    assert log.count("copy") == 8
    assert log.count("encode 2") == 4


@pytest.mark.parametrize("is_hashed", [False, True])
def test_features_that_require_gradients_are_encoded_in_every_micro_batch(
    maybe_ring: PinnedRing | None, is_hashed: bool
) -> None:
    items = make_items(4)
    for item in items:
        item.feature.requires_grad_()
        if is_hashed:
            item.key = None
    chunks, ids = [Chunk(items, 0, 8)], make_ids(8)
    wanted = expected(chunks, ids, WEIGHT)[0].detach()
    with VisionPipeline(Tower(), make_cache(), ring=maybe_ring, max_rows_per_encode=2) as pipeline:
        result = pipeline.embed(chunks, ids, WEIGHT)
    assert result.errors == []
    assert torch.equal(result.inputs_embeds, wanted)


def test_pipeline_default_of_max_rows_per_encode_is_the_constant() -> None:
    with VisionPipeline(Tower(), make_cache()) as pipeline:
        assert pipeline.max_rows_per_encode == MAX_ROWS_PER_ENCODE == 4096


def test_embed_keeps_features_of_at_most_two_micro_batches(maybe_ring: PinnedRing | None) -> None:
    """One micro-batch is being encoded, the next one is being copied."""
    alive: list[weakref.ref[torch.Tensor]] = []

    def encode(features: list[torch.Tensor], items: list[Item]) -> list[torch.Tensor]:
        assert [ref() is None for ref in alive[:-1]] == [True] * len(alive[:-1])
        alive.append(weakref.ref(features[0]))
        return [torch.zeros(2, HIDDEN)]

    items = [
        Item(lambda seed=seed: feature(seed, 2), Span(2 * seed, 2), key=bytes([seed]) * 32)
        for seed in range(6)
    ]
    pipeline = VisionPipeline(encode, make_cache(), ring=maybe_ring, max_rows_per_encode=2)
    assert pipeline.embed([Chunk(items, 0, 12)], make_ids(12), WEIGHT).errors == []
    assert len(alive) == 6


def test_features_may_be_overwritten_after_embed_returns() -> None:
    with PinnedRing(1 << 12, backend="host") as ring:
        pipeline = VisionPipeline(Tower(), make_cache(), ring=ring, max_rows_per_encode=2)
        for seed in range(20):
            item = Item(feature(seed, 2), Span(0, 2))
            expected_rows = expected([Chunk([item], 0, 2)], make_ids(2), WEIGHT)[0]
            result = pipeline.embed([Chunk([item], 0, 2)], make_ids(2), WEIGHT)
            item.feature.fill_(float("nan"))
            assert torch.equal(result.inputs_embeds, expected_rows)


@pytest.mark.parametrize("num_pipelines", [1, 3])
def test_concurrent_steps_encode_each_item_once(num_pipelines: int) -> None:
    """Each step has the items in another order, so that the steps wait for each other's claims."""
    cache, towers = make_cache(200), [Tower() for _ in range(num_pipelines)]
    vision_pipelines = [VisionPipeline(tower, cache, max_rows_per_encode=4) for tower in towers]
    items = make_items(12)
    barrier = threading.Barrier(6)

    def step(number: int) -> bool:
        rotated = items[number:] + items[:number]
        placed = [Item(item.feature, Span(2 * place, 2), key=item.key) for place, item in enumerate(rotated)]
        chunks, ids = [Chunk(placed, 0, 24)], make_ids(24)
        barrier.wait()
        result = vision_pipelines[number % num_pipelines].embed(chunks, ids, WEIGHT)
        return torch.equal(result.inputs_embeds, expected(chunks, ids, WEIGHT)[0])

    with ThreadPoolExecutor(6) as pool:
        assert all(future.result(60) for future in [pool.submit(step, number) for number in range(6)])
    keys = [item.key for tower in towers for item in tower.encoded]
    assert len(keys) == len(set(keys)) == 12
    cache.check_integrity()


def test_waiting_step_encodes_the_item_after_its_owner_failed() -> None:
    encoding, may_fail = threading.Event(), threading.Event()

    def fail(item: Item) -> None:
        encoding.set()
        may_fail.wait()
        raise MemoryError

    cache, tower = make_cache(), Tower()
    items = make_items(1)
    first = VisionPipeline(Tower(fails=fail), cache)
    second = VisionPipeline(tower, cache)
    with ThreadPoolExecutor(2) as pool:
        failing = pool.submit(first.embed, [Chunk(items, 0, 2)], make_ids(2), WEIGHT)
        encoding.wait()
        taking_over = pool.submit(second.embed, [Chunk(items, 0, 2)], make_ids(2), WEIGHT)
        may_fail.set()
        (error,) = failing.result(60).errors
        assert isinstance(error.cause, MemoryError)
        assert taking_over.result(60).errors == []
    assert len(tower.calls) == 1
