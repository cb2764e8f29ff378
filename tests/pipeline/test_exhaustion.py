"""No memory for one item: that item fails, and the other items of the step are right."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from caches import make_cache
from pipeline_scene import Tower, embed, feature

from vitcache import Chunk, Item, Items, Span, VisionPipeline
from vitcache.pages.reservation import Reservation

NO_MEMORY = MemoryError("no memory")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_item_whose_rows_cannot_be_stored_fails_alone(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    write = Reservation.write_checked
    written: list[Reservation] = []

    def write_or_fail(reservation: Reservation, rows: torch.Tensor) -> None:
        written.append(reservation)
        if len(written) == number + 1:
            raise NO_MEMORY
        write(reservation, rows)

    items = [Item(feature(seed, 2), Span(3 * seed, 2)) for seed in range(4)]
    pipeline = VisionPipeline(Tower(reuses_memory=True), make_cache(), max_rows_per_encode=2)
    with monkeypatch.context() as patch:
        patch.setattr(Reservation, "write_checked", write_or_fail)
        (error,) = embed(pipeline, [Chunk(items, 0, 12)], 12, failed=[items[number]])
    assert (error.item, error.cause) == (number, NO_MEMORY)
    assert len(pipeline.cache) == 3
    assert embed(pipeline, [Chunk(items, 0, 12)], 12) == []


@pytest.mark.parametrize("max_rows", [2, 99])
def test_item_whose_rejected_rows_cannot_be_rounded_fails_alone(
    monkeypatch: pytest.MonkeyPatch, max_rows: int
) -> None:
    to = torch.Tensor.to

    def to_or_fail(rows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args[:1] == (torch.bfloat16,) and len(rows) == 6:
            raise NO_MEMORY
        return to(rows, *args, **kwargs)

    def encode(features: list[torch.Tensor], items: list[Item]) -> list[torch.Tensor]:
        return [part[::2, :1].expand(-1, 4) for part in features]

    counts = [2, 6, 2]
    items = [Item(feature(seed, counts[seed]), Span(8 * seed, 2), num_rows=counts[seed]) for seed in range(3)]
    cache = make_cache(2, dtype=torch.bfloat16)  # the item of 6 rows does not fit
    pipeline = VisionPipeline(encode, cache, max_rows_per_encode=max_rows)
    monkeypatch.setattr(torch.Tensor, "to", to_or_fail)
    result = pipeline.place([Chunk(items, 0, 24)], torch.full((24, 4), 9.0))
    (error,) = result.errors
    assert (error.item, error.cause) == (1, NO_MEMORY)
    for number in (0, 2):
        wanted = items[number].feature[::2, :1].bfloat16().float().expand(-1, 4)
        assert torch.equal(result.inputs_embeds[8 * number : 8 * number + 2], wanted)
    assert torch.equal(result.inputs_embeds[8:10], torch.zeros(2, 4))
    cache.check_integrity()


def test_rows_that_cannot_be_kept_are_placed_and_encoded_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_memory(rows: torch.Tensor) -> torch.Tensor:
        raise NO_MEMORY

    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache(1))  # no room for 4 rows
    items = Items([Item(feature(0, 4), Span(0, 4))])
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "clone", no_memory)
        assert pipeline.place([Chunk(items, 0, 2)], torch.zeros(2, 4)).errors == []
    assert "rows of 64 bytes are not kept: no memory" in caplog.text
    assert embed(pipeline, [Chunk(items, 2, 2)], 2) == []
    assert len(tower.calls) == 2


SCRIPT = """
import resource, torch, numpy
from vitcache import Chunk, EmbeddingCache, Item, Span, VisionPipeline

def encode(features, items):
    return [torch.ones(2**40 if item.context == "rows" else 2, 4) for item in items]

def load():
    return numpy.ones(2**40, dtype=numpy.float32)

cache = EmbeddingCache(4, dtype=torch.float32, device="cpu", device_bytes=1 << 16, page_rows=2)
pipeline = VisionPipeline(encode, cache)
items = [Item(torch.zeros(2, 4), Span(0, 2)), Item(load, Span(3, 2), num_rows=2),
         Item(torch.zeros(2, 4) + 1, Span(6, 2), context="rows"),
         Item(load, Span(9, 2), num_rows=2, key=bytes(32)), Item(torch.zeros(2, 4) + 2, Span(12, 2))]
resource.setrlimit(resource.RLIMIT_AS, (1 << 36, 1 << 36))  # 64 GiB: less than an item needs
result = pipeline.embed([Chunk(items, 0, 14)], torch.zeros(14, dtype=torch.int64), torch.full((1, 4), 0.5))
print([error.item for error in result.errors], [type(error.cause).__name__ for error in result.errors])
print(result.inputs_embeds[:, 0].tolist(), len(cache))
cache.check_integrity()
"""


def test_items_that_need_more_memory_than_the_process_may_have_fail_alone() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    errors, rows = ran.stdout.splitlines()
    assert errors.startswith("[1, 2, 3] [")
    assert rows == "[1.0, 1.0, 0.5, 0.0, 0.0, 0.5, 0.0, 0.0, 0.5, 0.0, 0.0, 0.5, 1.0, 1.0] 2"
