"""`FailedItem`: an item of a step without rows, as the log and the client of its request see it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from vitcache.adapters.sglang.counts import Counts
from vitcache.adapters.sglang.failed_requests import end_requests
from vitcache.pipeline.results import ItemError

MOST_CHARACTERS = 500  # of the text of an exception: a client must not get a text of any length
logger = logging.getLogger("vitcache.adapters.sglang")


class FailedItem(NamedTuple):
    """An item of a step without rows.

    Attributes
    ----------
    request
        The number of its request in `StepCall.requests`.
    item
        Its number among the `mm_items` of the request that are not None.
    text
        Why it has no rows: the end of a sentence.
    """

    request: int
    item: int
    text: str

    @classmethod
    def from_error(cls, error: ItemError, request: int) -> FailedItem:
        """Return the item of an error of the pipeline."""
        found = "none" if error.found is None else error.found
        text = f"has no rows: expected {error.expected} rows, got {found} ({cause_text(error.cause)})"
        return cls(request, error.item, text)


def report(failed: Iterable[FailedItem], requests: Sequence[Any], batch: Any, counts: Counts) -> None:
    """End the requests of failed items. One line of the log per item says whether its request is ended.

    Parameters
    ----------
    requests, batch
        As in `StepCall`.
    """
    ended: dict[int, bool] = {}
    for number, item, text in failed:
        request = requests[number]
        if id(request) not in ended:
            message = f"vitcache: item {item} ({_modality(request, item)}) {text}"
            are_new = end_requests(request, message)
            ended[id(request)] = bool(are_new)
            counts.ended += sum(are_new)
        counts.errors += 1
        logger.error(
            "vitcache: item %d of request %s %s; %s",
            item,
            request_name(batch, request, number),
            text,
            "the request is ended" if ended[id(request)] else "the request is not ended",
        )


def cause_text(error: BaseException) -> str:
    """Return the type and the text of an exception, on one line and shortened if it is long. Never raises."""
    try:
        text = str(error)
    except Exception:  # of a class of the model or of the processor
        text = ""
    if len(text) > MOST_CHARACTERS:
        text = f"{text[: MOST_CHARACTERS - 3]}..."
    # SGLang could not send a lone surrogate to its other processes.
    line = "".join(character if character.isprintable() else " " for character in text)
    return f"{type(error).__name__}: {line}"


def request_name(batch: Any, request: Any, number: int) -> str:
    """Return the id of a request of a batch, as clients and SGLang's log name it, or its number.

    Parameters
    ----------
    batch
        As in `token_offsets`.
    request
        The `MultimodalInputs` of the request.
    number
        Its place among the requests with items.
    """
    ids, all_requests = (getattr(batch, name, None) or () for name in ("rids", "mm_inputs"))
    for name, other in zip(ids, all_requests, strict=False):
        if other is request:
            return str(name)
    return f"number {number} of a step"


def _modality(request: Any, number: int) -> str:
    sources = [source for source in request.mm_items if source is not None]
    return str(sources[number].modality.name)
