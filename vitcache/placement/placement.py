"""Convert the arguments of a call to one checked native placement, for the kernels or the reference."""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from vitcache import _native
from vitcache.pages.lease import Lease, use_all
from vitcache.pages.reservation import Reservation
from vitcache.placement.destination import Destination, memory_check, row_stride, tensor_reader
from vitcache.placement.reference import Run
from vitcache.placement.runs import check_lists, span_array
from vitcache.placement.spans import Span
from vitcache.rows import DTYPES, KINDS, check_dtype, check_extent, plain_tensor

_reader = _native.ItemReader(Lease, tensor_reader)


class Placement:
    """The rows of one call and their tokens, checked against a destination.

    `items` are tensors ``(n, W)``, leases, or written reservations. `native` contains their addresses and is
    valid while they live. `stored` maps an item to the reservation that stores its rows. `added` has the
    numbers of the items whose sources Python added; None: all items.

    If `accepts_narrow`, an item may have rows of width ``H`` in a destination of width ``H * (1 + L)``. Its
    tokens get zeros in all deepstack levels. Its reservation in `store` must have rows of width ``H``, too.

    If the caller has called `find_overlap` for these spans, `is_overlap_checked` skips the same check.
    """

    __slots__ = ("added", "items", "native", "stored")

    items: MutableSequence[Any]
    added: Sequence[int] | None

    def __init__(
        self,
        destination: Destination,
        embeddings: Any,
        spans: Any,
        store: Sequence[Any] | None = None,
        *,
        is_overlap_checked: bool = False,
        accepts_narrow: bool = False,
    ) -> None:
        self.native, self.added = _native.Placement(accepts_narrow), None
        if isinstance(embeddings, Tensor):
            self._add_items(destination, [embeddings])
            self.native.add_runs(span_array(spans, 3))
        else:
            are_lists = type(embeddings) is type(spans) is list
            if not are_lists or len(embeddings) != len(spans):  # tuples, or wrong arguments
                check_lists(embeddings, spans)
            self._add_items(destination, list(embeddings))
            self.native.add_spans(spans, Span)
        self.stored = {} if store is None else self._add_stores(destination, store)
        self.native.check(destination.native, is_overlap_checked)

    @classmethod
    def from_native(
        cls,
        destination: Destination,
        native: _native.Placement,
        items: MutableSequence[Any],
        missing: Sequence[int],
        store: Sequence[Any] | None = None,
        *,
        accepts_narrow: bool = False,
    ) -> Placement:
        """Finish a native placement that contains its runs, without overlap, and the sources of some items.

        Parameters
        ----------
        native
            The caller keeps the sources that it contains alive. On CUDA the caller has also ordered the
            current stream after the writes of these sources, and before the reuse of their memory.
        items
            All items of the call, or a sequence that makes an item when it is read: the fast calls read only
            the items in `missing`.
        missing
            The items whose sources `native` does not contain, as indices of `items`.
        store
            As in `scatter_embeddings`.
        accepts_narrow
            As in the constructor. The items in `missing` may also be narrow if `native` accepts narrow rows
            already.
        """
        if accepts_narrow:
            native.accept_narrow()
        self = object.__new__(cls)
        self.native, self.items, self.added = native, items, missing
        for item in missing:
            if not _reader.set(native, item, items[item], destination.native):
                items[item] = self._add_item(destination, item, items[item])
        self.stored = {} if store is None else self._add_stores(destination, store)
        native.check(destination.native, True)
        return self

    @classmethod
    def from_runs(cls, destination: Destination, embeddings: Sequence[Tensor], runs: Tensor) -> Placement:
        """Make a placement of tensors from int64 runs ``(n, 4)`` of item, start, length and source_start."""
        self = object.__new__(cls)
        self.native, self.added, self.stored = _native.Placement(), None, {}
        self._add_items(destination, list(embeddings))
        self.native.add_runs(span_array(runs, 4))
        self.native.check(destination.native, False)
        return self

    @property
    def added_items(self) -> Sequence[Any]:
        """The items whose sources Python added: all items, or the items missing in `from_native`."""
        return self.items if self.added is None else [self.items[item] for item in self.added]

    @property
    def store_dtype(self) -> torch.dtype | None:
        """The dtype to which stored rows are rounded. None: the call stores no rows."""
        return next(iter(self.stored.values())).dtype if self.stored else None

    def write_stores(self) -> None:
        """Copy rows to the reservations in `stored`. Afterwards the placement reads the rows in them.

        The CPU does this before it places rows. A GPU launch stores and places a row in one pass.
        """
        for item, reservation in self.stored.items():
            source = self.items[item]
            reservation.write_checked(source if isinstance(source, Tensor) else source.to_tensor())
            self.items[item] = reservation
        self.native.read_stores()
        self.stored = {}

    def use_leases(self) -> None:
        """Order the current stream after the writes of leased rows, and before the reuse of their pages."""
        use_all(self.added_items)

    def use(self) -> None:
        """`use_leases`, and the same for the reservations in `stored`. The CPU does not need this order."""
        self.use_leases()
        for reservation in self.stored.values():
            reservation.use()

    def check_memory(self, destination: Destination) -> None:
        """Check, before memory is read or written, that all addresses are still inside of their storages.

        Python code that ran since the addresses were read may have resized a storage.

        Raises
        ------
        ValueError, TypeError
            If rows of an item or of the destination are not inside of a storage with memory.
        RuntimeError
            If a lease was released.
        """
        _native.check_memory(
            memory_check, self.native, destination.native, destination.planes, self.added_items, self.added
        )

    def check_leases(self) -> None:
        """Raise RuntimeError if a lease was released."""
        for item in self.items:
            if isinstance(item, Lease):
                item.check_unreleased()

    def segments(self) -> list[list[Tensor]]:
        """Per item, the tensors that contain its rows in order, for the reference."""
        return [[item] if isinstance(item, Tensor) else item.segments() for item in self.items]

    def runs(self) -> list[Run]:
        """``(item, start, length, source_start)`` of every run."""
        return self.native.runs()

    def tensors_and_runs(self) -> tuple[list[Tensor], Tensor]:
        """The operators' arguments: one tensor per item (a copy of paged rows) and the runs ``(n, 4)``."""
        tensors = [item if isinstance(item, Tensor) else item.to_tensor() for item in self.items]
        return tensors, torch.tensor(self.native.runs(), dtype=torch.int64, device="cpu").reshape(-1, 4)

    def dtypes(self) -> list[torch.dtype]:
        """The dtypes of the rows that are placed."""
        return [DTYPES[kind] for kind in self.native.kinds()]

    def check(self, destination: Destination) -> None:
        """Raise if a run does not fit in the tokens or its item, or if an item overlaps the destination."""
        self.native.check(destination.native, True)

    def _add_stores(self, destination: Destination, store: Sequence[Any]) -> dict[int, Reservation]:
        """Check and add the reservations; return them by item."""
        if not isinstance(store, (list, tuple)):
            raise TypeError(
                f"store must be a list with a Reservation or None per item, got {type(store).__name__}"
            )
        if len(store) != len(self.items):
            raise ValueError(f"got {len(self.items)} embeddings and {len(store)} entries of store")
        stored: dict[int, Reservation] = {}
        item_by_reservation: dict[int, int] = {}
        for item, reservation in enumerate(store):
            if reservation is None:
                continue
            if not isinstance(reservation, Reservation):
                kind = type(reservation).__name__
                raise TypeError(f"item {item}: store must be a Reservation or None, got {kind}")
            first_item = item_by_reservation.setdefault(id(reservation), item)
            if first_item != item:
                raise ValueError(f"items {first_item} and {item} have the same reservation")
            self._add_store(destination, item, reservation, stored)
            stored[item] = reservation
        self.native.check_stores_apart(destination.native)
        return stored

    def _add_store(
        self, destination: Destination, item: int, reservation: Reservation, stored: dict[int, Reservation]
    ) -> None:
        if reservation.paged_rows is None:
            raise RuntimeError(f"item {item}: its reservation was committed or cancelled")
        if self.native.is_narrow(item):
            if reservation.row_width != destination.hidden:
                raise ValueError(
                    f"the reservation of item {item} has rows of width {reservation.row_width}, the item has "
                    f"rows of width {destination.hidden}"
                )
        elif reservation.row_width != destination.width:
            subject = f"the reservation of item {item}"
            raise ValueError(_width_message(subject, reservation.row_width, destination))
        device = destination.device
        if reservation.device != device:
            raise ValueError(
                f"item {item} would be stored on {reservation.device}, the destination is on {device}"
            )
        for other, earlier in islice(stored.items(), 1):  # all others have the dtype of the first
            if earlier.dtype != reservation.dtype:
                raise ValueError(
                    f"items {other} and {item} would be stored as {earlier.dtype} and {reservation.dtype}: "
                    "one call stores one dtype"
                )
        self.native.add_store(item, reservation.paged_rows)

    def _add_reservation(self, destination: Destination, item: int, rows: Reservation) -> Reservation:
        if rows.paged_rows is None:
            raise RuntimeError(f"item {item}: its reservation was committed or cancelled")
        narrow = self._is_narrow(item, rows.row_width, destination)
        device = destination.device
        if rows.device != device:
            raise ValueError(f"item {item} is in a cache on {rows.device}, the destination is on {device}")
        rows.use()
        self.native.set_paged_rows(item, rows.paged_rows, False)
        if narrow:
            self.native.mark_narrow(item)
        return rows

    def _add_items(self, destination: Destination, items: list[Any]) -> None:
        """Add all items. The native reader adds plain tensors and leases, `_add_item` all other items."""
        self.items = items
        added = 0
        while (added := _reader.add(self.native, items, added, destination.native)) < len(items):
            items[added] = self._add_item(destination, added, items[added])
            added += 1

    def _add_item(self, destination: Destination, item: int, rows: Any) -> Tensor | Lease | Reservation:
        if isinstance(rows, Reservation):
            return self._add_reservation(destination, item, rows)
        if isinstance(rows, Lease):
            narrow = self._is_narrow(item, rows.row_width, destination)
            device = destination.device
            if rows.device != device:
                raise ValueError(
                    f"item {item} is a lease of a cache on {rows.device}, the destination is on {device}"
                )
            self.native.set_paged_rows(item, _paged_rows_of(item, rows), rows.pool.device != device)
            if narrow:
                self.native.mark_narrow(item)
            return rows
        if not isinstance(rows, Tensor):
            kind = type(rows).__name__
            raise TypeError(f"item {item} must be a tensor, a Lease or a Reservation, got {kind}")
        name = f"item {item}"
        plain = plain_tensor(name, rows)
        check_dtype(name, plain)
        if plain.dim() != 2:
            raise ValueError(f"{name} has shape {tuple(plain.shape)}, it must be (rows, {destination.width})")
        narrow = self._is_narrow(item, plain.shape[1], destination)
        _check_device(item, plain, destination)
        check_extent(name, plain)
        packed = plain.resolve_neg()
        if packed.stride(1) != 1:
            packed = packed.contiguous()
        if packed is not plain and packed.device != destination.device:
            packed = packed.pin_memory()
        self.native.set_source(
            item,
            packed.data_ptr(),
            row_stride(packed),
            packed.shape[0],
            KINDS[packed.dtype],
            packed.device != destination.device,
        )
        if narrow:
            self.native.mark_narrow(item)
        return packed

    def _is_narrow(self, item: int, width: int, destination: Destination) -> bool:
        """Whether rows of `width` are narrow. Raises ValueError if the placement does not take this width."""
        if width == destination.width:
            return False
        if self.native.accepts_narrow and width == destination.hidden:
            return True
        raise ValueError(_width_message(f"item {item}", width, destination))


def _paged_rows_of(item: int, lease: Lease) -> _native.PagedRows:
    """The native description of leased rows. Raises RuntimeError if any thread has released the lease."""
    rows = lease.paged_rows
    if rows is None:
        raise RuntimeError(f"item {item}: its lease of {lease.num_rows} rows was released")
    return rows


def _check_device(item: int, rows: Tensor, destination: Destination) -> None:
    device = destination.device
    if rows.device == device or (device.type == "cuda" and rows.device.type == "cpu" and rows.is_pinned()):
        return
    pinned = " and not pinned" if device.type == "cuda" and rows.device.type == "cpu" else ""
    raise ValueError(f"item {item} is on {rows.device}{pinned}, the destination is on {device}")


def _width_message(subject: str, width: int, destination: Destination) -> str:
    levels = f" (hidden {destination.hidden} x (1 + {destination.levels} deepstack levels))"
    return f"{subject} has rows of width {width}, the destination takes {destination.width}" + (
        levels if destination.levels else ""
    )


def find_overlap(items: Sequence[Sequence[Span]]) -> tuple[Run, Run] | None:
    """Return the first two spans that share a token, as runs in token order, or None."""
    native = _native.Placement()
    native.add_spans(items, Span)
    return native.find_overlap()
