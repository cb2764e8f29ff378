"""A signal handler at any line of a call of the pipeline: it raises, or it calls the pipeline itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from caches import make_cache
from hang_guard import Running
from interrupts import interrupt
from pipeline_scene import HIDDEN, Tower, expected, feature, make_ids, make_weight
from torch import Tensor

import vitcache
from vitcache import Chunk, Item, Items, Span, VisionPipeline
from vitcache.testing import inspect

PACKAGE = Path(vitcache.__file__).parent
FILES = {str(path) for room in ("pipeline", "cache", "pages") for path in (PACKAGE / room).rglob("*.py")}
WEIGHT = make_weight()
NUM_TOKENS = 24


class Scene:
    """A pipeline over a small cache, and a step with a hit, misses, precomputed rows and rejected rows."""

    def __init__(self) -> None:
        self.pipeline = VisionPipeline(Tower(), make_cache(6, 2), max_rows_per_encode=4, namespace=b"scene")
        self.hit = Item(feature(0, 2), Span(0, 2), key=b"h" * 32)
        self.items = Items(
            [
                self.hit,
                Item(feature(1, 2), Span(3, 2), key=b"k" * 32),
                Item(feature(2, 2), Span(6, 2)),
                Item(partial(feature, 3, 3), Span(9, 3), num_rows=3),
                Item(None, Span(13, 2), rows=torch.ones(2, HIDDEN)),
                Item(feature(4, 30), Span(16, 4), num_rows=30),  # the cache rejects it
            ]
        )
        assert self.embed(0, 2) == []

    def embed(self, start: int = 0, stop: int = NUM_TOKENS) -> list[Any]:
        """Embed some of the tokens, compare the rows, and return the errors."""
        chunks, ids = [Chunk(self.items, start, stop - start)], make_ids(stop - start)
        result = self.pipeline.embed(chunks, ids, WEIGHT)
        if not result.errors:
            assert torch.equal(result.inputs_embeds, expected(chunks, ids, WEIGHT)[0])
        return result.errors

    def place(self) -> Tensor:
        chunks, ids = [Chunk(self.items, 0, NUM_TOKENS)], make_ids(NUM_TOKENS)
        return self.pipeline.place(chunks, WEIGHT[ids]).inputs_embeds

    def prefetch(self) -> None:
        handle = self.pipeline.prefetch([Chunk(self.items, 0, NUM_TOKENS)])
        handle.cancel()
        self.pipeline.cancel(handle)

    def close(self) -> None:
        self.pipeline.prefetch([Chunk(self.items, 0, NUM_TOKENS)]).wait(60)
        self.pipeline.close()

    def check(self, line: int) -> None:
        """Check that nothing is held and that another thread gets the right rows; then close the pipeline."""
        cache = self.pipeline.cache
        if not self.pipeline._is_closed:
            [errors] = Running(self.embed).results()
            assert errors == [], line
        Running(self.pipeline.close).results()
        cache.check_integrity()
        assert cache.stats().leased_pages == 0, line
        assert inspect(cache).num_claims == 0, line
        assert self.pipeline._runner.turn.holder is None, line


@pytest.mark.parametrize("name", ["embed", "place", "prefetch", "close"])
def test_a_call_interrupted_at_any_line_holds_nothing_and_the_next_one_is_right(name: str) -> None:
    line, is_interrupted = 1, True
    while is_interrupted:
        scene = Scene()
        is_interrupted = interrupt(getattr(scene, name), line, FILES)
        scene.check(line)
        line += 1
    assert line > 20


def reenter(scene: Scene, found: list[Any]) -> None:
    """Call the pipeline as a signal handler might. A call that needs the encoder may be refused."""
    calls: list[Callable[[], Any]] = [
        scene.pipeline.cache.stats,
        partial(scene.embed, 0, 2),
        partial(scene.embed, 0, 5),
        partial(scene.pipeline.key, Item(feature(9, 2), Span(0, 2))),
        partial(scene.pipeline.cache.get, b"x" * 32),
    ]
    for call in calls:
        try:
            found.append(call())
        except RuntimeError as error:
            assert " was called from inside " in str(error) or "was closed" in str(error), error
            found.append(error)


@pytest.mark.parametrize("name", ["embed", "place", "prefetch", "close"])
def test_a_handler_that_calls_the_pipeline_at_any_line_works_or_is_refused(name: str) -> None:
    line, was_called, num_refused = 1, True, 0
    while was_called:
        scene, found = Scene(), []
        running = Running(
            partial(interrupt, getattr(scene, name), line, FILES, partial(reenter, scene, found))
        )
        [was_called] = running.results()
        if isinstance(was_called, BaseException):
            raise was_called
        assert len(found) == (5 if was_called else 0), line
        num_refused += sum(isinstance(result, RuntimeError) for result in found)
        scene.check(line)
        line += 1
    assert line > 20
    if name in ("embed", "place"):
        assert num_refused > 0
