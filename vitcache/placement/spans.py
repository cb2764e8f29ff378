"""Where the rows of an item go: runs of rows and the tokens that they replace."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from operator import index
from typing import Any, NamedTuple

import numpy as np
import torch


class _SpanFields(NamedTuple):
    start: int
    length: int
    source_start: int = 0


class Span(_SpanFields):
    """Rows ``[source_start, source_start + length)`` of an item go to tokens ``[start, start + length)``.

    An immutable tuple of three integers, in tokens and rows. A length of 0 is legal and places nothing.

    Raises
    ------
    ValueError
        If any of the three is negative.
    TypeError
        If any of the three is not an integer.
    """

    __slots__ = ()

    def __new__(cls, start: int, length: int, source_start: int = 0) -> Span:
        """Check the three integers; NumPy and 0-d tensor integers become plain ones."""
        span = tuple.__new__(cls, (index(start), index(length), index(source_start)))
        if min(span) < 0:
            name = cls._fields[[value < 0 for value in span].index(True)]
            raise ValueError(f"Span.{name} is {getattr(span, name)}, it must be at least 0")
        return span

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> Span:  # type: ignore[override]
        # The tuple's own would skip the checks, and _replace goes through it.
        return cls(*iterable)

    @property
    def stop(self) -> int:
        """The token after the last one of this span."""
        return self.start + self.length


def spans_from_inclusive(offsets: Iterable[Sequence[int]]) -> list[Span]:
    """Spans of one item from ``(first, last)`` token pairs, both ends inclusive, as SGLang keeps them.

    The item's rows are handed out to the pairs in order.

    Raises
    ------
    ValueError
        If a pair ends before it begins, or begins before token 0.
    """
    spans: list[Span] = []
    rows = 0
    for offset in offsets:
        first, last = map(index, offset)
        if last < first:
            raise ValueError(f"offset {len(spans)} ends at token {last}, before its first token {first}")
        spans.append(Span(first, last - first + 1, rows))
        rows += spans[-1].length
    return spans


def spans_from_placeholder(offset: int, length: int, is_embed: Any = None) -> list[Span]:
    """Spans of one item from a placeholder range, as vLLM keeps them.

    Parameters
    ----------
    offset, length
        The placeholder's first token and its number of tokens.
    is_embed
        One bool per token of the placeholder (list, array or tensor): whether it takes a row. None: all do.

    Raises
    ------
    ValueError
        If ``is_embed`` has not ``length`` entries.
    TypeError
        If ``is_embed`` is not boolean.
    """
    whole = Span(offset, length)
    if is_embed is None:
        return [whole]
    mask = _to_array(is_embed)
    if mask.size == 0:
        mask = mask.astype(bool)
    if mask.dtype != bool:
        raise TypeError(f"is_embed must be boolean, it is {mask.dtype}")
    if mask.shape != (whole.length,):
        raise ValueError(f"is_embed has shape {mask.shape}, the placeholder has {whole.length} tokens")
    return _runs(whole.start + np.flatnonzero(mask))


def spans_from_token_ids(input_ids: Any, token_id: int, num_rows: Sequence[int]) -> list[list[Span]]:
    """Spans of every item from the placeholder tokens of a prompt, as Hugging Face processors leave them.

    Parameters
    ----------
    input_ids
        Token ids of the prompt: list, array or tensor. Two dimensions are read as flattened ``B * T`` tokens.
        A CUDA tensor is copied to the host, which waits for it.
    token_id
        The id that marks a token to be replaced.
    num_rows
        Rows of each item, in prompt order.

    Returns
    -------
    list of list of Span
        One list per item, in prompt order: item ``i`` takes the next ``num_rows[i]`` marked tokens, wherever
        they are.

    Raises
    ------
    ValueError
        If the prompt's marked tokens are more or fewer than the rows, or a number of rows is negative.
    """
    for item, count in enumerate(num_rows):
        if count < 0:
            raise ValueError(f"num_rows[{item}] is {count}, it must be at least 0")
    tokens = np.flatnonzero(_to_array(input_ids).reshape(-1) == token_id)
    if len(tokens) != sum(num_rows):
        raise ValueError(
            f"the prompt has {len(tokens)} tokens with id {token_id}, "
            f"the {len(num_rows)} items have {sum(num_rows)} rows"
        )
    ends = np.cumsum([0, *num_rows])
    return [_runs(tokens[first:last]) for first, last in pairwise(ends)]


def clip_spans(spans: Iterable[Span], start: int, length: int) -> list[Span]:
    """The parts of `spans` in tokens ``[start, start + length)``, re-based so that token `start` is 0.

    Spans outside the window are left out; ``source_start`` moves along with what is cut off at the front.

    Raises
    ------
    ValueError
        If the window's start or length is negative.
    """
    window = Span(start, length)
    clipped: list[Span] = []
    for span in spans:
        if not isinstance(span, Span):
            raise TypeError(f"spans must be Span, one is {type(span).__name__}")
        first, last = max(span.start, window.start), min(span.stop, window.stop)
        if first < last:
            clipped.append(Span(first - window.start, last - first, span.source_start + first - span.start))
    return clipped


def _to_array(values: Any) -> np.ndarray:
    return values.numpy(force=True) if isinstance(values, torch.Tensor) else np.asarray(values)


def _runs(tokens: np.ndarray) -> list[Span]:
    """One span per run of consecutive tokens; `tokens` is ascending and takes rows 0, 1, 2 and so on."""
    if len(tokens) == 0:
        return []
    breaks = np.flatnonzero(np.diff(tokens) != 1) + 1
    firsts = np.concatenate(([0], breaks))
    lengths = np.diff(np.concatenate((firsts, [len(tokens)])))
    return [Span(tokens[row], length, row) for row, length in zip(firsts, lengths, strict=True)]
