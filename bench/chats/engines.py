"""What engines do about images, behind the interface of `VisionPipeline` that the prefill driver uses.

All of them copy features by ``.to`` from pageable memory on the compute stream, and merge rows by a
concatenation, a mask and ``masked_scatter``, as SGLang and transformers do (see `contenders` for the merge
alone, with sources). They differ in what is encoded when, and in what is kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from vitcache import Chunk, EmbedResult, Item, Prefetch, clip_spans

Encode = Callable[[list[Tensor], list[Item]], Tensor]


class Engine(ABC):
    """The part that all have in common. `rows_of` is where they differ."""

    def __init__(self, encode: Encode, image_token: int) -> None:
        self._encode = encode
        self._image_token = image_token

    @abstractmethod
    def rows_of(self, items: Sequence[Item], needed: list[int], device: torch.device) -> dict[int, Tensor]:
        """Rows of at least the items of a request that its chunk needs, by their position."""

    @property
    def kept_bytes(self) -> int:
        """Bytes of the rows that are kept between calls."""
        return 0

    @torch.no_grad()
    def embed(
        self, chunks: Sequence[Chunk], input_ids: Tensor, weight: Tensor, *, deepstack: Tensor
    ) -> EmbedResult:
        """As `VisionPipeline.embed`, for one chunk, its images in prompt order and none that fails."""
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
        """The key that the item came with: all items of the benches have one."""
        return item.key

    def prefetch(self, chunks: Sequence[Chunk], *, encode: bool) -> Prefetch:
        """Does nothing: none of them does."""
        return Prefetch()

    def cancel(self, handle: Prefetch) -> None:
        """For which nothing was begun."""
        handle.cancel()

    def encode(self, items: Sequence[Item], device: torch.device) -> list[Tensor]:
        """Move the features of items, encode all of them in one call, and return the rows of each."""
        features = [item.feature.to(device) for item in items]
        return list(self._encode(features, list(items)).split([item.num_rows for item in items]))


class NoCache(Engine):
    """All images of a request are encoded together for each of its chunks with images."""

    def rows_of(self, items: Sequence[Item], needed: list[int], device: torch.device) -> dict[int, Tensor]:
        """See `Engine`."""
        return dict(enumerate(self.encode(items, device)))


class RequestKey(Engine):
    """One entry for the images of a request together: any new one misses all, and all are encoded."""

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
    """A dict from image to rows, without a bound: what a chunk needs and it lacks is encoded together."""

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
