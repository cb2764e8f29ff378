"""What a step came to: its `inputs_embeds`, and the items that are missing in it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from vitcache.pipeline.step_item import StepItem


class ItemError(NamedTuple):
    """Why the rows of an item are zero.

    Attributes
    ----------
    chunk, item
        Which: ``chunks[chunk].items[item]``.
    expected, found
        Rows that it was to have, and those that the encoder gave; `found` is None if it gave none.
    cause
        What was raised, or a ValueError about the number of rows.
    """

    chunk: int
    item: int
    expected: int
    found: int | None
    cause: Exception


class EmbedResult(NamedTuple):
    """What `VisionPipeline.embed` built, and the items that are missing in it, by chunk and item."""

    inputs_embeds: Tensor
    errors: list[ItemError]


def list_errors(step_items: Iterable[StepItem]) -> list[ItemError]:
    """Return an error per occurrence of an item without rows, by chunk and item."""
    errors = [
        ItemError(
            occurrence.chunk, occurrence.position, step_item.item.num_rows, step_item.found, step_item.error
        )
        for step_item in step_items
        if step_item.error is not None
        for occurrence in step_item.occurrences
    ]
    return sorted(errors, key=lambda error: error[:2])
