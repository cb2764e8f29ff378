"""The arguments of a step: the items of each request, their spans, and the chunk that the step computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

from torch import Tensor

from vitcache.arguments import to_int
from vitcache.handles import describe_count, described
from vitcache.keys.content import check_key
from vitcache.placement.spans import Span


class Item:
    """One image, video or audio clip of a request.

    Parameters
    ----------
    feature
        The input of the vision encoder: a CPU tensor, a NumPy array, a CUDA tensor, or a function without
        arguments that returns one of these. The pipeline calls the function if it must encode the item, or if
        the item has no key yet and its feature must be hashed. None: the item has `rows`, or its rows are
        expected in the cache. With `move_feature` False, or in a pipeline with ``move_features=False``: any
        object. An object that `content_key` cannot hash needs a `key`.
    spans
        The tokens that the item's rows are written to: a `Span`, or a sequence of spans in any order. Tokens
        are counted in the whole prompt. None or an empty sequence: the item is neither loaded nor encoded.
    num_rows
        Number of rows that the encoder returns for the item. None: ``len(rows)`` if `rows` is given, else the
        number of rows that the spans need.
    key
        32 bytes that name the item's content and `encoder_kwargs`. The pipeline folds its namespace into the
        key (`VisionPipeline.key` returns the result), so that two models or tenants can use the same keys. A
        pipeline with an empty namespace uses the key unchanged. None: the pipeline hashes the feature,
        `encoder_kwargs` and its own namespace.
    complete_key
        True: `key` also names the model, the tenant and everything else that the rows depend on, and is used
        unchanged.
    rows
        Precomputed rows ``(num_rows, row_width)`` in place of a feature. The pipeline places them without
        rounding to the cache's dtype, and does not cache them.
    row_width
        Elements of a row of this item. None: the cache's `row_width`. A step accepts the cache's `row_width`,
        and with deepstack also ``H``, the width of `inputs_embeds`: rows of such an item have no deepstack
        columns, and the deepstack rows of their tokens are zero. If the step does not accept the width, the
        item fails, and `EmbedResult.errors` names both widths.
    tenant
        The tenant whose rows these are, for `EmbeddingCache.forget_tenant` and for the names in tiers. None:
        that of the pipeline. Any other tenant is folded into the key, so that tenants do not share entries;
        with `complete_key` the key is unchanged.
    context
        Any object. It travels to the encoder as ``item.context``. It is neither hashed nor copied.
    move_feature
        False: the feature of this item reaches `encode` unchanged, neither moved nor cast, as with
        ``VisionPipeline(move_features=False)``. A callable is still called, and `encode` gets its value. The
        key does not depend on `move_feature`. If equal items of a step differ in it, that of the item that
        `encode` gets counts. It has no effect on `rows`.
    **encoder_kwargs
        Arguments for the encoder, which reads them from `Item.encoder_kwargs`. Types as for ``extra`` of
        `content_key`.

    Raises
    ------
    ValueError
        If the spans need more than `num_rows` rows; if `key` does not have 32 bytes; if `complete_key` is
        true and `key` is None; if `row_width` is less than 1; if both `feature` and `rows` are given; or if
        the shape of `rows` is not ``(num_rows, row_width)``.
    TypeError
        If `spans` is not a `Span` or a sequence of spans, `num_rows` or `row_width` is not an integer or is a
        bool, `key` is not bytes, `complete_key` or `move_feature` is not a bool, `tenant` is neither a str
        nor None, or `rows` is not a tensor.

    Notes
    -----
    An item refers to its feature and does not copy it. The pipeline stores the computed key in the item, so
    that later chunks do not hash the feature again. If the content or the tenant changes, make a new item.

    Examples
    --------
    >>> import torch
    >>> from vitcache import Item, Span
    >>> image = Item(torch.zeros(16, 3), Span(start=5, length=4))  # 4 rows, for tokens 5 to 8
    >>> image.num_rows
    4

    A video in two spans, loaded from a file only if its rows are missing:

    >>> frames = [Span(5, 4), Span(20, 4, source_start=4)]
    >>> video = Item(lambda: torch.load("frames.pt"), frames, key=bytes(32))
    >>> video.num_rows
    8

    An image in two tiles, which `encode` gets as a list and moves to the device itself:

    >>> tiles = [torch.zeros(8, 3), torch.zeros(4, 3)]
    >>> tiled = Item(tiles, Span(40, 3), move_feature=False)
    >>> tiled
    <Item unmoved list, 3 rows in 1 span, tokens [40, 43)>
    """

    __slots__ = (
        "complete_key",
        "context",
        "digest",
        "encoder_kwargs",
        "feature",
        "key",
        "move_feature",
        "num_rows",
        "row_width",
        "rows",
        "spans",
        "tenant",
    )

    def __init__(
        self,
        feature: Any,
        spans: Span | Sequence[Span] | None,
        *,
        num_rows: int | None = None,
        key: bytes | None = None,
        complete_key: bool = False,
        rows: Tensor | None = None,
        row_width: int | None = None,
        tenant: str | None = None,
        context: Any = None,
        move_feature: bool = True,
        **encoder_kwargs: Any,
    ) -> None:
        if num_rows is not None:
            num_rows = to_int("num_rows", num_rows)
        self.row_width: int | None = None if row_width is None else to_int("row_width", row_width, 1)
        if rows is not None:
            _check_rows(rows, feature, num_rows, self.row_width)
        if isinstance(spans, Span):
            spans = [spans]
        self.spans: tuple[Span, ...] = () if spans is None else _as_tuple("spans", spans, "Span")
        for span in self.spans:
            if not isinstance(span, Span):
                raise TypeError(f"spans must be Span objects, got {type(span).__name__}")
        needed = max((span.source_start + span.length for span in self.spans), default=0)
        if num_rows is None:
            num_rows = needed if rows is None else len(rows)
        self.num_rows: int = num_rows
        if self.num_rows < needed:
            raise ValueError(f"the spans need {needed} rows, but num_rows is {self.num_rows}")
        if key is not None:
            check_key(key)
        for name, flag in (("complete_key", complete_key), ("move_feature", move_feature)):
            if not isinstance(flag, bool):
                raise TypeError(f"{name} must be a bool, got {type(flag).__name__}")
        if tenant is not None and not isinstance(tenant, str):
            raise TypeError(f"tenant must be a str or None, got {type(tenant).__name__}")
        if complete_key and key is None:
            raise ValueError("complete_key is True, but key is None")
        self.feature = feature
        self.key = key
        self.complete_key = complete_key
        self.tenant = tenant
        self.context = context
        self.move_feature = move_feature
        self.rows = rows
        self.encoder_kwargs = encoder_kwargs
        # The result of a pipeline, so that later chunks do not hash again: a namespace and the key of the
        # content; or a namespace, the key with the namespace folded in, and the given key.
        self.digest: tuple[bytes, bytes] | tuple[bytes, bytes, bytes] | None = None

    @described
    def __repr__(self) -> str:
        name = type(self.feature if self.rows is None else self.rows).__name__
        if self.rows is None and not self.move_feature:
            name = f"unmoved {name}"
        rows, spans = describe_count(self.num_rows, "row"), describe_count(len(self.spans), "span")
        if not self.spans:
            return f"{name}, {rows}, no spans"
        start = min(span.start for span in self.spans)
        stop = max(span.start + span.length for span in self.spans)
        return f"{name}, {rows} in {spans}, tokens [{start}, {stop})"


class Items(Sequence[Item]):
    """The items of one request, sorted by their spans: a step finds the items of its chunk by bisection.

    `Chunk` accepts any sequence of items, and sorts it. For a request of several chunks, make one `Items`
    object and pass it to every chunk: then the items are sorted once. An `Items` object is an immutable
    sequence. Its arrays contain the keys, the spans and the numbers of rows of its items; a step reads them.

    Raises
    ------
    IndexError
        If the start or the length of a span that is not empty is larger than 2**60, or a number of rows or a
        `source_start` has more than 64 bits.
    TypeError
        If `items` is not a sequence of `Item`.

    Examples
    --------
    >>> from vitcache import Chunk, Item, Items, Span
    >>> request = Items([Item(None, Span(2, 4), key=bytes(32)), Item(None, Span(9, 4), key=bytes(32))])
    >>> chunks = [Chunk(request, 0, 8), Chunk(request, 8, 8)]
    >>> request.within(8, 16)  # the second item overlaps tokens 8 to 15
    {1: [Span(start=9, length=4, source_start=0)]}
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self._items: tuple[Item, ...] = _as_tuple("items", items, "Item")
        # Imported on use: `vitcache.Item` and `vitcache.Chunk` must work without the native module.
        from vitcache._native import ItemArrays

        self.arrays = ItemArrays(self._items, Item)

    def within(self, start: int, stop: int) -> dict[int, list[Span]]:
        """Return the items that overlap tokens ``[start, stop)``, by position in this sequence.

        Each value lists the item's overlapping spans. Items are sorted by the start of their first
        overlapping span. Raises TypeError if `start` or `stop` is not an integer or is a bool.
        """
        found: dict[int, list[Span]] = {}
        for position, number in self.arrays.within(to_int("start", start), to_int("stop", stop)):
            found.setdefault(position, []).append(self._items[position].spans[number])
        return found

    def __reduce__(self) -> tuple[type[Items], tuple[tuple[Item, ...]]]:
        """Copy and pickle only the items: the arrays of a copy contain the addresses of its own items."""
        return Items, (self._items,)

    @described
    def __repr__(self) -> str:
        num_rows = sum(item.num_rows for item in self._items)
        return f"{describe_count(len(self), 'item')}, {describe_count(num_rows, 'row')}"

    @overload
    def __getitem__(self, position: int) -> Item: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[Item]: ...
    def __getitem__(self, position: int | slice) -> Item | Sequence[Item]:
        return self._items[position]

    def __len__(self) -> int:
        return len(self._items)


