"""A vision tower that records its calls, and the expected output of a step, computed token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitcache import Chunk, Item, ItemError, VisionPipeline
from vitcache.testing import inspect

HIDDEN = 4
VOCABULARY = 11


def feature(seed: int, num_rows: int) -> Tensor:
    """A feature of two patches per row."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2 * num_rows, 3, generator=generator)


def as_floats(values: Tensor | np.ndarray) -> Tensor:
    """A feature as the tower reads it: a float32 tensor."""
    return values.float() if isinstance(values, Tensor) else torch.from_numpy(np.array(values)).float()


def encode_one(patches: Tensor | np.ndarray, width: int = HIDDEN) -> Tensor:
    """The tower's output for one feature: rows ``(patches / 2, width)``."""
    pairs = as_floats(patches).reshape(len(patches) // 2, -1)
    return torch.stack([pairs.sum(1) * (column + 1) for column in range(width)], dim=1)


class Tower:
    """An encoder that calls `encode_one`, and records the items and features of each call.

    `fails` is called with each item, and may raise. With `reuses_memory` each call overwrites the rows of the
    previous call. With `packed` the rows of a call are one tensor, if all have one width. The width of an
    item's rows is `Item.row_width`, or `width`.
    """

    def __init__(
        self,
        width: int = HIDDEN,
        *,
        fails: Callable[[Item], None] | None = None,
        reuses_memory: bool = False,
        packed: bool = False,
    ) -> None:
        self.width = width
        self.calls: list[list[Item]] = []
        self.features: list[Tensor] = []
        self.fails = fails
        self.packed = packed
        self._memory = torch.empty(256, width) if reuses_memory else None

    def __call__(self, features: list[Tensor], items: list[Item]) -> Sequence[Tensor] | Tensor:
        assert len(features) == len(items) > 0
        self.calls.append(list(items))
        self.features += features
        for item in items:
            if self.fails is not None:
                self.fails(item)
        widths = [item.row_width or self.width for item in items]
        rows = [encode_one(patches, width) for patches, width in zip(features, widths, strict=True)]
        if self._memory is not None:
            self._memory.fill_(float("nan"))
            reused, first = [], 0
            for part in rows:
                reused.append(self._memory[first : first + len(part), : part.shape[1]].copy_(part))
                first += len(part)
            rows = reused
        return torch.cat(rows) if self.packed and len(set(widths)) == 1 else rows

    @property
    def encoded(self) -> list[Item]:
        """The items of all calls, in order."""
        return [item for call in self.calls for item in call]


def expected(
    chunks: Sequence[Chunk],
    input_ids: Tensor,
    weight: Tensor,
    *,
    levels: int = 0,
    failed: Sequence[Item] = (),
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """The expected `inputs_embeds` and deepstack, computed token by token; zeros where a row is narrower."""
    tokens = input_ids.reshape(-1)
    width = HIDDEN * (1 + levels)
    rows = torch.zeros(len(tokens), width)
    is_image = torch.zeros(len(tokens), dtype=torch.bool)
    for chunk in chunks:
        for item in chunk.items:
            made = None
            for span in item.spans:
                for step in range(span.length):
                    token = span.start + step - chunk.start
                    if not 0 <= token < chunk.length:
                        continue
                    token += chunk.token_offset
                    is_image[token] = True
                    if item in failed:
                        continue
                    if made is None:
                        loaded = item.feature() if callable(item.feature) else item.feature
                        item_width = item.row_width or width
                        made = (
                            item.rows if item.rows is not None else encode_one(loaded, item_width).to(dtype)
                        )
                    rows[token, : made.shape[1]] = made[span.source_start + step]
    out = rows[:, :HIDDEN].to(weight.dtype)
    out[~is_image] = weight[tokens[~is_image]]
    deepstack = rows[:, HIDDEN:].reshape(len(tokens), levels, HIDDEN).transpose(0, 1).contiguous()
    return out.reshape(*input_ids.shape, HIDDEN), deepstack


def make_weight() -> Tensor:
    return torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(7))


def make_ids(*shape: int) -> Tensor:
    """Random ids of the vocabulary. `hide_images` replaces the ids at image tokens."""
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(8))


def hide_images(input_ids: Tensor, chunks: Sequence[Chunk]) -> Tensor:
    """The ids, with a hash value outside the vocabulary at each image token, as inference engines pass."""
    hidden = input_ids.clone().reshape(-1)
    for chunk in chunks:
        for item in chunk.items:
            for span in item.spans:
                for token in range(span.start, span.stop):
                    if chunk.start <= token < chunk.start + chunk.length:
                        hidden[token - chunk.start + chunk.token_offset] = 10**12 + token
    return hidden.reshape(input_ids.shape)


def embed(
    pipeline: VisionPipeline, chunks: list[Chunk], num_tokens: int, *, failed: Any = (), levels: int = 0
) -> list[ItemError]:
    """Embed a step into memory filled with NaN, compare every token, and return the errors."""
    ids, weight = make_ids(num_tokens), make_weight()
    out = torch.full((num_tokens, HIDDEN), float("nan"))
    deepstack = torch.full((levels, num_tokens, HIDDEN), float("nan")) if levels else None
    result = pipeline.embed(chunks, hide_images(ids, chunks), weight, out=out, deepstack=deepstack)
    wanted, wanted_levels = expected(chunks, ids, weight, failed=failed, levels=levels)
    assert result.inputs_embeds is out
    assert torch.equal(out, wanted)
    if deepstack is not None:
        assert torch.equal(deepstack, wanted_levels)
    pipeline.cache.check_integrity()
    assert pipeline.cache.stats().leased_pages == 0
    assert inspect(pipeline.cache).num_claims == 0
    return result.errors


def place(
    pipeline: VisionPipeline, chunks: list[Chunk], num_tokens: int, *, failed: Any = (), levels: int = 0
) -> list[ItemError]:
    """Place a step into text rows, compare every token and every deepstack row, and return the errors."""
    ids = make_ids(num_tokens)
    inputs_embeds = make_weight()[ids]
    deepstack = torch.full((levels, num_tokens, HIDDEN), 7.0) if levels else None
    version = inputs_embeds._version
    result = pipeline.place(chunks, inputs_embeds, deepstack=deepstack)
    assert result.inputs_embeds is inputs_embeds
    assert inputs_embeds._version > version
    wanted, wanted_levels = expected(chunks, ids, make_weight(), failed=failed, levels=levels)
    assert torch.equal(inputs_embeds, wanted)
    if deepstack is not None:
        wanted_levels[:, ~image_tokens(chunks, num_tokens)] = 7.0
        assert torch.equal(deepstack, wanted_levels)
    pipeline.cache.check_integrity()
    assert pipeline.cache.stats().leased_pages == 0
    assert inspect(pipeline.cache).num_claims == 0
    return result.errors


def image_tokens(chunks: list[Chunk], num_tokens: int) -> Tensor:
    """Which tokens of the batch belong to an item."""
    found = torch.zeros(num_tokens, dtype=torch.bool)
    for chunk in chunks:
        for item in chunk.items:
            for span in item.spans:
                for token in range(max(span.start, chunk.start), min(span.stop, chunk.start + chunk.length)):
                    found[token - chunk.start + chunk.token_offset] = True
    return found
