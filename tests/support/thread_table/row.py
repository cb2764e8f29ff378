"""`Row`: one line of the table, and the use of the object that the tests of the line repeat."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from caches import make_cache
from pipeline_scene import HIDDEN, encode_one, feature, make_ids, make_weight

from vitcache import Chunk, Item, Span, VisionPipeline
from vitcache.cache.embedding_cache import EmbeddingCache

WORKS, RUNTIME_ERROR = "works", "RuntimeError"
Use = Callable[[], object]
NUM_ROWS = 2


class Scene:
    """A cache and a pipeline over it. Its encoder calls `in_encoder` before it encodes an item.

    Attributes
    ----------
    cleanup
        Ends the objects that a row has made.
    """

    def __init__(self) -> None:
        self.cleanup = ExitStack()
        self.cache: EmbeddingCache = self.cleanup.enter_context(make_cache(4096, width=HIDDEN))
        self.in_encoder: Callable[[], object] = lambda: None
        self.pipeline = self.new_pipeline()
        self._numbers = count(1)

    def new_pipeline(self) -> VisionPipeline:
        """Another pipeline over the same cache."""
        return self.cleanup.enter_context(VisionPipeline(self._encode, self.cache))

    def new_key(self) -> bytes:
        """A key that no other call returns."""
        return next(self._numbers).to_bytes(32, "big")

    def new_item(self, load: Callable[[], object] = lambda: None) -> Item:
        """An item that is not in the cache; `load` is called when its feature is loaded."""
        values = feature(next(self._numbers), NUM_ROWS)

        def load_feature() -> torch.Tensor:
            load()
            return values

        return Item(load_feature, Span(1, NUM_ROWS), context=values)

    def embed(self, pipeline: VisionPipeline, item: Item) -> None:
        """Run a step with an item, and check its rows."""
        result = pipeline.embed([Chunk([item], 0, 4)], make_ids(4), make_weight())
        if result.errors:
            raise result.errors[0].cause
        expected = encode_one(item.context)
        assert torch.equal(result.inputs_embeds[1 : 1 + NUM_ROWS], expected)

    def _encode(self, features: list[Any], items: list[Item]) -> list[Any]:
        self.in_encoder()
        return [encode_one(each) for each in features]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    name
        The object or the call.
    use
        Makes the object, and returns a function that uses it and checks the result. A further call of this
        function, from inside of the first one or from another thread, works or raises RuntimeError.
    stream
        The streams that the work is queued on.
    differs
        The places where a use raises RuntimeError; in the other places it works.
    needs
        The packages that the use needs.
    """

    name: str
    use: Callable[[Scene], Use]
    stream: str
    differs: frozenset[str] = frozenset()
    needs: tuple[str, ...] = field(default=())

    def expected(self, place: str) -> str:
        """`WORKS` or `RUNTIME_ERROR`."""
        return RUNTIME_ERROR if place in self.differs else WORKS
