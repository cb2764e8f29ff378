"""A step without a cache: encodes every item of its chunks. It replaces a pipeline that is disabled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pipeline.feature_mover import as_tensor
from vitcache.pipeline.items import Chunk, Item, check_chunks
from vitcache.pipeline.results import EmbedResult, ItemError
from vitcache.pipeline.step_item import load_feature
from vitcache.pipeline.step_runner import refuse_width
from vitcache.placement.embed_call import EmbedCall
from vitcache.placement.scatter_call import ScatterCall
from vitcache.placement.spans import Span, clip_spans
from vitcache.rows import check_rows

EncodeRows = Callable[[list[Tensor], list[Item]], Tensor]


@torch.no_grad()
def embed_uncached(
    encode: EncodeRows, cache: EmbeddingCache, chunks: Sequence[Chunk], call: EmbedCall | ScatterCall
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
    call
        Writes the rows to their tokens. Rows of the width of `inputs_embeds` get zeros in the columns of the
        deepstack levels.

    Returns
    -------
    EmbedResult
        As from `VisionPipeline.embed`. The rows of failed items are zero.

    Raises
    ------
    TypeError
        If `chunks` is not a list of `Chunk`; as `call`.
    ValueError
        If the rows of `call` have another width than those of the cache; as `call`.
    IndexError
        As `call`.
    """
    check_chunks(chunks)
    if call.destination.width != cache.row_width:
        refuse_width(call.destination, cache)
    encoded: dict[int, Tensor | ItemError] = {}  # by `id` of the item, which its chunk keeps alive
    embeddings: list[Tensor] = []
    spans: list[list[Span]] = []
    errors: list[ItemError] = []
    for number, chunk in enumerate(chunks):
        for position, overlap in chunk.items.within(chunk.start, chunk.start + chunk.length).items():
            item = chunk.items[position]
            if id(item) not in encoded:
                encoded[id(item)] = _rows_of(item, encode, cache, call.destination.hidden)
            rows = encoded[id(item)]
            if isinstance(rows, ItemError):
                errors.append(rows._replace(chunk=number, item=position))
                zero = torch.zeros(1, cache.row_width, dtype=cache.dtype, device=cache.device)
                rows = zero.expand(max(span.source_start + span.length for span in overlap), -1)
            embeddings.append(rows)
            spans.append(
                [
                    span._replace(start=span.start + chunk.token_offset)
                    for span in clip_spans(overlap, chunk.start, chunk.length)
                ]
            )
    return EmbedResult(call.run(embeddings, spans, None), sorted(errors, key=lambda error: error[:2]))


def _rows_of(item: Item, encode: EncodeRows, cache: EmbeddingCache, hidden: int) -> Tensor | ItemError:
    """Return the rows of one item, of the cache's width and on its device, or the error of the item."""
    found = None
    width = cache.row_width if item.row_width is None else item.row_width
    try:
        if width not in (hidden, cache.row_width):
            narrow = "" if hidden == cache.row_width else f"{hidden} or "
            raise ValueError(
                f"row_width is {width}, it must be {narrow}{cache.row_width}, the width of the "
                "destination's rows"
            )
        if item.rows is not None:
            rows = check_rows(item.rows, width).to(cache.device)
        else:
            feature = as_tensor(load_feature(item)).detach().to(cache.device)
            rows = encode([feature], [item])
            if rows.shape != (item.num_rows, width):
                found = None if len(rows) == item.num_rows else len(rows)
                raise ValueError(
                    f"encode must return shape {(item.num_rows, width)}, got {tuple(rows.shape)}"
                )
            rows = rows.to(cache.dtype)
        return pad(rows, (0, cache.row_width - width))
    except Exception as error:
        return ItemError(0, 0, item.num_rows, found, error)
