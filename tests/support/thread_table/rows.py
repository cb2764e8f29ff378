"""The lines of the table, in the order of docs/calls.md."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from pipeline_scene import HIDDEN, make_ids, make_weight
from tiers.planted_tier import PlantedTier
from tiers.tier_cache import tier_cache

from thread_table.row import Row, Scene, Use
from vitcache import (
    Chunk,
    KeyAliases,
    KeyThreads,
    PinnedRing,
    PlacementTable,
    content_key,
    embed_tokens,
    scatter_embeddings,
    tracing,
)

CURRENT, NONE = "the current stream", "none"
ROWS: list[Row] = []
HANDLER, ENCODER, FEATURE, CHILD = (
    "signal handler, `__del__`",
    "encoder",
    "callable feature",
    "forked child",
)


def row(name: str, stream: str, *differs: str, needs: tuple[str, ...] = ()) -> Any:
    def add(use: Any) -> Any:
        ROWS.append(Row(name, use, stream, frozenset(differs), needs))
        return use

    return add


def rows_of(key: bytes) -> torch.Tensor:
    """Rows of a key. `torch.rand` locks the generator of torch, which a forked child can find locked."""
    return torch.full((2, HIDDEN), float(int.from_bytes(key[-3:], "big")))


@row("`scatter_embeddings`, `embed_tokens`", CURRENT)
def place(scene: Scene) -> Use:
    def use() -> None:
        rows = torch.full((2, HIDDEN), 7.0)
        scattered = scatter_embeddings(torch.zeros(4, HIDDEN), [rows], [1])
        assert torch.equal(scattered[1:3], rows)
        embedded = embed_tokens(make_ids(4), make_weight(), [rows], [1])
        assert torch.equal(embedded[1:3], rows)

    return use


@row("`PlacementTable`", "that of the launch that reads it")
def table(scene: Scene) -> Use:
    def use() -> None:
        made = PlacementTable(4, dtype=torch.float32, device="cpu").update(
            [torch.full((2, HIDDEN), 3.0)], [1]
        )
        assert scatter_embeddings(torch.zeros(4, HIDDEN), made, None)[1, 0] == 3

    return use


@row("`content_key`, `key_from_id`", "the current stream, for a feature on a GPU")
def keys(scene: Scene) -> Use:
    value = np.arange(1 << 16)
    expected = content_key(value)

    def use() -> None:
        assert content_key(value) == expected

    return use


@row("`KeyThreads`", "that of the submit, for a feature on a GPU")
def key_threads(scene: Scene) -> Use:
    threads = KeyThreads(2)
    scene.cleanup.callback(threads.close)
    value = np.arange(100)
    expected = content_key(value)

    def use() -> None:
        assert threads.submit(lambda: value).result(30).key == expected

    return use


@row("`KeyAliases`", NONE)
def aliases(scene: Scene) -> Use:
    known = KeyAliases()  # large enough that no thread evicts an alias between the two calls

    def use() -> None:
        key = scene.new_key()
        known.add(key, bytes(32), 1)
        assert known.get(key) == (bytes(32), 1)

    return use


@row("`EmbeddingCache`", CURRENT)
def cache(scene: Scene) -> Use:
    def use() -> None:
        key = scene.new_key()
        rows = rows_of(key)
        assert scene.cache.put(key, rows)
        with scene.cache.get(key) as lease:
            assert torch.equal(lease.to_tensor(), rows)
        scene.cache.get_many([key])[0].release()
        assert scene.cache.stats().hits > 0
        assert scene.cache.discard(key)

    return use


@row("`EmbeddingCache` with `tiers`, `Fetch`", CURRENT)
def cache_with_tiers(scene: Scene) -> Use:
    made = scene.cleanup.enter_context(
        tier_cache(PlantedTier(), device_pages=64, host_pages=64, width=HIDDEN)
    )

    def use() -> None:
        key = scene.new_key()
        rows = rows_of(key)
        fetch = made.begin_fetch([key], 2)
        assert fetch.wait(30) == [False]  # in a forked child no tier is asked
        assert fetch.done
        assert made.put(key, rows)
        assert made.fetch([key], 2) == [True]
        assert made.flush(30)
        with made.get(key) as found:
            assert torch.equal(found.to_tensor(), rows)
        assert made.discard(key)

    return use


@row("`Lease`", CURRENT)
def lease(scene: Scene) -> Use:
    rows = rows_of(bytes(32))
    scene.cache.put(bytes(32), rows)
    made = scene.cleanup.enter_context(scene.cache.get(bytes(32)))

    def use() -> None:
        assert torch.equal(made.to_tensor(), rows)

    return use


@row("`Reservation`", CURRENT)
def reservation(scene: Scene) -> Use:
    def use() -> None:
        key = scene.new_key()
        rows = rows_of(key)
        with scene.cache.reserve(key, 2) as made:
            made.write(rows)
            assert made.commit()
        assert key in scene.cache

    return use


@row("`Claim`: of keys that no call above claims", NONE)
def claim(scene: Scene) -> Use:
    def use() -> None:
        with scene.cache.claim(scene.new_key()) as made:
            assert made.is_mine

    return use


@row("`PinnedRing`, `Ticket`", "the ring's stream; `Ticket.wait` lets yours wait", CHILD)
def ring(scene: Scene) -> Use:
    made = scene.cleanup.enter_context(PinnedRing(1 << 16, backend="host", num_threads=2))

    def use() -> None:
        source, target = torch.arange(64.0), torch.zeros(64)
        made.copy_to(target, source).synchronize()
        assert torch.equal(target, source)

    return use


@row("`VisionPipeline`: `embed`, `place`", CURRENT, HANDLER, ENCODER)
def pipeline(scene: Scene) -> Use:
    return lambda: scene.embed(scene.pipeline, scene.new_item())


@row("another `VisionPipeline` of the same cache", CURRENT, HANDLER)
def other_pipeline(scene: Scene) -> Use:
    made = scene.new_pipeline()
    return lambda: scene.embed(made, scene.new_item())


@row("`VisionPipeline.prefetch`", "a stream of the pipeline")
def prefetch(scene: Scene) -> Use:
    def use() -> None:
        handle = scene.pipeline.prefetch([Chunk([scene.new_item()], 0, 4)])
        assert not handle.is_refused
        scene.pipeline.cancel(handle)

    return use


@row("`VisionPipeline.fetch`", "none")
def fetch(scene: Scene) -> Use:
    return lambda: scene.pipeline.fetch([Chunk([scene.new_item()], 0, 4)])


@row("`attach`: calls of the model", CURRENT, needs=("transformers",))
def attached(scene: Scene) -> Use:
    scenes: Any = import_module("attached")
    model = scenes.GEMMA.model()
    call = scenes.GEMMA.call(0)
    expected = scenes.stock_rows(model, call)
    scene.cleanup.enter_context(scenes.attach(model, device_bytes=1 << 20))

    def use() -> None:
        assert torch.equal(scenes.image_rows(model, call), expected)

    return use


@row("`Attachment`: `stats`, `invalidate`", NONE, needs=("transformers",))
def attachment(scene: Scene) -> Use:
    scenes: Any = import_module("attached")
    made = scene.cleanup.enter_context(scenes.attach(scenes.GEMMA.model(), device_bytes=1 << 20))

    def use() -> None:
        before = sum(made.stats().changes.values())
        made.invalidate()
        assert sum(made.stats().changes.values()) > before
        assert len(made.cache) == 0

    return use


@row("`CacheCollector`", NONE, needs=("prometheus_client",))
def collector(scene: Scene) -> Use:
    made = import_module("vitcache.metrics").CacheCollector(scene.cache)

    def use() -> None:
        assert len(list(made.collect())) > 5

    return use


@row("`vitcache.tracing`", NONE)
def trace(scene: Scene) -> Use:
    scene.cleanup.callback(tracing.disable)

    def use() -> None:
        tracing.enable()
        tracing.disable()

    return use
