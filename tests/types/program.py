"""A program of a user, which mypy --strict and pyright accept. test_types.py gives it to both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from transformers import PreTrainedModel, TrainerCallback

import vitcache
from vitcache import (
    Attachment,
    AttachStats,
    CacheStats,
    Chunk,
    EmbeddingCache,
    EmbedResult,
    Item,
    Lease,
    Namespace,
    PinnedRing,
    Span,
    TierHits,
    VisionPipeline,
    scatter_embeddings,
)


class TrainerCallbacks(Protocol):
    def add_callback(self, callback: TrainerCallback) -> None: ...


def attach_model(model: PreTrainedModel) -> str:
    with (
        EmbeddingCache(64, device_bytes="1GiB", host_bytes=4 << 30, policy="s3fifo") as cache,
        vitcache.attach(model, cache, namespace=Namespace("my-model"), fingerprint_calls=100) as attachment,
    ):
        stats = use(attachment)
    return f"{stats.hit_rate:.2f} of {stats.hits + stats.encoded} items"


def invalidate_while_training(attachment: Attachment, trainer: TrainerCallbacks, owner: object) -> int:
    """The lines of docs/changes.md for weights that are written in a way that `attach` cannot notice."""
    trainer.add_callback(vitcache.InvalidateCallback(attachment))
    handle = vitcache.invalidate_after(owner, "sync_weights", attachment.invalidate, attachment.cache.clear)
    handle.remove()
    attachment.invalidate()
    attachment.cache.advance_epoch()
    counts: Mapping[str, int] = attachment.stats().changes
    return sum(counts.values())


def use(attachment: Attachment) -> AttachStats:
    vitcache.tracing.enable()
    print(attachment.cache.stats().entries)
    return attachment.stats()


def rows_of(cache: EmbeddingCache, key: bytes) -> torch.Tensor | None:
    lease: Lease | None = cache.get(key, num_rows=4)
    if lease is None:
        return None
    with lease:
        return lease.to_tensor()


def write_rows(cache: EmbeddingCache, inputs_embeds: torch.Tensor, image: torch.Tensor) -> int:
    key = vitcache.content_key(image, namespace=Namespace("my-model", tenant="one"))
    if not cache.put(key, image):
        return 0
    lease = cache.get(key)
    if lease is None:
        return 0
    with lease:
        placed = scatter_embeddings(inputs_embeds, [lease, image], [Span(0, 4), [Span(8, 2)]])
    return int(placed.shape[0])


def encode(features: list[torch.Tensor], items: list[Item]) -> list[torch.Tensor]:
    return [feature.flatten(1)[: item.num_rows] for feature, item in zip(features, items, strict=True)]


def run_step(cache: EmbeddingCache, ring: PinnedRing, input_ids: torch.Tensor, weight: torch.Tensor) -> float:
    tiles = [torch.zeros(2, 8), torch.zeros(2, 8)]
    items = [Item(torch.zeros(4, 8), [Span(1, 4)]), Item(tiles, Span(5, 2), move_feature=False)]
    chunk = Chunk(items, 0, 8)
    with VisionPipeline(encode, cache, namespace=Namespace("my-model"), ring=ring) as pipeline:
        result: EmbedResult = pipeline.embed([chunk], input_ids, weight)
    for error in result.errors:
        print(error.item, error.expected, error.found, error.cause)
    ticket = ring.copy_to(torch.empty(2), torch.zeros(2), timeout_s=1.0)
    ticket.synchronize()
    return float(result.inputs_embeds.sum()) if ticket.done else 0.0


def report(stats: CacheStats) -> dict[str, float]:
    device: TierHits = stats.device
    return {"hit_rate": stats.hit_rate, "host_hits": stats.host.hits, "saved_ms": device.saved_ms}
