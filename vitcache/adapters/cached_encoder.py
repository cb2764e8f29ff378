"""The stand-in for a model's `get_image_features` or `get_video_features`: it asks the cache first."""

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

# Arguments that the stock methods hand on to the tower, which has no use for them. The first is the same in
# every cached call, the others are for the language model and its loss. All others may change the rows.
_NOT_FOR_THE_TOWER = {"return_dict", "use_cache", "num_items_in_batch", "output_router_logits"}


class CachedEncoder:
    """Called like `stock`; returns what `stock` would for each item alone, and encodes only what is new."""

    def __init__(self, session: Session, stock: Callable[..., Any], modality: str, split: Split) -> None:
        functools.update_wrapper(self, stock)
        self.__signature__ = inspect.signature(stock)  # generate() chooses the arguments by it
        self.name = f"get_{modality}_features"
        self.stock = stock
        self._session = session
        self._modality = modality
        self._split = split
        self._form: Any = None  # an OutputForm, once an item was encoded

    def __reduce__(self) -> tuple[Any, ...]:
        """In a copy of the model, by deepcopy or pickle, stand back for the copy's own method."""
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
        key_arguments = {name: value for name, value in options.items() if name not in _NOT_FOR_THE_TOWER}
        if not items or not all(map(_is_plain, key_arguments.values())):
            session.count(bypassed=1)
            return self.stock(*args, **kwargs)
        namespace = session.current_namespace()
        wanted = [CallItem(self._key(item, key_arguments, namespace), item) for item in items]
        unique: dict[bytes, CallItem] = {}
        for one in wanted:
            unique.setdefault(one.key, one)
        if len(unique) < len(wanted):
            session.count(duplicates=len(wanted) - len(unique))
        return self._serve([one.key for one in wanted], list(unique.values()), options)

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
        """Whether the call asks for more than cached rows: gradients, a tuple, states inside the tower."""
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

    def _key(self, item: ItemCall, options: dict[str, Any], namespace: bytes) -> bytes:
        """Return the key over the pixels and `options`, of which None means the config's value."""
        config = self._session.config
        key_arguments = {
            name: value
            for name, told in options.items()
            if (value := getattr(config, name, None) if told is None else told) is not None
        }
        return content_key(
            item.pixels,
            namespace=namespace,
            extra={"modality": self._modality, "item": item.identity, "options": key_arguments},
        )

    def _serve(self, keys: list[bytes], wanted: list[CallItem], options: dict[str, Any]) -> Any:
        """Return what the stock method would for the items of `keys`, of which `wanted` has each once."""
        session, cache = self._session, self._session.cache
        leases: list[Lease] = []
        if self._form is None:  # its output shows the containers, be it cached or not
            with ExitStack() as held:
                claim_all(cache, wanted[:1], held)
                self._encode_all(wanted[:1], options)
                _enter(wanted[:1])
        with ExitStack() as held:
            held.callback(release_all, leases)
            missing = look_up(cache, wanted, leases, held)
            if leases:
                session.count(hits=len(leases))
            try:
                self._encode_all(missing, options)
                chosen = [] if session.shadow is None else session.shadow.choose(hits(wanted))
                rows = {one.key: one.rows for one in wanted}
                output = self._form.assemble([rows[key] for key in keys], cache)
            finally:
                release_all(leases)  # first, as what is new may need the room
                _enter(missing)
        if session.shadow is not None:
            for one, key, cached in chosen:
                session.shadow.check(key, cached, partial(self._encode_once_more, one, options))
        return output

    def _encode_all(self, missing: list[CallItem], options: dict[str, Any]) -> None:
        """Encode one item at a time, the pixels of the next one on their way meanwhile.

        Each is entered at once if there is room, so that whoever waits for it does not wait for the others.
        """
        session, cache = self._session, self._session.cache
        try:
            for number, one in enumerate(missing):
                self._start(one)
                for upcoming in missing[number + 1 : number + 2]:
                    with suppress(Exception):  # it is started again, and raises, when it is its turn
                        self._start(upcoming)
                output = self._encode(one, options)
                rows = item_rows(output)
                if rows.shape[1] != cache.row_width or rows.dtype != cache.dtype:
                    raise RuntimeError(
                        f"{self.name} gave rows of {rows.shape[1]} {rows.dtype}, but the cache holds rows of "
                        f"{cache.row_width} {cache.dtype}: detach the model, and attach it as it is now"
                    )
                session.count(encoded=1)
                one.rows = rows
                self._form = OutputForm.of(output)
                if cache.has_room(rows.shape[0]):
                    _enter([one])
        finally:
            # Whoever called may change the pixels once this is over.
            for one in missing:
                one.wait_until_read()

    def _encode_once_more(self, one: CallItem, options: dict[str, Any]) -> Tensor:
        try:
            self._start(one)
            return item_rows(self._encode(one, options))
        finally:
            one.wait_until_read()

    def _start(self, one: CallItem) -> None:
        """Begin to move an item's tensors, if the tower is elsewhere and they are not on their way."""
        device = self._session.tower_device()
        if device is not None and device != one.call.pixels.device and not one.moved:
            one.start(self._session.mover_to(device))
            self._session.count(pixel_bytes_moved=one.call.pixels.nbytes)

    def _encode(self, one: CallItem, options: dict[str, Any]) -> Any:
        """Return what the stock method gives for one item."""
        thread = self._session.thread
        thread.encoding = True
        try:
            return self.stock(**one.take_arguments(), **options)
        finally:
            thread.encoding = False


def _enter(missing: list[CallItem]) -> None:
    """Enter what was encoded and is not there yet; of what the cache refuses, this call has the rows."""
    for one in missing:
        if one.claim is not None and isinstance(one.rows, Tensor):
            claim, one.claim = one.claim, None
            claim.put(one.rows)
            claim.release()


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
