"""Mistakes of a user: mypy --strict and pyright report each line with `# wrong`, and no other line."""

from __future__ import annotations

import torch

import vitcache
import vitcache.cache
from vitcache import EmbeddingCache, Item, Itemm, Namespace, PinnedRing, Span, VisionPipeline  # wrong
from vitcache.keys import content_keys  # wrong


def names(cache: EmbeddingCache) -> None:
    vitcache.nonsense(cache)  # wrong
    vitcache.cache.EmbedingCache(8, device_bytes=1 << 20)  # wrong
    cache.stats().hit  # wrong
    cache.discards(bytes(32))  # wrong


def types(cache: EmbeddingCache, ring: PinnedRing) -> None:
    EmbeddingCache("64", device_bytes="1GiB")  # wrong
    cache.put("key", torch.zeros(2, 64))  # wrong
    cache.put(bytes(32), [[1.0, 2.0]])  # wrong
    Span("0", 4)  # wrong
    Item(None, None, move_feature="no")  # wrong
    Namespace(epoch="1", model="my-model")  # wrong
    ring.copy_to(torch.zeros(2), torch.zeros(2), timeout_s="1")  # wrong
    vitcache.scatter_embeddings(torch.zeros(8, 4), [3], [0])  # wrong
    vitcache.attach(None, cache, namspace="my-model")  # wrong


def missing(cache: EmbeddingCache) -> None:
    EmbeddingCache(64)  # wrong
    cache.put(bytes(32))  # wrong
    VisionPipeline(cache=cache)  # wrong
    Namespace()  # wrong


def lease_may_be_none(cache: EmbeddingCache) -> torch.Tensor:
    return cache.get(bytes(32)).to_tensor()  # wrong


def result_is_a_bool(cache: EmbeddingCache) -> str:
    return cache.put(bytes(32), torch.zeros(2, 64))  # wrong
