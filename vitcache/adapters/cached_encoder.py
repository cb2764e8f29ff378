"""`CachedEncoder`: replaces a model's `get_image_features`, `get_video_features` or `get_audio_features`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from itertools import repeat
from operator import is_
from typing import Any

import torch
from torch import Tensor

from vitcache.adapters.arguments_by_name import ArgumentsByName
from vitcache.adapters.call_keys import key_options, keys_of
from vitcache.adapters.caller import is_called_by_stock_code
from vitcache.adapters.changes.model_changes import TRAINING
from vitcache.adapters.disabling import is_disabled
from vitcache.adapters.families import Family
from vitcache.adapters.item_encoder import UnfitRows
from vitcache.adapters.keyed_encoder import KeyedCall, KeyedEncoder
from vitcache.adapters.running_call import ThreadState
from vitcache.adapters.session import Session
from vitcache.adapters.splits.call_parts import CallParts, Split, as_parts


class CachedEncoder(KeyedEncoder):
    """Has the signature of `stock` and returns its output; encodes only the items that are not cached.

    The output equals, bit for bit, that of `stock` with its items encoded one at a time. Any thread may call
    it; until the session's first output, calls run one after the other. A signal handler that calls it inside
    of such a call gets a RuntimeError.
    """

    def __init__(self, session: Session, stock: Callable[..., Any], modality: str, family: Family) -> None:
        super().__init__(session, stock, modality, family)
        functools.update_wrapper(self, stock)
        self._bind = ArgumentsByName(stock)
        self.__signature__ = self._bind.signature  # `generate` reads it to choose the arguments
        self.modality = modality
        self.earlier = vars(session.model).get(self.name)  # an attribute of the user, which `detach` restores
        self._split: Split = family.splits[modality]
        self._is_unfit = False

    @property
    def session(self) -> Session:
        return self._session

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the model, by deepcopy or pickle, gets its own stock method in place of this object."""
        return getattr, (self._session.model, self.name)

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        session = self._session
        if session.thread.encoding:  # a stock video method may call the image method
            return self.stock(*args, **kwargs)
        placement = session.placement
        if placement is not None and (running := placement.thread.call) is not None:
            if not is_called_by_stock_code(session.model, running.frame_id):
                return self._serve_user(placement.thread, args, kwargs)
            running.has_items = True
        if is_disabled():
            return self._serve_disabled(args, kwargs)
        if self._is_unfit:
            return self._serve_unfit(args, kwargs)
        arguments, config = self._bind(args, kwargs), session.model.config
        parts: CallParts | None = None
        namespace = b""
        if not self._must_bypass(arguments):
            namespace = session.current_namespace()  # before `tower_device`, which it updates
            if not (session.is_uncacheable or self._is_autocast(arguments)):
                split = self._split(config, arguments)
                parts = split if isinstance(split, CallParts) else as_parts(split)
        if parts is not None and parts.shapes:
            options = arguments.copy()
            for name in parts.names:
                options.pop(name, None)
            keyed = key_options(options, config)
            if keyed is not None:
                given, framed = keyed
                keys = keys_of(parts, arguments[parts.names[0]], self.modality, given, framed, namespace)
                # With other arguments or dimensions, a stock method may return other containers.
                missing = tuple(map(is_, map(arguments.get, parts.names), repeat(None)))
                kind = framed, len(parts.shapes[0]), missing
                whole = partial(self.run_whole, args, kwargs) if self._checks_splits else None
                call = KeyedCall(parts, keys, options, kind, namespace, whole)
                try:
                    if session.is_settled and (namespace, kind) in self._forms:
                        return self.serve(call)
                    with session.first_output.of(self.name):
                        session.complete_cache()
                        return self.serve(call)
                except UnfitRows as error:
                    self._is_unfit = True
                    session.warn(str(error))
                    return self._serve_unfit(args, kwargs)
        session.count(bypassed=1)
        session.note_unplaced("the stock method served the call")
        return self.stock(*args, **kwargs)

    def _serve_user(self, thread: ThreadState, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return tensors with memory: a hook of the forward calls this, or a caller after an interrupt."""
        call, thread.call = thread.call, None
        try:
            return self(*args, **kwargs)
        finally:
            thread.call = call

    def _serve_unfit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the stock method's output for a modality whose rows the cache cannot hold."""
        session = self._session
        if self._notice_training():
            session.warn_training()
        session.count(bypassed=1)
        session.note_unplaced("the cache cannot hold rows of this modality")
        return self.run_whole(args, kwargs)

    def _serve_disabled(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the stock method's output. The image method is stock, too, if this video method calls it.

        A caller of an attached model may leave pixels on the CPU, so they are copied to the tower.
        """
        self._session.disabled.count()
        self._session.note_unplaced("VITCACHE_DISABLE is set")
        self._notice_training()
        return self.run_whole(args, kwargs)

    def _notice_training(self) -> bool:
        """Whether the call is in training mode. If weights can be trained, no earlier entry is used again."""
        session = self._session
        model: Any = session.model
        is_training: bool = model.training or model._modules[self._tower_name].training
        if is_training and session.is_trainable():
            session.forget(TRAINING)
        return is_training

    def _must_bypass(self, arguments: dict[str, Any]) -> bool:
        """Whether the stock method must serve the call.

        It serves calls in training or in grad mode, and calls that ask for a tuple or for hidden states or
        attentions of the tower.
        """
        session = self._session
        if self._notice_training():
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
        return torch.is_autocast_enabled((self.device() or pixels.device).type)
