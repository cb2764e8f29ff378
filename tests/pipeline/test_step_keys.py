"""The keys of a step: its items are loaded and hashed in the order in which the step needs them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest
import torch
from caches import make_cache
from pipeline_scene import HIDDEN, Tower, feature

from vitcache import Chunk, Item, Items, KeyThreads, Span, VisionPipeline
from vitcache.pipeline import step_keys, vision_pipeline


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


def started_features(
    monkeypatch: pytest.MonkeyPatch, pipeline: VisionPipeline, items: list[Item]
) -> tuple[list[float], list[float]]:
    """Embed the items; return the first values of the features that were moved early, and of all."""
    moved: list[float] = []
    early: list[float] = []
    start, run = pipeline._mover.start, pipeline._runner.run

    def note_start(feature: torch.Tensor, **options: Any) -> Any:
        moved.append(float(feature[0, 0]))
        return start(feature, **options)

    def note_run(step_items: Any) -> None:
        early.extend(moved)
        run(step_items)

    monkeypatch.setattr(pipeline._mover, "start", note_start)
    monkeypatch.setattr(pipeline._runner, "run", note_run)
    num_tokens = items[-1].spans[-1].stop
    assert pipeline.place([Chunk(items, 0, num_tokens)], torch.zeros(num_tokens, HIDDEN)).errors == []
    return early, moved


def test_features_start_early_in_step_order_whichever_is_hashed_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    last_is_loaded = threading.Event()

    def load(number: int) -> torch.Tensor:
        if number == 1:
            last_is_loaded.set()
        else:
            assert last_is_loaded.wait(60)
        return torch.full((4, 3), float(number))

    monkeypatch.setattr(vision_pipeline, "KeyThreads", partial(KeyThreads, 2))
    with VisionPipeline(Tower(), make_cache()) as pipeline:
        items = [Item(partial(load, number), Span(2 * number, 2), num_rows=2) for number in range(2)]
        early, _ = started_features(monkeypatch, pipeline, items)
    assert early == [0, 1]


def test_features_of_at_most_one_micro_batch_start_early(monkeypatch: pytest.MonkeyPatch) -> None:
    for max_rows, num_early in ((5, 2), (4, 2), (3, 1), (1, 1), (6, 3)):
        items = [Item(torch.full((4, 3), float(number)), Span(2 * number, 2)) for number in range(3)]
        with VisionPipeline(Tower(), make_cache(), max_rows_per_encode=max_rows) as pipeline:
            early, moved = started_features(monkeypatch, pipeline, items)
        assert (early, moved) == ([0, 1, 2][:num_early], [0, 1, 2])


def test_no_feature_starts_early_behind_one_without_free_bytes_in_the_ring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    items = [Item(torch.full((4, 3), float(number)), Span(2 * number, 2)) for number in range(3)]
    with VisionPipeline(Tower(), make_cache()) as pipeline:
        monkeypatch.setattr(pipeline._mover, "has_free_bytes", lambda feature: float(feature[0, 0]) != 1)
        early, moved = started_features(monkeypatch, pipeline, items)
    assert (early, moved) == ([0], [0, 1, 2])


class SilentThreads(KeyThreads):
    """Threads whose `close` was interrupted at the worst moment: no future is put into the step's queue."""

    def submit_many(
        self, features: Sequence[Any], *, on_done: Any = None, **options: Any
    ) -> list[Future[Any]]:
        return super().submit_many(features, **options)


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_step_ends_although_no_future_is_put_into_its_queue(
    monkeypatch: pytest.MonkeyPatch, is_cancelled: bool
) -> None:
    monkeypatch.setattr(step_keys, "_CHECK_SECONDS", 0.01)
    monkeypatch.setattr(vision_pipeline, "KeyThreads", partial(SilentThreads, 1))
    with VisionPipeline(Tower(), make_cache()) as pipeline:

        def load(number: int) -> torch.Tensor:
            if is_cancelled:
                pipeline._keys.stop()  # cancels the second item
            return feature(number, 2)

        items = [Item(partial(load, number), Span(3 * number, 2), num_rows=2) for number in range(2)]
        inputs_embeds = torch.zeros(6, HIDDEN)
        if is_cancelled:
            with pytest.raises(RuntimeError, match="the pipeline was closed"):
                pipeline.place([Chunk(items, 0, 6)], inputs_embeds)
        else:
            assert pipeline.place([Chunk(items, 0, 6)], inputs_embeds).errors == []
