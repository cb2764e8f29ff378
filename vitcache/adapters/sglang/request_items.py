"""`RequestItems`: the items of one request as `Items`, made once and kept with SGLang's request."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Sequence
from operator import attrgetter, is_
from typing import Any, NamedTuple

from vitcache.adapters.sglang.hooks import TENANT
from vitcache.adapters.sglang.item_factory import ItemFactory
from vitcache.pipeline.items import Item, Items
from vitcache.placement.spans import Span, spans_from_inclusive

logger = logging.getLogger("vitcache.adapters.sglang")

NAME = "_vitcache"  # in the `__dict__` of a request and of an item
NO_TENANT = ("", "")
_OFFSETS = attrgetter("offsets")
_ROWS = attrgetter("precomputed_embeddings")


class RequestItems:
    """The `Items` of a request, and the objects of SGLang that they were made from.

    It lives in the `__dict__` of SGLang's `MultimodalInputs`, and dies with it. A copy or a pickle of that
    object gets an empty one.

    """

    __slots__ = ("_items", "_offsets", "_rows", "_sources", "_tenant")

    def __init__(self, tenant: tuple[str, str] = NO_TENANT) -> None:
        self._tenant = tenant
        self._items: Items | None = None
        self._sources: Sequence[Any] = ()
        self._offsets: Sequence[Any] = ()
        self._rows: Sequence[Any] = ()

    @classmethod
    def of(cls, request: Any) -> RequestItems:
        """Return the object of a `MultimodalInputs`. The first call makes it."""
        kept = request.__dict__
        made: RequestItems | None = kept.get(NAME)
        if made is None or made._tenant is not kept.get(TENANT, NO_TENANT):
            made = kept[NAME] = cls(kept.get(TENANT, NO_TENANT))
        return made

    def __reduce__(self) -> tuple[type[RequestItems], tuple[()]]:
        return RequestItems, ()

    def read(self, sources: Sequence[Any], start: int, stop: int, factory: ItemFactory) -> Items:
        """Return the items of a request for a step. They are made again if SGLang has changed them.

        Parameters
        ----------
        sources
            The `mm_items` of the request.
        start, stop
            The tokens of the step, counted in the prompt. Precomputed rows on another device are copied if
            their item overlaps them.
        factory
            Makes the items.
        """
        if None in sources:
            sources = [source for source in sources if source is not None]
        if self._items is not None and self._is_current(sources):
            return self._items
        occupied: list[tuple[int, int]] = []
        elsewhere = [factory.is_elsewhere(source) for source in sources]
        items = Items(
            [
                self._item(source, factory, occupied, (start, stop) if is_elsewhere else None)
                for source, is_elsewhere in zip(sources, elsewhere, strict=True)
            ]
        )
        # Copies of rows live for one step, as those of SGLang.
        self._items = None if any(elsewhere) else items
        self._sources = list(sources)
        self._offsets, self._rows = list(map(_OFFSETS, sources)), list(map(_ROWS, sources))
        return items

    def _is_current(self, sources: Sequence[Any]) -> bool:
        return (
            len(sources) == len(self._sources)
            and all(map(is_, sources, self._sources))
            and all(map(is_, map(_OFFSETS, sources), self._offsets))
            and all(map(is_, map(_ROWS, sources), self._rows))
        )

    def _item(
        self,
        source: Any,
        factory: ItemFactory,
        occupied: list[tuple[int, int]],
        window: tuple[int, int] | None,
    ) -> Item:
        """Return the item of `source`: the one that was made in an earlier request, if nothing has changed.

        Sessions pass their items on to the next turn. With a window, the item is made for this step alone.
        """
        made_from = _MadeFrom(
            source.offsets, source.precomputed_embeddings, factory.row_width(source.modality), self._tenant
        )
        made: tuple[_MadeFrom, Item] | None = source.__dict__.get(NAME)
        if made is not None and made[0].equals(made_from) and window is None:
            occupy(made[1].spans, occupied)
            return made[1]
        try:
            spans = spans_from_inclusive(source.offsets)
            occupy(spans, occupied)
        except (ValueError, TypeError) as error:
            factory.counts.errors += 1
            logger.error("an item of a request is left out, its offsets are %r: %s", source.offsets, error)
            return Item(None, None)
        if window is not None and not any(_overlaps(span, window) for span in spans):
            return Item(None, None)
        item = factory.make(source, spans, self._tenant)
        if window is None:
            source.__dict__[NAME] = made_from, item
        return item


class _MadeFrom(NamedTuple):
    """Everything that the item of a source depends on, beside its content."""

    offsets: Any
    rows: Any
    row_width: int
    tenant: tuple[str, str]

    def equals(self, other: _MadeFrom) -> bool:
        return self.offsets is other.offsets and self.rows is other.rows and self[2:] == other[2:]


def occupy(spans: Sequence[Span], occupied: list[tuple[int, int]]) -> None:
    """Insert the spans of an item in a sorted list of the tokens of a request, (first, one after the last).

    Raises
    ------
    ValueError
        If a span overlaps another one, of this item or of an earlier one. The message has both.
    """
    found = list(occupied)
    for span in spans:
        if span.length == 0:
            continue
        place = bisect_left(found, (span.start, span.stop))
        for first, stop in found[max(0, place - 1) : place + 1]:
            if first < span.stop and span.start < stop:
                raise ValueError(
                    f"tokens [{span.start}, {span.stop}) overlap tokens [{first}, {stop}) of an item"
                )
        found.insert(place, (span.start, span.stop))
    occupied[:] = found


def _overlaps(span: Span, window: tuple[int, int]) -> bool:
    return span.start < window[1] and window[0] < span.stop
