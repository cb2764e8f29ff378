"""The keys of a step: its items are loaded and hashed in the order in which the step needs them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from caches import make_cache
from pipeline_scene import HIDDEN, Tower, feature

from vitcache import Chunk, Item, Items, KeyThreads, Span, VisionPipeline
from vitcache.pipeline import vision_pipeline


def test_a_step_hashes_the_items_whose_tokens_it_needs_first_at_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vision_pipeline, "KeyThreads", partial(KeyThreads, 1))
    loaded: list[int] = []

    def load(number: int) -> torch.Tensor:
        loaded.append(number)
        return feature(number, 2)

    def items_at(starts: dict[int, int]) -> Items:
        """Items by the number that `load` records, at their first tokens, in this order."""
        return Items(
            [Item(partial(load, number), Span(start, 2), num_rows=2) for number, start in starts.items()]
        )

    first = items_at({10: 9, 11: 0, 12: 30, 13: 3})
    second = items_at({20: 6, 21: 2, 22: 0, 23: 20})
    chunks = [Chunk(second, 2, 8, token_offset=12), Chunk(first, 0, 12, token_offset=0)]
    with VisionPipeline(Tower(), make_cache()) as pipeline:
        pipeline.place(chunks, torch.zeros(20, HIDDEN))
    assert loaded == [21, 20, 11, 13, 10]  # by chunk, then by first token; no item outside of the windows
