"""`RequestItems`: the items of one request as `Items`, made once and kept with SGLang's request."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import repeat
from numbers import Integral
from operator import attrgetter, is_
from typing import Any, NamedTuple

from vitcache.adapters.sglang.failed_items import cause_text
from vitcache.adapters.sglang.feature_places import can_be_borrowed, lend
from vitcache.adapters.sglang.item_factory import ItemFactory
from vitcache.adapters.sglang.item_keys import ItemKey
from vitcache.adapters.sglang.tenant import NO_TENANT, tenant_of
from vitcache.arguments import shown
from vitcache.pipeline.items import Item, Items
from vitcache.placement.spans import LARGEST_TOKEN, Span, spans_from_inclusive

NAME = "_vitcache"  # in the `__dict__` of a request and of an item
_OFFSETS = attrgetter("offsets")
_ROWS = attrgetter("precomputed_embeddings")


class RequestItems:
    """The `Items` of a request, and the objects of SGLang that they were made from.

    It lives in the `__dict__` of SGLang's `MultimodalInputs`, and dies with it. A copy or a pickle of that
    object gets an empty one.

    Attributes
    ----------
    left_out
        The items without rows because their offsets are wrong, and a text for each: those that no step has
        reported yet.
    """

    __slots__ = ("_borrowed", "_factory", "_items", "_offsets", "_sources", "_tenant", "_unkeyed", "left_out")

    def __init__(self, tenant: tuple[str, str] = NO_TENANT) -> None:
        self._tenant = tenant
        self._items: Items | None = None
        self._factory: ItemFactory | None = None
        self._sources: Sequence[Any] = ()
        self._offsets: Sequence[Any] = ()
        self._unkeyed: list[tuple[Any, Item, ItemKey]] = []
        self._borrowed: list[tuple[Any, Item]] = []
        self.left_out: list[tuple[int, str]] = []

    @classmethod
    def of(cls, request: Any) -> RequestItems:
        """Return the object of a `MultimodalInputs`. The first call makes it."""
        kept = request.__dict__
        tenant = tenant_of(request)
        made: RequestItems | None = kept.get(NAME)
        if made is None or made._tenant is not tenant:
            made = kept[NAME] = cls(tenant)
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
            The tokens of the step, counted in the prompt. An item with precomputed rows is left out unless
            it overlaps them, so that no rows are copied to the device in vain.
        factory
            Makes the items.
        """
        if None in sources:
            sources = [source for source in sources if source is not None]
        # Another model, such as a draft model, makes items of its own from the same request.
        if self._items is None or self._factory is not factory or not self._is_current(sources):
            return self._make_all(sources, start, stop, factory)
        for source, item in self._borrowed:
            lend(source, item.spans, start, stop)
        return self._items

    def _make_all(self, sources: Sequence[Any], start: int, stop: int, factory: ItemFactory) -> Items:
        self._unkeyed = []
        self.left_out = []
        occupied: list[tuple[int, int]] = []
        made = [
            self._make(source, number, factory, occupied, start, stop)
            for number, source in enumerate(sources)
        ]
        items = Items(made)
        # Precomputed rows, and copies of them, live for one step: SGLang moves them to host memory after it,
        # and would not free their memory on the device while this object refers to them.
        self._items = None if _have_rows(sources) else items
        self._factory = factory
        self._sources = list(sources)
        pairs = zip(sources, made, strict=True)
        self._borrowed = [(source, item) for source, item in pairs if item.spans and can_be_borrowed(source)]
        for source, item in self._borrowed:
            lend(source, item.spans, start, stop)
        self._offsets = list(map(_OFFSETS, sources))
        return items

    def store_keys(self) -> None:
        """Store the keys that a step has computed with the items of SGLang: sessions pass them on."""
        if not self._unkeyed:
            return
        for source, item, key in self._unkeyed:
            if item.digest is not None:
                store_key(source, self._tenant, key._replace(digest=item.digest))
        self._unkeyed = [each for each in self._unkeyed if each[1].digest is None]

    def _is_current(self, sources: Sequence[Any]) -> bool:
        return (
            len(sources) == len(self._sources)
            and all(map(is_, sources, self._sources))
            and all(map(is_, map(_OFFSETS, sources), self._offsets))
            and not _have_rows(sources)
        )

    def _make(
        self,
        source: Any,
        number: int,
        factory: ItemFactory,
        occupied: list[tuple[int, int]],
        start: int,
        stop: int,
    ) -> Item:
        """Make the item of `source`, or one without spans if it is left out."""
        offsets = source.offsets
        try:
            spans = spans_of(offsets)
            occupy(spans, occupied)
        except (ValueError, TypeError) as error:
            text = f"is left out, its offsets are {shown(offsets)} ({cause_text(error)})"
            self.left_out.append((number, text))
            return Item(None, None)
        has_rows = source.precomputed_embeddings is not None
        if has_rows and not any(span.start < stop and start < span.stop for span in spans):
            return Item(None, None)
        item, key = factory.make(source, spans, self._tenant, known_key(source, self._tenant))
        if key is not None and key.key is not None:
            store_key(source, self._tenant, key)
        elif key is not None and key.digest is None:
            self._unkeyed.append((source, item, key))
        return item


