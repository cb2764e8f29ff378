"""Engines' strategies for images, with the methods of `VisionPipeline` that the prefill driver calls.

Each engine copies features by ``.to`` from pageable memory on the compute stream. It merges rows by a
concatenation, a mask and ``masked_scatter``, as SGLang and transformers do; `contenders` contains only the
merge, with sources. The engines differ in the images that they encode for a chunk, and in the rows that they
keep.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from vitcache import Chunk, EmbedResult, Item, Prefetch, clip_spans

Encode = Callable[[list[Tensor], list[Item]], Tensor]


class Engine(ABC):
    """The common part of all engines. Subclasses implement `rows_of`."""

    cache = SimpleNamespace(has_lower_tiers=False)  # `ChunkedPrefill` asks the cache of its pipeline

    def __init__(self, encode: Encode, image_token: int) -> None:
        self._encode = encode
        self._image_token = image_token

    @abstractmethod
    def rows_of(self, items: Sequence[Item], needed: list[int], device: torch.device) -> dict[int, Tensor]:
        """Return rows by item position, for at least the positions in `needed`."""

    @property
    def kept_bytes(self) -> int:
        """Bytes of the rows that the engine keeps between calls."""
        return 0

    @torch.no_grad()
    def embed(
        self, chunks: Sequence[Chunk], input_ids: Tensor, weight: Tensor, *, deepstack: Tensor
    ) -> EmbedResult:
        """As `VisionPipeline.embed`, for one chunk whose images are in prompt order; raises if one fails."""
        [chunk] = chunks
        clipped = [clip_spans(item.spans, chunk.start, chunk.length) for item in chunk.items]
        needed = [position for position, spans in enumerate(clipped) if spans]
        inputs_embeds = embedding(input_ids, weight)
        deepstack.zero_()
        if needed:
            rows = self.rows_of(chunk.items, needed, weight.device)
            packed = torch.cat(
                [
                    rows[position][span.source_start : span.source_start + span.length]
                    for position in needed
                    for span in clipped[position]
                ]
            )
            mask = (input_ids == self._image_token)[:, None].expand_as(inputs_embeds)
            levels = packed.split(weight.shape[1], dim=1)
            inputs_embeds = inputs_embeds.masked_scatter(mask, levels[0])
            for destination, level in zip(deepstack, levels[1:], strict=True):
                destination.masked_scatter_(mask, level)
        return EmbedResult(inputs_embeds, [])

    def key(self, item: Item) -> bytes | None:
        """Return the item's own key; all items of the benches have one."""
        return item.key

    def prefetch(self, chunks: Sequence[Chunk], *, encode: bool) -> Prefetch:
        """Do nothing: these engines do not prefetch."""
        return Prefetch()

    def cancel(self, handle: Prefetch) -> None:
        """Cancel the handle; `prefetch` started no work."""
        handle.cancel()

    def encode(self, items: Sequence[Item], device: torch.device) -> list[Tensor]:
        """Copy the features of all items to `device`, encode them in one call; return each item's rows."""
        features = [item.feature.to(device) for item in items]
        return list(self._encode(features, list(items)).split([item.num_rows for item in items]))


class NoCache(Engine):
    """Encodes all images of a request together, for each of its chunks that contains an image."""

    def rows_of(self, items: Sequence[Item], needed: list[int], device: torch.device) -> dict[int, Tensor]:
        """See `Engine`."""
        return dict(enumerate(self.encode(items, device)))


class RequestKey(Engine):
    """Keeps one entry for all images of a request: if one image is new, all are encoded."""

    def __init__(self, encode: Encode, image_token: int) -> None:
        super().__init__(encode, image_token)
        self._key: Any = None
        self._rows: list[Tensor] = []

    @property
    def kept_bytes(self) -> int:
        """See `Engine`."""
        return sum(rows.nbytes for rows in self._rows)

    def rows_of(self, items: Sequence[Item], needed: list[int], device: torch.device) -> dict[int, Tensor]:
        """See `Engine`."""
        key = tuple(item.key for item in items)
        if key != self._key:
            self._rows = self.encode(items, device)
            self._key = key
        return dict(enumerate(self._rows))


class ImageDict(Engine):
    """Keeps the rows of each image in a dict of unlimited size; encodes a chunk's missing images together."""

    def __init__(self, encode: Encode, image_token: int) -> None:
        super().__init__(encode, image_token)
        self._rows: dict[bytes | None, Tensor] = {}

    @property
    def kept_bytes(self) -> int:
        """See `Engine`."""
        return sum(rows.nbytes for rows in self._rows.values())

    def rows_of(self, items: Sequence[Item], needed: list[int], device: torch.device) -> dict[int, Tensor]:
        """See `Engine`."""
        missing = [items[position] for position in needed if items[position].key not in self._rows]
        if missing:
            for item, rows in zip(missing, self.encode(missing, device), strict=True):
                self._rows[item.key] = rows
        return {position: self._rows[items[position].key] for position in needed}
