"""One step of one request, from keys to `inputs_embeds`: vitcache and two forms of a plain dict.

`vllm_gather` and `sglang_gather` contain those of the engines. Each class keeps the rows of encoded items.
Its `step` finds the rows of all items by their keys, encodes the missing items in one call, and returns
`inputs_embeds`. `contenders` contains only the merges, without a cache.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding

from vitcache import Chunk, EmbeddingCache, Item, Items, Span, VisionPipeline

ROWS, WIDTH, VOCABULARY = 4, 8, 16


class Request:
    """A prompt with `items` items of `ROWS` rows, and one text token before, between and after them.

    Its `encode` takes almost no time, so that a measurement contains only the host time of the step.
    """

    def __init__(self, items: int) -> None:
        self.starts = [1 + item * (ROWS + 1) for item in range(items)]
        self.num_tokens = 1 + items * (ROWS + 1)
        self.keys = [os.urandom(32) for _ in range(items)]
        self.rows = list(torch.randn(items * ROWS, WIDTH).split(ROWS))
        self.weight = torch.randn(VOCABULARY, WIDTH)
        self.placeholder = VOCABULARY - 1
        self.ids = torch.randint(0, self.placeholder, (self.num_tokens,))
        for start in self.starts:
            self.ids[start : start + ROWS] = self.placeholder
        self.num_encoded = 0

    def encode(self, positions: Sequence[int]) -> list[Tensor]:
        """Return the rows of these items: slices of one tensor, as a tower's output for a batch."""
        self.num_encoded += len(positions)
        return [self.rows[position] for position in positions]

    def expected(self) -> Tensor:
        """Build `inputs_embeds` by a loop over the tokens."""
        out = torch.empty(self.num_tokens, WIDTH)
        for token in range(self.num_tokens):
            item, row = divmod(token - 1, ROWS + 1)
            is_text = token == 0 or row == ROWS
            out[token] = self.weight[self.ids[token]] if is_text else self.rows[item][row]
        return out


class Gather(ABC):
    """One implementation of the step of a request."""

    def __init__(self, request: Request) -> None:
        self.request = request

    @abstractmethod
    def step(self) -> Tensor:
        """Return `inputs_embeds` of the whole prompt."""

    @abstractmethod
    def forget(self) -> None:
        """Forget all rows, so that the next step misses all items."""

    def check(self) -> None:
        """Raise RuntimeError if a step that misses, or one that hits, differs from the loop over tokens."""
        expected, num_items = self.request.expected(), len(self.request.keys)
        for expected_encodes in (num_items, 0):
            before = self.request.num_encoded
            if not torch.equal(self.step(), expected):
                raise RuntimeError(f"{type(self).__name__} built rows unlike those of the loop over tokens")
            encoded = self.request.num_encoded - before
            if encoded != expected_encodes:
                raise RuntimeError(
                    f"{type(self).__name__} was expected to encode {expected_encodes} items, got {encoded}"
                )


class Dict(Gather):
    """A plain dict from key to rows; it keeps the encoder's output, without a copy and without a limit."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._rows: dict[bytes, Tensor] = {}
        self._places = [(start, start + ROWS) for start in request.starts]

    def forget(self) -> None:
        """See `Gather`."""
        self._rows.clear()

    def look_up(self) -> list[Tensor]:
        """Return the rows of all items; encode the missing items before."""
        rows, keys = self._rows, self.request.keys
        try:
            return [rows[key] for key in keys]
        except KeyError:
            missing = [position for position, key in enumerate(keys) if key not in rows]
            for position, encoded in zip(missing, self.request.encode(missing), strict=True):
                rows[keys[position]] = encoded
            return [rows[key] for key in keys]


class MaskedDict(Dict):
    """The standard form: `torch.cat`, and an assignment by a mask that each step makes from the places."""

    def step(self) -> Tensor:
        """See `Gather`."""
        request = self.request
        mask = torch.zeros(request.num_tokens, dtype=torch.bool)
        for start, stop in self._places:
            mask[start:stop] = True
        out = embedding(request.ids, request.weight)
        out[mask] = torch.cat(self.look_up())
        return out


class SlicedDict(Dict):
    """An assignment per item."""

    def step(self) -> Tensor:
        """See `Gather`."""
        out = embedding(self.request.ids, self.request.weight)
        for (start, stop), rows in zip(self._places, self.look_up(), strict=True):
            out[start:stop] = rows
        return out


class Vitcache(Gather):
    """`VisionPipeline.embed`: one `Items` for the request, and one new `Chunk` for each step."""

    def __init__(self, request: Request, cache: EmbeddingCache, pipeline: VisionPipeline) -> None:
        super().__init__(request)
        self._cache, self._pipeline = cache, pipeline
        self._items = Items(
            [
                Item(rows, Span(start, ROWS), key=key)
                for rows, start, key in zip(request.rows, request.starts, request.keys, strict=True)
            ]
        )

    def step(self) -> Tensor:
        """See `Gather`."""
        request = self.request
        chunk = Chunk(self._items, 0, request.num_tokens)
        inputs_embeds, errors = self._pipeline.embed([chunk], request.ids, request.weight)
        if errors:
            raise RuntimeError(f"the step has an error: {errors[0]}")
        return inputs_embeds

    def forget(self) -> None:
        """See `Gather`."""
        self._cache.clear()
