"""`ForwardPlacement`: lets the stock forward of a model place the rows of cached items."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from vitcache.adapters import lazy_operations  # noqa: F401  (it fills the table of operations)
from vitcache.adapters.arguments_by_name import ArgumentsByName
from vitcache.adapters.feature_owner import find_language_model
from vitcache.adapters.lazy_features import LazyFeatures
from vitcache.adapters.placed_call import PlacedCall
from vitcache.adapters.replaced_methods import PlacedMerge, PreEncoding, is_compiled
from vitcache.adapters.running_call import ThreadState
from vitcache.device.locks import new_lock


class ForwardPlacement:
    """Watches the calls of a forward by hooks, and counts those whose rows were placed.

    Any thread may call the model.

    Parameters
    ----------
    owner
        The module whose forward calls its own stock methods.
    model
        A model that contains `owner`, such as one with `generate`.
    reason
        Why no call of this model may be placed. None: calls are placed where possible.

    Attributes
    ----------
    thread
        The running calls.
    """

    def __init__(self, owner: nn.Module, model: nn.Module, reason: str | None) -> None:
        self.thread = ThreadState()
        self._owner = owner
        self._reason = reason
        self._bind = ArgumentsByName(owner.forward)
        self._lock = new_lock()
        self._num_placed = 0
        self._reasons: Counter[str] = Counter()
        self._begins, self._ends = _Hook(self._begin), _Hook(self._end)
        self._replaced: list[PreEncoding | PlacedMerge] = []
        if reason is None:
            self._replaced += PreEncoding.of(model, owner, self.thread)
            self._replaced += PlacedMerge.of(owner, self.thread)

    def install(self) -> None:
        """Register the hooks, and replace the stock methods. If it raises, call `remove`."""
        self._owner.register_forward_pre_hook(self._begins, with_kwargs=True)
        self._owner.register_forward_hook(self._ends, with_kwargs=True, always_call=True)
        for replaced in self._replaced:
            replaced.install()

    @property
    def counts(self) -> tuple[int, dict[str, int]]:
        """The number of placed calls, and the number of the other calls with items by reason."""
        with self._lock:
            return self._num_placed, dict(self._reasons)

    def has_compiled_language_model(self) -> bool:
        """Whether the language model is a compiled function, which could not trace lazy features."""
        language_model = find_language_model(self._owner)
        return language_model is not None and is_compiled(language_model)

    def remove(self) -> None:
        """Remove the hooks, and restore the stock methods. A second call does nothing."""
        owner = self._owner
        # By the hooks, not by handles: an interrupt may have ended `install` before it got a handle.
        begin_tables = owner._forward_pre_hooks, owner._forward_pre_hooks_with_kwargs
        end_tables = (
            owner._forward_hooks,
            owner._forward_hooks_with_kwargs,
            owner._forward_hooks_always_called,
        )
        found: tuple[tuple[_Hook, tuple[dict[int, Any], ...]], ...] = (
            (self._begins, begin_tables),
            (self._ends, end_tables),
        )
        for hook, tables in found:
            for number in [number for number, other in list(tables[0].items()) if other is hook]:
                for table in reversed(tables):  # the hook last: after an interrupt it must still be found
                    table.pop(number, None)
        for replaced in self._replaced:
            replaced.remove()

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        """Note the beginning of a call; also of a call in which nothing can be placed, to count it."""
        if torch.compiler.is_compiling() or module is not self._owner:  # a replica of DataParallel
            return
        if kwargs is None:  # `install` was interrupted, or runs in another thread
            return
        if args:
            kwargs = self._bind(args, kwargs)
        reason = self._reason
        if reason is None:
            if kwargs.get("input_ids") is None or kwargs.get("inputs_embeds") is not None:
                reason = "the caller gave inputs_embeds"
            elif torch.is_grad_enabled():
                reason = "gradients are enabled"
            elif module.training:
                reason = "the model is in training mode"
        self.thread.call = call = PlacedCall(module, reason, id(sys._getframe(1)))
        if encoded := kwargs.get("mm_encoder_outputs"):
            call.has_items = True
            if not _are_lazy(encoded):
                call.note("the features were encoded before the call")

    def _end(self, module: nn.Module, *_: Any) -> None:
        """Count the call, which has returned or raised."""
        if torch.compiler.is_compiling() or module is not self._owner:
            return
        call, self.thread.call = self.thread.call, None
        if not isinstance(call, PlacedCall) or not call.has_items:
            return
        if not call.is_placed:
            call.note("the forward did not merge features")
        with self._lock:
            if call.reason is None:
                self._num_placed += 1
            else:
                self._reasons[call.reason] += 1


class _Hook(partial[None]):
    """A hook of a module. In a copy and in a pickle of the module, it does nothing."""

    def __reduce__(self) -> tuple[Any, ...]:
        # A function of the standard library that takes any arguments and returns None, so that the pickle can
        # be read without vitcache.
        return getattr, (nullcontext(), "__exit__")


def _are_lazy(encoded: Any) -> bool:
    """Whether one of the features that a caller gives to the forward is lazy."""
    for output in encoded.values() if isinstance(encoded, dict) else ():
        for name in ("pooler_output", "last_hidden_state"):
            features = getattr(output, name, None)
            if isinstance(features, list | tuple) and features:
                features = features[0]
            if isinstance(features, LazyFeatures):
                return True
    return False
