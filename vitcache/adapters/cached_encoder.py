"""The stand-in for a model's `get_image_features` or `get_video_features`: it asks the cache first."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitcache.adapters.families import ItemCall, Split
from vitcache.adapters.model_outputs import OutputForm, item_rows
from vitcache.adapters.session import Session
from vitcache.keys.content import content_key

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
        keys = [self._key(item, key_arguments, namespace) for item in items]
        rows: dict[bytes, Tensor] = {}
        for key, item in zip(keys, items, strict=True):
            if key in rows:
                session.count(duplicates=1)
            else:
                rows[key] = self._rows(key, item, options)
        return self._form.assemble([rows[key] for key in keys])

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
        values = {name: getattr(config, name, None) if v is None else v for name, v in options.items()}
        key_arguments = {name: v for name, v in values.items() if v is not None}
        return content_key(
            item.pixels,
            namespace=namespace,
            extra={"modality": self._modality, "item": item.identity, "options": key_arguments},
        )

    def _rows(self, key: bytes, item: ItemCall, options: dict[str, Any]) -> Tensor:
        """Return the item's rows `(n, row_width)`, in memory that is nobody else's."""
        session, cache = self._session, self._session.cache
        while self._form:
            lease = cache.get(key)
            if lease is not None:
                with lease:
                    session.count(hits=1)
                    rows = lease.to_tensor()
                if session.shadow is not None and session.shadow.wants():
                    session.shadow.check(key, rows, lambda: item_rows(self._encode(item, options)))
                return rows
            with cache.claim(key) as claim:
                if not claim.is_mine:
                    claim.wait()  # another thread encodes it
                elif key not in cache:
                    return self._encode_rows(key, item, options)
        return self._encode_rows(key, item, options)

    def _encode_rows(self, key: bytes, item: ItemCall, options: dict[str, Any]) -> Tensor:
        session, cache = self._session, self._session.cache
        epoch = cache.epoch
        output = self._encode(item, options)
        rows = item_rows(output)
        if rows.shape[1] != cache.row_width or rows.dtype != cache.dtype:
            raise RuntimeError(
                f"{self.name} gave rows of {rows.shape[1]} {rows.dtype}, but the cache holds rows of "
                f"{cache.row_width} {cache.dtype}: detach the model, and attach it as it is now"
            )
        session.count(encoded=1)
        cache.put(key, rows, epoch=epoch)  # if it is refused, this call still has its rows
        self._form = OutputForm.of(output)
        return rows

    def _encode(self, item: ItemCall, options: dict[str, Any]) -> Any:
        session = self._session
        device = session.tower_device()
        if device is None or device == item.pixels.device:
            return self._call_stock({**item.arguments, **options})
        session.count(pixel_bytes_moved=item.pixels.nbytes)
        with session.mover.moved(item.arguments, device) as arguments:
            return self._call_stock({**arguments, **options})

    def _call_stock(self, arguments: dict[str, Any]) -> Any:
        thread = self._session.thread
        thread.encoding = True
        try:
            return self.stock(**arguments)
        finally:
            thread.encoding = False


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
