"""Spans whose Python code changes the lists that are read, or that claim another class, crash nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vitcache import Span, embed_tokens, scatter_embeddings


class ClaimsToBeASpan:
    """Not a tuple, although `isinstance` says that it is a `Span`."""

    __class__ = property(lambda self: Span)  # type: ignore[assignment]


class EmptiesAList:
    """An object that empties a list when its class or its number is asked for."""

    def __init__(self, emptied: list[Any]) -> None:
        self.emptied = emptied

    @property
    def __class__(self) -> Any:
        self.emptied.clear()
        return Span

    @__class__.setter
    def __class__(self, value: Any) -> None: ...

    def __index__(self) -> int:
        self.emptied.clear()
        return 0


def scatter(spans: Any) -> None:
    scatter_embeddings(torch.zeros(8, 4), [torch.ones(2, 4)], spans)


def embed(spans: Any) -> None:
    embed_tokens(torch.zeros(8, dtype=torch.int64), torch.ones(1, 4), [torch.ones(2, 4)], spans)


@pytest.mark.parametrize("call", [scatter, embed])
def test_objects_that_claim_to_be_spans_are_refused(call: Any) -> None:
    for spans in ([ClaimsToBeASpan()], [[ClaimsToBeASpan()]], [(Span(0, 2), ClaimsToBeASpan())]):
        with pytest.raises(TypeError, match="Span"):
            call(spans)


@pytest.mark.parametrize("call", [scatter, embed])
def test_spans_that_empty_their_lists_are_refused_or_end_the_list(call: Any) -> None:
    for depth in range(2):
        outer: list[Any] = []
        inner: list[Any] = [] if depth else outer
        inner += [EmptiesAList(outer), Span(0, 2)]
        outer += [inner] if depth else []
        with pytest.raises((TypeError, ValueError)):
            call(outer)


@pytest.mark.parametrize("depth", [0, 1])
def test_numbers_of_spans_that_empty_the_lists_are_read_once(depth: int) -> None:
    class Emptying(int):
        def __index__(self) -> int:
            outer.clear()
            inner.clear()
            return int(self)

    outer: list[Any] = []
    inner: list[Any] = []
    span = tuple.__new__(Span, (Emptying(0), Emptying(2), Emptying(0)))
    inner.append(span)
    outer.append(inner if depth else span)
    rows = torch.zeros(8, 4)
    try:
        scatter_embeddings(rows, [torch.ones(2, 4)], outer)
    except (TypeError, ValueError):
        assert not rows.any()
    else:
        assert rows.sum() in (0, 8)
