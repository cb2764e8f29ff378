"""`ItemEncoder`: runs a stock method for one item at a time, and reads the rows of its output."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from vitcache.adapters.call_item import CallItem
from vitcache.adapters.feature_owner import method_name
from vitcache.adapters.model_outputs import OutputForm, item_rows, unknown_fields
from vitcache.adapters.session import Session


class ItemEncoder:
    """Encodes items of one modality with the stock method, and inserts their rows.

    Any thread may call it.
    """

    def __init__(self, session: Session, stock: Callable[..., Any], modality: str, audio_tower: str) -> None:
        self.name = method_name(modality)
        self.stock = stock
        self._session = session
        self._audio_tower = audio_tower if modality == "audio" else None
        self._tower_name = self._audio_tower or session.tower_name

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
        session = self._session
        device = next((weight.device for weight in self.tower.parameters()), None)
        if device is not None and device.type != "meta":  # else hooks move the pixels
            args = tuple(_move(value, device) for value in args)
            kwargs = {name: _move(value, device) for name, value in kwargs.items()}
        session.thread.encoding = True
        try:
            return self.stock(*args, **kwargs)
        finally:
            session.thread.encoding = False

    def encode_all(
        self, missing: list[CallItem], options: dict[str, Any], form: OutputForm | None
    ) -> OutputForm | None:
        """Encode one item at a time; while an item is encoded, the pixels of the next one are copied.

        If the ring does not have enough free bytes for these pixels, they are copied after the encode: the
        host waits for no slot before it.

        If the cache can admit the rows of an item now, they are inserted immediately. A caller that waits
        for this item then does not wait for the rest of `missing`. Without a form, the only item of `missing`
        is the first one; its form is returned, and the caller inserts its rows.
        """
        session = self._session
        try:
            for number, item in enumerate(missing):
                self._start(item)
                for next_item in missing[number + 1 : number + 2]:
                    with suppress(Exception):  # the next iteration starts the item again, and raises
                        self._start(next_item, may_wait=False)
                output = self._encode(item, options)
                found, num_rows = self._read(output, item, form)
                session.count(encoded=1)
                if form is None:
                    form = found
                elif session.cache.has_room(num_rows, row_width=form.width):
                    insert([item])
        finally:
            # The caller may change the pixels as soon as this call returns.
            for item in missing:
                item.wait_until_read()
        return form

    def encode_alone(self, item: CallItem, options: dict[str, Any]) -> Tensor:
        """Encode an item that is not inserted, and return its rows."""
        try:
            self._start(item)
            return item_rows(self._encode(item, options), item.call.slices)
        finally:
            item.wait_until_read()

    def _read(self, output: Any, item: CallItem, form: OutputForm | None) -> tuple[OutputForm, int]:
        """Set the rows of an item from its output; return the output's form and the number of rows.

        Raises
        ------
        TypeError
            If the output has a field that `attach` does not understand.
        RuntimeError
            If the rows do not have the width and dtype of the cache, or of the earlier outputs.
        """
        session = self._session
        if unknown := unknown_fields(output):
            raise TypeError(
                f"{self.name} of {type(session.model).__name__} returned fields that attach does not know: "
                f"{', '.join(unknown)}; detach the model"
            )
        rows = item_rows(output, item.call.slices)
        if form is None:
            session.fit_cache(rows)
        if not session.fits(rows) or (form is not None and rows.shape[1] != form.width):
            cache = session.cache
            width = cache.row_width if form is None else form.width
            raise RuntimeError(
                f"{self.name} returned rows of {rows.shape[1]} {rows.dtype}, but the cache expects "
                f"rows of {width} {cache.dtype}: detach the model and attach it again"
            )
        item.rows = rows
        return OutputForm.of(output, rows), len(rows)

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

    def _encode(self, item: CallItem, options: dict[str, Any]) -> Any:
        """Return the stock method's output for one item."""
        thread = self._session.thread
        thread.encoding = True
        try:
            return self.stock(**item.take_arguments(), **options)
        finally:
            thread.encoding = False


def insert(encoded: list[CallItem]) -> None:
    """Insert the encoded rows that are not in the cache yet. Rejected rows stay with the item."""
    for item in encoded:
        if item.claim is not None and isinstance(item.rows, Tensor):
            claim, item.claim = item.claim, None
            claim.put(item.rows)
            claim.release()


def _move(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
