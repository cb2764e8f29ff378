"""`VisionPipeline` on a GPU: the host does not wait, and streams, features and rows are ordered."""

from __future__ import annotations

import pytest
import torch
from caches import make_cache

from vitcache import Chunk, Item, Items, PinnedRing, Span, VisionPipeline

PATCH = 64


class Scene:
    """A tower of matrix products, and items whose rows all differ."""

    def __init__(self, gpu, *, items=8, **options):
        self.gpu = gpu
        self.rows, self.hidden = gpu.size(256, 6), 1024
        generator = torch.Generator().manual_seed(0)
        self.project = torch.randn(PATCH, self.hidden, generator=generator).to(gpu.device)
        self.weight = torch.randn(100, self.hidden, generator=generator).to(gpu.device).bfloat16()
        self.features = [torch.randn(self.rows, PATCH, generator=generator) for _ in range(items)]
        pages = 3 * items * -(-self.rows // 64)
        self.cache = make_cache(
            pages, width=self.hidden, dtype=torch.bfloat16, page_rows=64, device=gpu.device
        )
        self.ring = PinnedRing(gpu.size(64 << 20, 1 << 20), backend="host" if gpu.dry else "cuda")
        self.before_encode = lambda: None
        self.pipeline = VisionPipeline(
            self.encode, self.cache, ring=self.ring, max_rows_per_encode=2 * self.rows, **options
        )

    def encode(self, features, items):
        self.before_encode()
        return [(part @ self.project).bfloat16() for part in features]

    def items(self, first=0, last=None):
        return [
            Item(part, Span(number * (self.rows + 1), self.rows), key=bytes([number]) * 32)
            for number, part in enumerate(self.features)
        ][first:last]

    def ids(self, items):
        return torch.zeros(items * (self.rows + 1), dtype=torch.int64, device=self.gpu.device)

    def step(self, items, ids):
        return self.pipeline.embed([Chunk(items, 0, len(ids))], ids, self.weight)

    def expected(self, items):
        rows = [(item.feature.to(self.gpu.device) @ self.project).bfloat16() for item in items]
        return torch.cat([torch.cat([part, self.weight[:1]]) for part in rows])

    def close(self):
        self.pipeline.close()
        self.ring.close()


@pytest.fixture
def scene(gpu):
    made = Scene(gpu)
    yield made
    made.close()


def test_step_behind_a_slow_stream_does_not_block_the_host(gpu, scene):
    """If the kernels are loaded, no call of the step synchronizes."""
    items, ids = scene.items(), scene.ids(8)
    scene.step(items, ids)  # loads the kernels, and torch's allocators keep the memory
    scene.cache.clear()
    gpu.synchronize()
    with gpu.no_host_sync():
        gpu.slow(200)
        result = scene.step(items, ids)
        assert gpu.is_behind(gpu.current_stream())
    gpu.synchronize()
    assert result.errors == []
    assert torch.equal(result.inputs_embeds, scene.expected(items))


def test_step_with_a_slow_encoder_places_and_stores_its_rows(gpu, scene):
    """The second step hits the stored rows."""
    items, ids = scene.items(), scene.ids(8)
    scene.before_encode = lambda: gpu.slow(20)
    for _ in range(2):
        result = scene.step(items, ids)
        with gpu.stream() as side:
            side.wait_stream(gpu.current_stream())
        gpu.synchronize()
        assert torch.equal(result.inputs_embeds, scene.expected(items))
    assert scene.cache.stats().hits == 8


def test_encoder_runs_on_the_stream_of_the_pipeline(gpu):
    side = None if gpu.dry else torch.cuda.Stream()
    scene = Scene(gpu, stream=side)
    seen = []

    def note():
        gpu.slow(10)
        seen.append(None if gpu.dry else torch.cuda.current_stream().cuda_stream)

    scene.before_encode = note
    items, ids = scene.items(), scene.ids(8)
    for _ in range(3):
        scene.cache.clear()
        result = scene.step(items, ids)
        gpu.synchronize()
        assert torch.equal(result.inputs_embeds, scene.expected(items))
    assert set(seen) == {None if gpu.dry else side.cuda_stream}
    scene.close()


def test_encoder_may_overwrite_its_output_in_the_next_call(gpu):
    scene = Scene(gpu)
    static = torch.empty(2 * scene.rows, scene.hidden, dtype=torch.bfloat16, device=gpu.device)

    def encode(features, items):
        rows = torch.cat([part @ scene.project for part in features])
        gpu.slow(5)
        return static[: len(rows)].copy_(rows)

    pipeline = VisionPipeline(encode, scene.cache, ring=scene.ring, max_rows_per_encode=2 * scene.rows)
    items, ids = scene.items(), scene.ids(8)
    for _ in range(2):
        result = pipeline.embed([Chunk(items, 0, len(ids))], ids, scene.weight)
        static.fill_(float("nan"))
        gpu.synchronize()
        assert torch.equal(result.inputs_embeds, scene.expected(items))
    scene.close()


def test_step_after_a_prefetch_on_another_stream_places_its_rows(gpu, scene):
    items, ids = scene.items(), scene.ids(8)
    scene.before_encode = lambda: gpu.slow(5)
    for encode in (False, True):
        scene.cache.clear()
        handle = scene.pipeline.prefetch([Chunk(items, 0, len(ids))], encode=encode)
        handle.wait(60)
        result = scene.step(items, ids)
        gpu.synchronize()
        assert torch.equal(result.inputs_embeds, scene.expected(items))
    assert scene.cache.stats().hits == 8


def test_step_with_some_features_on_the_device_places_every_row(gpu, scene):
    items = [
        Item(item.feature.to(gpu.device), item.spans, key=item.key) if number % 2 else item
        for number, item in enumerate(scene.items())
    ]
    result = scene.step(items, scene.ids(8))
    gpu.synchronize()
    assert torch.equal(result.inputs_embeds, scene.expected(items))


def test_place_writes_into_rows_of_the_current_stream_without_a_wait_of_the_host(gpu, scene):
    items, ids = scene.items(), scene.ids(8)
    chunks = [Chunk(items, 0, len(ids))]
    scene.pipeline.place(chunks, scene.weight[ids])  # loads the kernels
    scene.cache.clear()
    gpu.synchronize()
    with gpu.no_host_sync():
        gpu.slow(200)
        inputs_embeds = scene.weight[ids]
        result = scene.pipeline.place(chunks, inputs_embeds)
        assert gpu.is_behind(gpu.current_stream())
    gpu.synchronize()
    assert result.errors == []
    assert torch.equal(inputs_embeds, scene.expected(items))


def test_kept_rows_are_read_on_other_streams_than_the_one_that_wrote_them(gpu):
    """The cache rejects every item. A slow encode must be complete before a later chunk reads its rows."""
    scene = Scene(gpu, items=2)
    small = make_cache(1, width=scene.hidden, dtype=torch.bfloat16, page_rows=2, device=gpu.device)
    static = torch.empty(2 * scene.rows, scene.hidden, dtype=torch.bfloat16, device=gpu.device)
    calls = []

    def encode(features, items):
        calls.append(len(items))
        gpu.slow(20)
        rows = torch.cat([part @ scene.project for part in features])
        return static[: len(rows)].copy_(rows)

    pipeline = VisionPipeline(encode, small, ring=scene.ring, max_rows_per_encode=2 * scene.rows)
    items, ids = Items(scene.items()), scene.ids(2)
    inputs_embeds, third = scene.weight[ids], len(ids) // 3
    gpu.synchronize()
    for start in range(0, len(ids), third):
        length = min(third, len(ids) - start)
        with gpu.stream():  # a stream of its own for each chunk
            pipeline.place([Chunk(items, start, length)], inputs_embeds[start : start + length])
    gpu.synchronize()
    assert torch.equal(inputs_embeds, scene.expected(items))
    assert sum(calls) == 2
    assert pipeline._kept.num_bytes == 0
    pipeline.close()
    scene.close()
