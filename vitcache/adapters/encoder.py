"""The stand-in for a model's `get_image_features` or `get_video_features`: it asks the cache first."""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vitcache.adapters.families import ItemCall, Split
from vitcache.adapters.outputs import OutputForm, item_rows
from vitcache.cache import EmbeddingCache
from vitcache.keys import Namespace, content_key


@dataclass(frozen=True)
class AttachStats:
    """What the calls through one attachment came to.

    `encoded` items ran through the vision tower, `hits` came from the cache, `duplicates` were equal to
    another item of their call. `bypassed` calls went to the stock method as they were. `pixel_bytes_moved`
    counts pixels that were copied to the tower's device.
    """

    encoded: int = 0
    hits: int = 0
    duplicates: int = 0
    bypassed: int = 0
    pixel_bytes_moved: int = 0


class Session:
    """What the stand-ins of one attachment share."""

    def __init__(
        self, model: nn.Module, tower: nn.Module, cache: EmbeddingCache, namespace: Namespace
    ) -> None:
        self.model = model
        self.tower = tower
        self.cache = cache
        self.namespace = namespace.digest()
        self.stats = AttachStats()
        self.thread = threading.local()
        self._named = namespace
        self._lock = threading.Lock()

    @property
    def config(self) -> Any:
        return self.model.config

    def count(self, **more: int) -> None:
        with self._lock:
            totals = {name: getattr(self.stats, name) + number for name, number in more.items()}
            self.stats = replace(self.stats, **totals)

    def forget(self) -> None:
        """Look up none of the entries so far: the weights that made them are about to change."""
        self.namespace = replace(self._named, adapter=os.urandom(16).hex()).digest()

    def tower_device(self) -> torch.device | None:
        """Where the tower takes its pixels; None where hooks bring weights and pixels together."""
        device = next(self.tower.parameters()).device
        return None if device.type == "meta" else device


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
        if not items or not all(map(_is_plain, options.values())):
            session.count(bypassed=1)
            return self.stock(*args, **kwargs)
        keys = [self._key(item, options) for item in items]
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

    def _key(self, item: ItemCall, options: dict[str, Any]) -> bytes:
        """Return the key over the pixels and every argument; an argument of None means the config's value."""
        config = self._session.config
        values = {name: getattr(config, name, None) if v is None else v for name, v in options.items()}
        # Of these two the first is the same in every cached call, and the second is for the language model.
        told = {
            name: v
            for name, v in values.items()
            if v is not None and name not in ("return_dict", "use_cache")
        }
        return content_key(
            item.pixels,
            namespace=self._session.namespace,
            extra={"modality": self._modality, "item": item.identity, "options": told},
        )

    def _rows(self, key: bytes, item: ItemCall, options: dict[str, Any]) -> Tensor:
        """Return the item's rows `(n, row_width)`, in memory that is nobody else's."""
        session, cache = self._session, self._session.cache
        lease = cache.get(key) if self._form else None
        if lease is not None:
            with lease:
                session.count(hits=1)
                return lease.to_tensor()
        output = self._encode(item, options)
        rows = item_rows(output)
        if rows.shape[1] != cache.row_width or rows.dtype != cache.dtype:
            raise RuntimeError(
                f"{self.name} gave rows of {rows.shape[1]} {rows.dtype}, but the cache holds rows of "
                f"{cache.row_width} {cache.dtype}: detach the model, and attach it as it is now"
            )
        session.count(encoded=1)
        cache.put(key, rows)  # if it is refused, this call still has its rows
        self._form = OutputForm.of(output)
        return rows

    def _encode(self, item: ItemCall, options: dict[str, Any]) -> Any:
        session, arguments = self._session, item.arguments
        device = session.tower_device()
        if device is not None and device != item.pixels.device:
            arguments = {name: _moved(value, device) for name, value in arguments.items()}
            session.count(pixel_bytes_moved=item.pixels.nbytes)
        session.thread.encoding = True
        try:
            return self.stock(**arguments, **options)
        finally:
            session.thread.encoding = False


def _moved(value: Any, device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    # Pageable memory has been read when the call returns. Pinned memory is read later, and its owner may
    # have put other pixels there by then, so that copy is waited for.
    return value.to(device, non_blocking=not value.is_pinned())


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
