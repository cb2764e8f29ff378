"""The program of one of two ranks whose encoder calls a collective. test_distributed starts it."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pytest
import torch
from caches import make_cache
from pipeline_scene import HIDDEN, encode_one, expected, feature, make_ids, make_weight
from ranks import end_rank, run_rank
from torch import distributed

from vitcache import Chunk, Item, Span, VisionPipeline
from vitcache.adapters.distributed import agree_over


def key(number: int) -> bytes:
    return bytes([number]) * 32


def fail_to_load() -> torch.Tensor:
    raise OSError("damaged file")


def check_agreement(rank: int) -> None:
    """Call the object of `agree_over` itself."""
    agree, calls, original = agree_over(), [], distributed.all_reduce

    def all_reduce(tensor: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        calls.append(tensor.nbytes)
        return original(tensor, *arguments, **named)

    distributed.all_reduce = all_reduce
    for number in (0, 1, 62, 63, 200):
        states = torch.arange(number, dtype=torch.uint8) % 3
        shared = agree.states(states.flip(0) if rank else states)
        assert torch.equal(shared, torch.maximum(states, states.flip(0)))
        flags = torch.arange(number) % 4 == rank
        assert torch.equal(agree(flags), torch.arange(number) % 4 < 2)
    assert calls == [256] * 6 + [256, 4] * 2 + [256, 552] * 2, calls
    assert agree.are_equal(7)
    assert not agree.are_equal(7 + rank)
    assert not agree.are_equal((1 << 30) - 1 if rank else 0)
    if rank:
        assert not agree.are_equal(3)
    else:
        with pytest.raises(RuntimeError, match="the calls of the ranks differ"):
            agree.states(torch.ones(3))
    assert agree.are_equal(9)  # the calls have one size: the ranks are still in step


def main(mode: str) -> None:
    rank = int(os.environ["RANK"])
    store = distributed.FileStore(os.environ["STORE"], 2)
    distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=20)
    )
    if mode == "agreement":
        check_agreement(rank)
        end_rank()
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
    damaged = int(mode.removeprefix("damaged")) if mode.startswith("damaged") else None
    if damaged is not None and rank == 1:
        items[damaged] = Item(fail_to_load, items[damaged].spans, key=key(damaged))
    if mode == "sizes":
        items = items[: rank + 1]
    ids, weight = make_ids(16), make_weight()
    if mode == "alone" and rank == 0:
        items = (
            items[:1] + items[2:]
        )  # this rank misses one item, the other rank two: the ranks' numbers of collectives differ
    result = pipeline.embed([Chunk(items, 0, 16)], ids, weight)
    if damaged is None and result.errors:
        raise result.errors[0].cause
    failed = [] if damaged is None else [items[damaged]]
    assert len(result.errors) == len(failed), result.errors
    assert torch.allclose(
        result.inputs_embeds, expected([Chunk(items, 0, 16)], ids, weight, failed=failed)[0]
    )
    causes = [type(error.cause).__name__ for error in result.errors]
    assert result.inputs_embeds.shape == (16, HIDDEN)
    assert pipeline.prefetch([Chunk(items, 0, 16)]).wait(60) is None
    print("encoded", encoded, *causes)
    end_rank()


if __name__ == "__main__":
    run_rank(main)