class Chunk:
    """The tokens of one request that a step computes: ``[start, start + length)`` of its prompt.

    Parameters
    ----------
    items
        All items of the request, including those outside of the chunk. If the request has several chunks,
        pass an `Items` object.
    start, length
        First token and number of tokens. Tokens are counted in the whole prompt, as in the spans of the
        items.
    token_offset
        Position of the chunk's first token in the `input_ids` of the batch.

    Raises
    ------
    ValueError
        If `start`, `length` or `token_offset` is negative.
    TypeError
        If `start`, `length` or `token_offset` is not an integer or is a bool, or `items` is not a sequence of
        `Item`.
    IndexError
        As `Items`.

    Examples
    --------
    A batch of 12 tokens. The step computes tokens 8 to 15 of the first request, and tokens 0 to 3 of the
    second request:

    >>> from vitcache import Chunk, Item, Span
    >>> first = [Item(None, Span(6, 4), key=bytes(32))]  # the step writes the last 2 of its 4 rows
    >>> batch = [Chunk(first, 8, 8), Chunk([], 0, 4, token_offset=8)]
    """

    __slots__ = ("items", "length", "start", "token_offset")

    def __init__(self, items: Sequence[Item], start: int, length: int, token_offset: int = 0) -> None:
        self.items = items if isinstance(items, Items) else Items(items)
        for name, value in (("start", start), ("length", length), ("token_offset", token_offset)):
            number = to_int(name, value)
            if number < 0:
                raise ValueError(f"{name} must be at least 0, got {number}")
            setattr(self, name, number)

    start: int
    length: int
    token_offset: int

    @described
    def __repr__(self) -> str:
        stop, items = self.start + self.length, describe_count(len(self.items), "item")
        return f"tokens [{self.start}, {stop}), {items}, at token {self.token_offset} of the batch"


