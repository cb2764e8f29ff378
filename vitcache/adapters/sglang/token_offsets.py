"""Where each request's tokens begin in a batch of SGLang."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any


def token_offsets(
    batch: Any, requests: Sequence[Any], lengths: Sequence[int], num_tokens: int
) -> Sequence[int] | None:
    """Return the position of each request's first token in `input_ids`, or None if it is not known.

    `embed_mm_inputs` gets the requests with items alone. `input_ids` can also have the tokens of requests
    without items between them, and padding behind them.

    Parameters
    ----------
    batch
        SGLang's `ForwardBatch` of the running `prepare_mm_inputs`, or None outside of it.
    requests
        The `MultimodalInputs` that `embed_mm_inputs` got.
    lengths
        The tokens of each request in this step.
    num_tokens
        Length of `input_ids`.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> first, last = object(), object()
    >>> batch = SimpleNamespace(mm_inputs=[first, None, last], extend_seq_lens_cpu=[10, 7, 12])
    >>> token_offsets(batch, [first, last], [10, 12], num_tokens=32)
    [0, 17]
    """
    offsets = None if batch is None else _offsets_in(batch, requests, num_tokens)
    if offsets is None and len(requests) == len(lengths) and sum(lengths) == num_tokens:
        return list(accumulate(lengths, initial=0))[:-1]
    return offsets


def _offsets_in(batch: Any, requests: Sequence[Any], num_tokens: int) -> list[int] | None:
    """The offsets of the requests of a batch, or None if `requests` are not its requests with items."""
    lengths, all_requests = batch.extend_seq_lens_cpu, batch.mm_inputs
    if lengths is None or all_requests is None or sum(lengths) > num_tokens:
        return None
    offsets: list[int] = []
    offset = 0
    for request, length in zip(all_requests, lengths, strict=False):
        if request is not None:
            if len(offsets) == len(requests) or requests[len(offsets)] is not request:
                return None
            offsets.append(offset)
        offset = offset + length  # not in place: a tensor would change in the list, too
    return offsets if len(offsets) == len(requests) else None
