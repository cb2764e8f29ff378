"""`CachedEncoder`: replaces a model's `get_image_features`, `get_video_features` or `get_audio_features`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vitcache.adapters.arguments_by_name import ArgumentsByName
from vitcache.adapters.call_item import CallItem, claim_missing
from vitcache.adapters.disabling import is_disabled
from vitcache.adapters.families import Family
from vitcache.adapters.feature_owner import method_name
from vitcache.adapters.model_outputs import OutputForm, item_rows, unknown_fields
from vitcache.adapters.session import Session
from vitcache.adapters.split_check import check_split
from vitcache.adapters.splits.call_parts import CallParts, Split, parts_of
from vitcache.keys.content import content_key
from vitcache.keys.parts import frame, frame_dict, has_parts, part_keys
from vitcache.pages.lease import Lease, release_all
from vitcache.pipeline.lookup import claim_all

# Arguments that the stock methods pass on and the vision tower ignores. Every cached call returns an object,
# so `return_dict` is not part of the key; the other three concern the language model and its loss. Any other
# argument may change the rows.
_IGNORED_BY_THE_TOWER = {"return_dict", "use_cache", "num_items_in_batch", "output_router_logits"}

_NO_OPTIONS = frame({})


class CachedEncoder:
    """Has the signature of `stock` and returns its output; encodes only the items that are not cached.

    The output equals, bit for bit, that of `stock` with its items encoded one at a time.
    """

    def __init__(self, session: Session, stock: Callable[..., Any], modality: str, family: Family) -> None:
        functools.update_wrapper(self, stock)
        self._bind = ArgumentsByName(stock)
        self.__signature__ = self._bind.signature  # `generate` reads it to choose the arguments
        self.name = method_name(modality)
        self.stock = stock
        self._session = session
        self._modality = modality
        self._audio_tower = family.audio_tower if modality == "audio" else None
        self._split: Split = family.splits[modality]
        self._is_proved = modality not in family.unproved
        self._forms: dict[bytes, OutputForm] = {}  # by the options of the call, once an item was encoded
        self._forms_of: tuple[bytes, int] = b"", 0  # namespace of the weights and epoch of these forms

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the model, by deepcopy or pickle, gets its own stock method in place of this object."""
        return getattr, (self._session.model, self.name)

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        session = self._session
        if session.thread.encoding:  # a stock video method may call the image method
            return self.stock(*args, **kwargs)
        if is_disabled():
            return self._serve_disabled(args, kwargs)
        arguments = self._bind(args, kwargs)
        parts: CallParts | None = None
        namespace = b""
        if not self._must_bypass(arguments):
            namespace = session.current_namespace()  # before `tower_device`, which it updates
            if not self._is_autocast(arguments):
                split = self._split(session.config, arguments)
                parts = parts_of(split) if isinstance(split, list) else split
        if parts is not None and parts.shapes:
            options = {name: value for name, value in arguments.items() if name not in parts.names}
            key_options = {
                name: value for name, value in options.items() if name not in _IGNORED_BY_THE_TOWER
            }
            if not key_options or all(map(_is_plain, key_options.values())):
                given = self._given(key_options)
                framed = frame(given) if given else _NO_OPTIONS
                keys = self._keys(parts, arguments[parts.names[0]], given, framed, namespace)
                if not self._is_proved and len(keys) > 1:
                    self._prove(parts, options, args, kwargs)
                return self._serve(parts, keys, options, framed, namespace)
        session.count(bypassed=1)
        return self.stock(*args, **kwargs)

    def _tower(self) -> Any:
        """Return the tower that encodes this modality."""
        session = self._session
        return session.tower if self._audio_tower is None else session.model._modules[self._audio_tower]

    def _device(self) -> torch.device | None:
        """Return the device of the tower's weights; None if they are offloaded, because hooks move them."""
        if self._audio_tower is None:
            return self._session.tower_device()
        device = next(self._tower().parameters()).device
        return None if device.type == "meta" else device

    def _serve_disabled(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the stock method's output. The image method is stock, too, if this video method calls it.

        A caller of an attached model may leave pixels on the CPU, so they are copied to the tower.
        """
        session = self._session
        session.disabled.count()
        if session.model.training or self._tower().training:
            session.forget()  # as in `_must_bypass`
        return self._run_stock(args, kwargs)

    def _run_stock(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the stock method's output for a whole call, after its tensors were copied to the tower."""
        session = self._session
        device = next((weight.device for weight in self._tower().parameters()), None)
        if device is not None and device.type != "meta":  # else hooks move the pixels
            args = tuple(_move(value, device) for value in args)
            kwargs = {name: _move(value, device) for name, value in kwargs.items()}
        session.thread.encoding = True
        try:
            return self.stock(*args, **kwargs)
        finally:
            session.thread.encoding = False

    def _prove(
        self, parts: CallParts, options: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Compare the split with the stock method, in the first call with several items; cache nothing.

        Raises
        ------
        TypeError
            If the stock method gives the items other numbers of rows, or other rows, than each item alone.
        """
        name = f"{self.name} of {type(self._session.model).__name__}"
        rows = []
        for item in range(len(parts.shapes)):
            call_item = CallItem(b"", parts.item_call(item))
            rows.append(self._encode_for_shadow(call_item, options))
        whole = self._run_stock(args, kwargs)
        check_split(name, whole, rows, parts.elements(list(map(len, rows))))
        self._is_proved = True

    def _must_bypass(self, arguments: dict[str, Any]) -> bool:
        """Whether the stock method must serve the call.

        It serves calls in training or in grad mode, and calls that ask for a tuple or for hidden states or
        attentions of the tower.
        """
        session = self._session
        if session.model.training or self._tower().training:
            session.forget()
            session.warn_training()
            return True
        as_object = arguments.get("return_dict")
        if as_object is None:
            as_object = session.config.return_dict
        pixels = next(iter(arguments.values()))
        return (
            torch.is_grad_enabled()
            or not as_object
            or bool(arguments.get("output_hidden_states") or arguments.get("output_attentions"))
            or not isinstance(pixels, Tensor)
        )

    def _is_autocast(self, arguments: dict[str, Any]) -> bool:
        """Whether the tower would run under autocast. The stock method serves such a call, too."""
        pixels = next(iter(arguments.values()))
        return torch.is_autocast_enabled((self._device() or pixels.device).type)

    def _given(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the options that a key depends on. None stands for the config's value."""
        config = self._session.config
        return {
            name: value
            for name, option in options.items()
            if (value := getattr(config, name, None) if option is None else option) is not None
        }

    def _keys(
        self, parts: CallParts, pixels: Tensor, given: dict[str, Any], framed: bytes, namespace: bytes
    ) -> list[bytes]:
        """Return the key of each item: of its pixels and of the options that are `given`, also `framed`.

        On the host, all keys are computed from one view of the bytes of `pixels`.
        """
        if parts.bounds is not None and has_parts(pixels):
            if parts.identities is None:
                extras = [_frame_extra(self._modality, framed)] * len(parts.shapes)
            else:
                extras = [_frame_extra(self._modality, framed, *numbers) for numbers in parts.identities]
            return part_keys(pixels, parts.bounds, parts.shapes, extras, namespace)
        return [
            content_key(
                parts.item_call(item).pixels,
                namespace=namespace,
                extra={
                    "modality": self._modality,
                    "item": None if parts.identities is None else parts.identities[item],
                    "options": given,
                },
            )
            for item in range(len(parts.shapes))
        ]

    def _serve(
        self,
        parts: CallParts,
        keys: list[bytes],
        options: dict[str, Any],
        framed: bytes,
        namespace: bytes,
    ) -> Any:
        """Return the stock method's output for the items with these keys."""
        session = self._session
        rows: dict[bytes, Any] = dict.fromkeys(keys)
        wanted = list(rows)
        form = self._form_of(framed, namespace)
        if form is None:  # encode the first item even if it is in the cache: its output shows the form
            first = CallItem(keys[0], parts.item_call(0))
            form = self._forms[framed] = self._encode_first(first, options)
            rows[keys[0]] = first.rows
            del wanted[0]
        cache = session.cache
        found = cache.get_many(wanted)
        rows.update(zip(wanted, found, strict=True))
        leases = [lease for lease in found if lease is not None]
        try:
            if len(leases) == len(wanted):
                session.count(hits=len(leases), duplicates=len(keys) - len(rows))
                output, chosen = self._assemble(parts, keys, rows, form)
            else:
                output, chosen = self._encode_missing(parts, keys, rows, leases, options, form)
        finally:
            release_all(leases)
        if session.shadow is not None:
            for key, _, cached in chosen:
                item = CallItem(key, parts.item_call(keys.index(key)))
                session.shadow.check(key, cached, partial(self._encode_for_shadow, item, options))
        return output

    def _form_of(self, framed: bytes, namespace: bytes) -> OutputForm | None:
        """Return the form of the outputs of calls with these options; None before the first output.

        The constants of a form depend on the weights, so forms end with their namespace and epoch.
        """
        current = namespace, self._session.cache.epoch
        if self._forms_of != current:
            self._forms, self._forms_of = {}, current
        return self._forms.get(framed)

    def _encode_first(self, item: CallItem, options: dict[str, Any]) -> Any:
        """Encode and insert the first item of the calls with these options; return the output's form."""
        session = self._session
        with ExitStack() as cleanup:
            cache = session.cache
            claim_all(cache, [item], cleanup)
            form = self._encode_all([item], options, None)
            if session.cache is not cache:  # the first output has shown that another cache is needed
                is_current, item.claim = item.claim is None or item.claim.epoch == cache.epoch, None
                claim_all(session.cache, [item] if is_current else [], cleanup)
            _insert([item])
        return form

    def _assemble(
        self, parts: CallParts, keys: list[bytes], rows: dict[bytes, Any], form: OutputForm
    ) -> tuple[Any, list[Any]]:
        """Return the output for rows by key, and the hits that the shadow chose."""
        shadow, chosen = self._session.shadow, []
        if shadow is not None:
            hits = ((key, key, lease) for key, lease in rows.items() if isinstance(lease, Lease))
            chosen = shadow.choose(hits)
        items = [rows[key] for key in keys]
        elements = None
        # Older stock methods stack the items of several prompts in one tensor: it has an index per item.
        is_grouped = parts.groups is not None and isinstance(form.pooler, type)
        if is_grouped or parts.slices is not None:
            elements = parts.elements(
                [item.num_rows if isinstance(item, Lease) else len(item) for item in items]
            )
        return form.assemble(items, self._session.cache, elements), chosen

    def _encode_missing(
        self,
        parts: CallParts,
        keys: list[bytes],
        rows: dict[bytes, Any],
        leases: list[Lease],
        options: dict[str, Any],
        form: OutputForm,
    ) -> tuple[Any, list[Any]]:
        """`_assemble` after the items whose rows are None were encoded; insert their rows."""
        session, cache = self._session, self._session.cache
        items = [
            CallItem(key, parts.item_call(keys.index(key))) for key, lease in rows.items() if lease is None
        ]
        with ExitStack() as cleanup:
            missing = claim_missing(cache, items, leases, cleanup)
            session.count(hits=len(leases), duplicates=len(keys) - len(rows))
            try:
                self._encode_all(missing, options, form)
                rows.update((item.key, item.rows) for item in items)
                return self._assemble(parts, keys, rows, form)
            finally:
                release_all(leases)  # before the insertions, which may need to evict these entries
                _insert(missing)

    def _encode_all(
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
                    _insert([item])
        finally:
            # The caller may change the pixels as soon as this call returns.
            for item in missing:
                item.wait_until_read()
        return form

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

    def _encode_for_shadow(self, item: CallItem, options: dict[str, Any]) -> Tensor:
        """Encode an item that was a hit, and return its rows."""
        try:
            self._start(item)
            return item_rows(self._encode(item, options), item.call.slices)
        finally:
            item.wait_until_read()

    def _start(self, item: CallItem, *, may_wait: bool = True) -> None:
        """Queue the copies of an item's tensors to the tower's device, unless they are queued or done.

        If `may_wait` is false and the ring does not have enough free bytes, queues nothing.
        """
        device = self._device()
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


def _insert(encoded: list[CallItem]) -> None:
    """Insert the encoded rows that are not in the cache yet. Rejected rows stay with the item."""
    for item in encoded:
        if item.claim is not None and isinstance(item.rows, Tensor):
            claim, item.claim = item.claim, None
            claim.put(item.rows)
            claim.release()


@functools.lru_cache(maxsize=4096, typed=True)
def _frame_extra(modality: str, options: bytes, *identity: Any) -> bytes:
    """Return the frame of the `extra` of an item's key. `options` is framed. No identity stands for None."""
    item = list(identity) if identity else None
    return frame_dict({"modality": frame(modality), "item": frame(item), "options": options})


def _move(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _is_plain(value: Any) -> bool:
    """Whether a value can be part of a key: None, a number, a string, or a list or tuple of these."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
