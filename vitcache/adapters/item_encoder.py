"""`ItemEncoder`: runs a stock method for one item at a time, and reads the rows of its output."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import torch
from torch import Tensor

from vitcache.adapters.call_item import CallItem
from vitcache.adapters.families import Family
from vitcache.adapters.feature_owner import method_name
from vitcache.adapters.model_outputs import ROWS, ReadOutput, item_rows, unknown_fields
from vitcache.adapters.output_form import OutputForm
from vitcache.adapters.session import Session
from vitcache.tracing import traced


class UnfitRows(Exception):
    """The cache cannot hold the rows of this modality, and holds those of another one."""


class ItemEncoder:
    """Encodes items of one modality with the stock method, and inserts their rows.

    Any thread may call it.
    """

    def __init__(self, session: Session, stock: Callable[..., Any], modality: str, family: Family) -> None:
        self.name = method_name(modality)
        self.stock = stock
        self._session = session
        self._audio_tower = family.audio_tower if modality == "audio" else None
        self._checks_splits = modality in family.unverified
        self._tower_name = self._audio_tower or session.tower_name
        self._dtype: torch.dtype | None = None  # of the rows of this modality, once an item was encoded

    @property
    def tower(self) -> Any:
        """The tower that encodes this modality."""
        return self._session.model._modules[self._tower_name]  # `getattr` would take several times as long

    def device(self) -> torch.device | None:
        """Return the device of the tower's weights; None if they are offloaded, because hooks move them."""
        if self._audio_tower is None:
            return self._session.tower_device()
        device = next(self.tower.parameters()).device
        return None if device.type == "meta" else device

    def run_whole(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the stock method's output for a whole call, after its tensors were copied to the tower."""
        device = next((weight.device for weight in self.tower.parameters()), None)
        if device is not None and device.type != "meta":  # else hooks move the pixels
            args = tuple(_move(value, device) for value in args)
            kwargs = {name: _move(value, device) for name, value in kwargs.items()}
        return self._run_stock(*args, **kwargs)

    def encode_first(self, item: CallItem, options: dict[str, Any]) -> OutputForm:
        """Encode the first item of the calls with these options; return the form of its output.

        If the session's cache cannot hold the rows, it may be replaced.

        Raises
        ------
        UnfitRows
            If the rows have another dtype or width than the cache, which has entries of another modality.
        """
        session = self._session
        try:
            self._start(item)
            output = self._encode(item, options)
            item.rows = rows = self._rows_of(output, item)
            is_other_dtype = self._dtype is not None and self._dtype != rows.dtype
            if is_other_dtype or not session.fit_cache(rows, self.name):
                self._refuse(rows, session.cache.row_width)
            self._dtype = rows.dtype
            session.count(encoded=1)
        finally:
            item.wait_until_read()
        return OutputForm.of(output, rows)

    def encode_all(
        self, missing: list[CallItem], options: dict[str, Any], form: OutputForm, *, inserts: bool
    ) -> None:
        """Encode one item at a time; while an item is encoded, the pixels of the next one are copied.

        If the ring does not have enough free bytes for these pixels, they are copied after the encode: the
        host waits for no slot before it.

        If `inserts` is true and the cache can admit the rows of an item now, they are inserted immediately. A
        caller that waits for this item then does not wait for the rest of `missing`.
        """
        session = self._session
        try:
            for number, item in enumerate(missing):
                self._start(item)
                for next_item in missing[number + 1 : number + 2]:
                    with suppress(Exception):  # the next iteration starts the item again, and raises
                        self._start(next_item, may_wait=False)
                rows = self._encode_rows(item, options)
                if rows.shape[1] != form.width or rows.dtype != form.dtype:
                    self._refuse(rows, form.width)
                session.count(encoded=1)
                item.rows = rows
                if inserts and session.cache.has_room(rows.shape[0], row_width=form.width):
                    self.insert([item])
        finally:
            # The caller may change the pixels as soon as this call returns.
            for item in missing:
                item.wait_until_read()

    def encode_alone(self, item: CallItem, options: dict[str, Any]) -> Tensor:
        """Encode an item that is not inserted, and return its rows."""
        try:
            self._start(item)
            return item_rows(self._encode(item, options), item.call.slices)
        finally:
            item.wait_until_read()

    def insert(self, encoded: list[CallItem]) -> None:
        """Insert the encoded rows that are not in the cache yet. Rejected rows stay with the item.

        If the weights changed or another thread switched adapters since the key was made, the rows stay with
        the item, too.
        """
        session = self._session
        dtype = session.cache.dtype
        for item in encoded:
            if item.claim is not None and isinstance(item.rows, Tensor):
                claim, item.claim = item.claim, None
                try:
                    if session.state.is_in_state_of(item.namespace):
                        claim.put(item.rows.to(dtype), tenant=session.tenant)
                finally:
                    claim.release()

    def _rows_of(self, output: Any, item: CallItem) -> Tensor:
        """Return the rows of an item from its output.

        Raises
        ------
        TypeError
            If the output has a field that `attach` does not understand, or no fields.
        """
        name = f"{self.name} of {type(self._session.model).__name__}"
        if not any(hasattr(output, field) for field in ROWS):
            raise TypeError(
                f"{name} returned a {type(output).__name__}, expected an object with {' or '.join(ROWS)}; "
                "detach the model"
            )
        read = ReadOutput.of(output)
        if unknown := unknown_fields(output, read, has_constants=not self._checks_splits):
            raise TypeError(
                f"{name} returned fields that attach does not know: {', '.join(unknown)}; detach the model"
            )
        try:
            return read.rows(item.call.slices)
        except RuntimeError as error:
            raise RuntimeError(f"{name}: {error}") from None

    def _refuse(self, rows: Tensor, width: int) -> NoReturn:
        """Raise for rows that do not fit the cache, or differ from earlier rows of this modality."""
        cache, found = self._session.cache, f"{self.name} returned rows of {rows.shape[1]} {rows.dtype}"
        if self._session.settled_by not in (None, self.name):
            raise UnfitRows(
                f"{found}, but the default cache has rows of {width} {cache.dtype} of another modality: the "
                "stock method serves all calls; attach with a cache of float32 to cache both"
            )
        raise RuntimeError(
            f"{found}, but the cache expects rows of {width} {self._dtype or cache.dtype}: detach the model "
            "and attach it again"
        )

    def _start(self, item: CallItem, *, may_wait: bool = True) -> None:
        """Queue the copies of an item's tensors to the tower's device, unless they are queued or done.

        If `may_wait` is false and the ring does not have enough free bytes, queues nothing.
        """
        device = self.device()
        if device is not None and device != item.call.pixels.device and not item.moved:
            mover = self._session.mover_to(device)
            if may_wait or item.has_free_bytes(mover):
                item.start(mover)
                self._session.count(pixel_bytes_moved=item.call.pixels.nbytes)

    def _encode_rows(self, item: CallItem, options: dict[str, Any]) -> Tensor:
        """Encode one item, and note the time for the tiers of the cache if they need it."""
        cache = self._session.cache
        times = cache.encode_times
        if times is None or self.device() != cache.device:
            return self._rows_of(self._encode(item, options), item)
        start = times.start()
        output = self._encode(item, options)
        rows = self._rows_of(output, item)
        times.stop(start, *rows.shape)
        return rows

    @traced("encode")
    def _encode(self, item: CallItem, options: dict[str, Any]) -> Any:
        """Return the stock method's output for one item."""
        return self._run_stock(**item.take_arguments(), **options)

    def _run_stock(self, *args: Any, **kwargs: Any) -> Any:
        """Run the stock method; replaced methods that it calls are stock, too."""
        thread = self._session.thread
        try:
            thread.encoding = True
            return self.stock(*args, **kwargs)
        finally:
            thread.encoding = False


def _move(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