class _KnownKey(NamedTuple):
    """The key of an item, with the objects that it was computed from, beside its content.

    It is stored in the `__dict__` of SGLang's item, and does not refer to it: a cycle would keep the
    features in memory until the next garbage collection.
    """

    offsets: Any
    tenant: tuple[str, str]
    key: ItemKey

    def is_of(self, offsets: Any, tenant: tuple[str, str]) -> bool:
        """Whether the key was computed from these objects."""
        return self.offsets is offsets and self.tenant == tenant


def known_key(source: Any, tenant: tuple[str, str]) -> ItemKey | None:
    """Return the key that was stored with an item of SGLang for a tenant, or None."""
    known: _KnownKey | None = source.__dict__.get(NAME)
    # A random key stays: on another rank the same item may still be unhashable, and ranks must agree.
    if known is None or (known.key.is_shared and not known.is_of(source.offsets, tenant)):
        return None
    return known.key


def store_key(source: Any, tenant: tuple[str, str], key: ItemKey) -> None:
    """Store the key of an item of SGLang with it: later requests of a session have the same item."""
    source.__dict__[NAME] = _KnownKey(source.offsets, tenant, key)


def spans_of(offsets: Any) -> list[Span]:
    """Return the spans of an item of SGLang. Raises as `spans_from_inclusive`.

    A pair ``(first, first - 1)`` has no tokens: the offsets between two markers that are neighbours.
    """
    if isinstance(offsets, list):
        offsets = [pair for pair in offsets if not _is_empty(pair)]
    return spans_from_inclusive(offsets)


def _is_empty(pair: Any) -> bool:
    if not (isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], Integral)):
        return False
    return isinstance(pair[1], Integral) and bool(pair[1] == pair[0] - 1)


def occupy(spans: Sequence[Span], occupied: list[tuple[int, int]]) -> None:
    """Insert the spans of an item in a sorted list of the tokens of a request, (first, one after the last).

    Raises
    ------
    ValueError
        If a span overlaps another one, of this item or of an earlier one (the message has both), or is longer
        than a step can place.
    """
    # A failure must leave `occupied` unchanged: the second span of an item can overlap the first one.
    found = occupied if len(spans) == 1 else list(occupied)
    for span in spans:
        if span.length == 0:
            continue
        if span.length > LARGEST_TOKEN:
            raise ValueError(f"a span has {span.length} tokens")
        place = bisect_left(found, (span.start, span.stop))
        for first, stop in found[max(0, place - 1) : place + 1]:
            if first < span.stop and span.start < stop:
                raise ValueError(
                    f"tokens [{span.start}, {span.stop}) overlap tokens [{first}, {stop}) of an item"
                )
        found.insert(place, (span.start, span.stop))
    if found is not occupied:
        occupied[:] = found


def _have_rows(sources: Sequence[Any]) -> bool:
    """Whether a source has precomputed rows."""
    return not all(map(is_, map(_ROWS, sources), repeat(None)))
