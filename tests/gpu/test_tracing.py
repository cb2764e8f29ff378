"""Tracing on a GPU: each range is a range of `torch.profiler` and of NVTX, and none waits for the device."""

from __future__ import annotations

import pytest
import torch
from caches import make_cache

from vitcache import Chunk, Item, Span, VisionPipeline, tracing

pytestmark = pytest.mark.gpu


@pytest.fixture
def tracing_on():
    tracing.enable()
    yield
    tracing.disable()


@pytest.mark.usefixtures("tracing_on")
def test_step_opens_profiler_ranges_and_nvtx_ranges_without_waiting(gpu, monkeypatch):
    opened, closed = [], []
    push, pop = torch.cuda.nvtx.range_push, torch.cuda.nvtx.range_pop
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", lambda name: (opened.append(name), push(name)))
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: (closed.append(opened.pop()), pop()))
    weight = torch.randn(4, 8, device=gpu.device)
    ids = torch.zeros(6, dtype=torch.int64, device=gpu.device)
    items = [Item(torch.randn(2, 8), Span(3 * number, 2), key=bytes([number]) * 32) for number in range(2)]
    with VisionPipeline(
        lambda features, items: features, make_cache(8, width=8, device=gpu.device)
    ) as pipeline:
        step = [Chunk(items, 0, 6)]
        pipeline.embed(step, ids, weight)  # makes the ring, and loads the kernels
        pipeline.cache.clear()
        gpu.synchronize()
        closed.clear()
        with torch.profiler.profile() as profile, gpu.no_host_sync():
            pipeline.embed(step, ids, weight)
    found = {event.key: event.count for event in profile.key_averages() if event.key.startswith("vitcache.")}
    assert found == {"vitcache.copy": 2, "vitcache.encode": 1, "vitcache.place": 1}
    assert opened == []
    names = [name for name, number in found.items() for _ in range(number)]
    assert sorted(closed) == ([] if gpu.dry else sorted(names))
