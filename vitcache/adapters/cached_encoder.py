"""`CachedEncoder`: replaces a model's `get_image_features` or `get_video_features`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vitcache.adapters.call_item import CallItem
from vitcache.adapters.families import ItemCall, Split
from vitcache.adapters.model_outputs import OutputForm, item_rows
from vitcache.adapters.session import Session
from vitcache.keys.content import content_key
from vitcache.pages.lease import Lease, release_all
from vitcache.pipeline.lookup import claim_all, hits, look_up

# Arguments that the stock methods pass on and the vision tower ignores. Every cached call returns an object,
# so `return_dict` is not part of the key; the other three concern the language model and its loss. Any other
# argument may change the rows.
_IGNORED_BY_THE_TOWER = {"return_dict", "use_cache", "num_items_in_batch", "output_router_logits"}


class CachedEncoder:
    """Has the signature of `stock` and returns its output; encodes only the items that are not cached.

    The output equals, bit for bit, that of `stock` with its items encoded one at a time.
    """

    def __init__(self, session: Session, stock: Callable[..., Any], modality: str, split: Split) -> None:
        functools.update_wrapper(self, stock)
        self.__signature__ = inspect.signature(stock)  # `generate` reads it to choose the arguments
        self.name = f"get_{modality}_features"
        self.stock = stock
        self._session = session
        self._modality = modality
        self._split = split
        self._form: Any = None  # an OutputForm, once an item was encoded

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the model, by deepcopy or pickle, gets its own stock method in place of this object."""
        return getattr, (self._session.model, self.name)

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        session = self._session
        if getattr(session.thread, "encoding", False):  # a stock video method may call the image method
            return self.stock(*args, **kwargs)
        arguments = self._bind(args, kwargs)
        items = None if self._must_bypass(arguments) else self._split(session.config, arguments)
        options = {
            name: value for name, value in arguments.items() if items and name not in items[0].arguments
        }
        key_arguments = {name: value for name, value in options.items() if name not in _IGNORED_BY_THE_TOWER}
        if not items or not all(map(_is_plain, key_arguments.values())):
            session.count(bypassed=1)
            return self.stock(*args, **kwargs)
        namespace = session.current_namespace()
        call_items = [CallItem(self._key(item, key_arguments, namespace), item) for item in items]
        unique: dict[bytes, CallItem] = {}
        for item in call_items:
            unique.setdefault(item.key, item)
        if len(unique) < len(call_items):
            session.count(duplicates=len(call_items) - len(unique))
        return self._serve([item.key for item in call_items], list(unique.values()), options)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return all arguments by name, those of the signature first and in its order."""
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        for parameter in self.__signature__.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments.update(arguments.pop(parameter.name))
        return arguments

    def _must_bypass(self, arguments: dict[str, Any]) -> bool:
        """Whether the stock method must serve the call.

        It serves calls in training, in grad mode or under autocast, and calls that ask for a tuple or for
        hidden states or attentions of the tower.
        """
        session = self._session
        if session.model.training or session.tower.training:
            session.forget()
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
            or torch.is_autocast_enabled((session.tower_device() or pixels.device).type)
        )

    def _key(self, call: ItemCall, options: dict[str, Any], namespace: bytes) -> bytes:
        """Return the key of the pixels and `options`. None as an option stands for the config's value."""
        config = self._session.config
        key_arguments = {
            name: value
            for name, given in options.items()
            if (value := getattr(config, name, None) if given is None else given) is not None
        }
        return content_key(
            call.pixels,
            namespace=namespace,
            extra={"modality": self._modality, "item": call.identity, "options": key_arguments},
        )

    def _serve(self, keys: list[bytes], items: list[CallItem], options: dict[str, Any]) -> Any:
        """Return the stock method's output for the items of `keys`; `items` lists each key once."""
        session, cache = self._session, self._session.cache
        leases: list[Lease] = []
        if self._form is None:  # encode the first item even if it is in the cache: its output shows the form
            with ExitStack() as cleanup:
                claim_all(cache, items[:1], cleanup)
                self._encode_all(items[:1], options)
                _insert(items[:1])
        with ExitStack() as cleanup:
            cleanup.callback(release_all, leases)
            missing = look_up(cache, items, leases, cleanup)
            if leases:
                session.count(hits=len(leases))
            try:
                self._encode_all(missing, options)
                chosen = [] if session.shadow is None else session.shadow.choose(hits(items))
                rows = {item.key: item.rows for item in items}
                output = self._form.assemble([rows[key] for key in keys], cache)
            finally:
                release_all(leases)  # before the insertions, which may need to evict these entries
                _insert(missing)
        if session.shadow is not None:
            for item, key, cached in chosen:
                session.shadow.check(key, cached, partial(self._encode_for_shadow, item, options))
        return output

    def _encode_all(self, missing: list[CallItem], options: dict[str, Any]) -> None:
        """Encode one item at a time; while an item is encoded, the pixels of the next one are copied.

        If the cache can admit the rows of an item now, they are inserted immediately. A caller that waits
        for this item then does not wait for the rest of `missing`.
        """
        session, cache = self._session, self._session.cache
        try:
            for number, item in enumerate(missing):
                self._start(item)
                for next_item in missing[number + 1 : number + 2]:
                    with suppress(Exception):  # the next iteration starts the item again, and raises
                        self._start(next_item)
                output = self._encode(item, options)
                rows = item_rows(output)
                if rows.shape[1] != cache.row_width or rows.dtype != cache.dtype:
                    raise RuntimeError(
                        f"{self.name} returned rows of {rows.shape[1]} {rows.dtype}, but the cache expects "
                        f"rows of {cache.row_width} {cache.dtype}: detach the model and attach it again"
                    )
                session.count(encoded=1)
                item.rows = rows
                self._form = OutputForm.of(output)
                if cache.has_room(rows.shape[0]):
                    _insert([item])
        finally:
            # The caller may change the pixels as soon as this call returns.
            for item in missing:
                item.wait_until_read()

    def _encode_for_shadow(self, item: CallItem, options: dict[str, Any]) -> Tensor:
        """Encode an item that was a hit, and return its rows."""
        try:
            self._start(item)
            return item_rows(self._encode(item, options))
        finally:
            item.wait_until_read()

    def _start(self, item: CallItem) -> None:
        """Queue the copies of an item's tensors to the tower's device, unless they are queued or done."""
        device = self._session.tower_device()
        if device is not None and device != item.call.pixels.device and not item.moved:
            item.start(self._session.mover_to(device))
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


def _is_plain(value: Any) -> bool:
    """Whether a value can be part of a key: None, a number, a string, or a list or tuple of these."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
