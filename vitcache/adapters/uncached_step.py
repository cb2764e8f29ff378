"""A step without a cache: encodes every item of its chunks. It replaces a pipeline that is disabled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pipeline.feature_mover import as_tensor
from vitcache.pipeline.items import Chunk, Item, check_chunks
from vitcache.pipeline.results import EmbedResult, ItemError
from vitcache.pipeline.step_item import load_feature
from vitcache.placement.spans import Span, clip_spans

EncodeRows = Callable[[list[Tensor], list[Item]], Tensor]
Place = Callable[[list[Tensor], list[list[Span]]], Tensor]


@torch.no_grad()
def embed_uncached(
    encode: EncodeRows, cache: EmbeddingCache, chunks: Sequence[Chunk], place: Place
) -> EmbedResult:
    """Encode every item that overlaps a chunk, one per call of `encode`, and place its rows.

    No key is computed, nothing is looked up or inserted, and no ring is used. An item that occurs in several
    chunks is encoded once.

    Parameters
    ----------
    encode
        Returns the rows of one item, ``(num_rows, row_width)``, as `image_encoder` does.
    chunks
        As in `VisionPipeline`.
    cache
        Gives the device of the features, and the width and the dtype of the rows. It is not used otherwise.
    place
        Writes rows to their tokens: ``place(embeddings, spans)`` returns `inputs_embeds`.

    Returns
    -------
    EmbedResult
        As from `VisionPipeline.embed`. The rows of failed items are zero.

    Raises
    ------
    TypeError
        If `chunks` is not a list of `Chunk`; as `place`.
    ValueError, IndexError
        As `place`.
    """
    check_chunks(chunks)
    encoded: dict[int, Tensor | ItemError] = {}  # by `id` of the item, which its chunk keeps alive
    embeddings: list[Tensor] = []
    spans: list[list[Span]] = []
    errors: list[ItemError] = []
    for number, chunk in enumerate(chunks):
        for position, overlap in chunk.items.within(chunk.start, chunk.start + chunk.length).items():
            item = chunk.items[position]
            if id(item) not in encoded:
                encoded[id(item)] = _rows_of(item, encode, cache)
            rows = encoded[id(item)]
            if isinstance(rows, ItemError):
                errors.append(rows._replace(chunk=number, item=position))
                rows = torch.zeros(item.num_rows, cache.row_width, dtype=cache.dtype, device=cache.device)
            embeddings.append(rows)
            spans.append(
                [
                    span._replace(start=span.start + chunk.token_offset)
                    for span in clip_spans(overlap, chunk.start, chunk.length)
                ]
            )
    return EmbedResult(place(embeddings, spans), sorted(errors, key=lambda error: error[:2]))


def _rows_of(item: Item, encode: EncodeRows, cache: EmbeddingCache) -> Tensor | ItemError:
    """Return the rows of one item in the cache's dtype and on its device, or the error of the item."""
    found = None
    try:
        if item.rows is not None:
            return item.rows.detach().to(cache.device)
        feature = as_tensor(load_feature(item)).detach().to(cache.device)
        rows = encode([feature], [item])
        if rows.shape != (item.num_rows, cache.row_width):
            found = len(rows)
            raise ValueError(
                f"encode must return shape {(item.num_rows, cache.row_width)}, got {tuple(rows.shape)}"
            )
        return rows.to(cache.dtype)
    except Exception as error:
        return ItemError(0, 0, item.num_rows, found, error)