def _as_tuple(name: str, values: Any, kind: str) -> tuple[Any, ...]:
    """Return the elements of a sequence. Raises TypeError, which names the argument, for other objects."""
    try:
        return tuple(values)
    except TypeError:
        raise TypeError(f"{name} must be a sequence of {kind}, got {type(values).__name__}") from None


def check_chunks(chunks: Sequence[Chunk]) -> None:
    """Raise TypeError if `chunks` is not a list or tuple of `Chunk`."""
    if not isinstance(chunks, list | tuple):
        raise TypeError(f"chunks must be a list of Chunk, got {type(chunks).__name__}")
    for number, chunk in enumerate(chunks):
        if not isinstance(chunk, Chunk):
            raise TypeError(f"chunk {number} must be a Chunk, got {type(chunk).__name__}")


def _check_rows(rows: Any, feature: Any, num_rows: int | None, row_width: int | None) -> None:
    if not isinstance(rows, Tensor):
        raise TypeError(f"rows must be a tensor, got {type(rows).__name__}")
    if feature is not None:
        raise ValueError("an item takes either a feature or rows, got both")
    if rows.is_nested:
        raise TypeError("rows must be a dense tensor, got a nested tensor")
    is_wrong = rows.dim() != 2 or num_rows not in (None, len(rows)) or row_width not in (None, rows.shape[1])
    if is_wrong:
        expected = "num_rows" if num_rows is None else num_rows
        width = "row_width" if row_width is None else row_width
        raise ValueError(f"rows must have shape ({expected}, {width}), got {tuple(rows.shape)}")
