"""The result of a step: its `inputs_embeds`, and the errors of single items."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from vitcache._native import StepPlan
from vitcache.pipeline.step_item import StepItem


class ItemError(NamedTuple):
    """Why the rows of one item are zero in `inputs_embeds`.

    Attributes
    ----------
    chunk, item
        Indices: the item is ``chunks[chunk].items[item]``.
    expected
        Number of rows that the item should have: `Item.num_rows`.
    found
        Number of rows that the encoder returned, if this number was wrong; else None.
    cause
        The exception of the load, the hash, the copy or the encode; a ValueError if the number of rows was
        wrong.

    Examples
    --------
    >>> from vitcache import ItemError
    >>> error = ItemError(chunk=0, item=2, expected=880, found=None, cause=OSError("damaged file"))
    >>> f"item {error.item} of chunk {error.chunk} failed: {error.cause}"
    'item 2 of chunk 0 failed: damaged file'
    """

    chunk: int
    item: int
    expected: int
    found: int | None
    cause: Exception


class EmbedResult(NamedTuple):
    """The result of `VisionPipeline.embed` and `place`: a tuple of `inputs_embeds` and `errors`.

    Attributes
    ----------
    inputs_embeds
        The rows of text tokens and of all items. The rows of failed items are zero. After `embed`, of shape
        ``input_ids.shape + (H,)``, where ``H`` is the width of `weight`; after `place`, its argument.
    errors
        One `ItemError` per chunk and failed item, sorted by chunk and item. Empty: no item failed.

    Examples
    --------
    >>> import torch
    >>> from vitcache import Chunk, EmbeddingCache, Item, Span, VisionPipeline
    >>> def encode(features, items):
    ...     raise OSError("damaged image")
    >>> cache = EmbeddingCache(2, dtype=torch.float32, device="cpu", device_bytes=4096)
    >>> chunk = Chunk([Item(torch.ones(1, 2), Span(1, 1))], 0, 2)
    >>> with VisionPipeline(encode, cache) as pipeline:
    ...     inputs_embeds, errors = pipeline.embed([chunk], torch.tensor([0, 0]), torch.ones(1, 2))
    >>> inputs_embeds.tolist()  # token 0 is text, token 1 belongs to the failed item
    [[1.0, 1.0], [0.0, 0.0]]
    >>> errors[0].cause
    OSError('damaged image')
    """

    inputs_embeds: Tensor
    errors: list[ItemError]


def list_errors(step_items: Iterable[StepItem], plan: StepPlan) -> list[ItemError]:
    """Return one error per occurrence of a failed item, sorted by chunk and item."""
    errors = [
        ItemError(chunk, position, step_item.num_rows, step_item.failure.found, step_item.failure.error)
        for step_item in step_items
        if step_item.failure is not None
        for chunk, position in plan.occurrences(step_item.number)
    ]
    return sorted(errors, key=lambda error: error[:2])
