"""The program of one of two ranks whose encoder calls a collective. test_distributed starts it."""

from __future__ import annotations

import os
import sys
import traceback
from datetime import timedelta

import torch
from caches import make_cache
from pipeline_scene import HIDDEN, encode_one, expected, feature, make_ids, make_weight
from ranks import end_rank
from torch import distributed

from vitcache import Chunk, Item, Span, VisionPipeline
from vitcache.adapters.distributed import agree_over


def key(number: int) -> bytes:
    return bytes([number]) * 32


def main(mode: str) -> None:
    rank = int(os.environ["RANK"])
    store = distributed.FileStore(os.environ["STORE"], 2)
    distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=20)
    )
    encoded: list[list[int]] = []

    def encode(features: list[torch.Tensor], items: list[Item]) -> list[torch.Tensor]:
        encoded.append([item.key[0] for item in items if item.key])
        halves = [encode_one(part) / 2 for part in features]
        for half in halves:
            distributed.all_reduce(half)  # like a tensor parallel layer
        return halves

    cache = make_cache()
    seeds = range(4)
    items = [Item(feature(seed, 3), Span(4 * seed, 3), key=key(seed)) for seed in seeds]
    for seed in (rank, 3):
        cache.put(key(seed), encode_one(feature(seed, 3)))
    agree = None if mode == "alone" else agree_over()
    pipeline = VisionPipeline(encode, cache, agree=agree, max_rows_per_encode=100)
    if mode == "sizes":
        items = items[: rank + 1]
    ids, weight = make_ids(16), make_weight()
    if mode == "alone" and rank == 0:
        items = (
            items[:1] + items[2:]
        )  # this rank misses one item, the other rank two: the ranks' numbers of collectives differ
    result = pipeline.embed([Chunk(items, 0, 16)], ids, weight)
    if mode != "agree" and result.errors:
        raise result.errors[0].cause
    assert not result.errors, result.errors
    assert torch.allclose(result.inputs_embeds, expected([Chunk(items, 0, 16)], ids, weight)[0])
    assert result.inputs_embeds.shape == (16, HIDDEN)
    assert pipeline.prefetch([Chunk(items, 0, 16)]).wait(60) is None
    print("encoded", encoded)
    end_rank()


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        # The threads of gloo run on: the destructors of an ordinary exit sometimes abort the process then.
        os._exit(1)
