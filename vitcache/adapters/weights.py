"""`WeightsFingerprint`: shows whether a model changed outside of its language model, and how."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from vitcache._native import ModuleWatch
from vitcache.adapters.changes.model_changes import ADAPTERS, HOOKS, METHODS, REPLACED, SETTINGS, WRITTEN
from vitcache.adapters.changes.settings import is_hook, is_merge
from vitcache.adapters.changes.watched_parts import WatchedParts
from vitcache.adapters.changes.weight_parts import inner_tensors, storage_of, version_owners
from vitcache.placement.destination import tensor_reader

# The function with which code of torch's inductor reads the address of a tensor. 0: this torch has none.
_DATA_POINTER: int = getattr(torch._C._dynamo.guards, "_torchinductor_pyobject_tensor_data_ptr", 0)


class WeightsFingerprint:
    """The weights, settings and hooks of all modules outside of the language model, at one moment.

    A write in place increments a tensor's version, and new memory has another address or frees the old one.
    Writes through `.data`, and writes to inference tensors, which have no version, are not noticed.

    Attributes
    ----------
    tower_device
        Device of the tower's first parameter.
    settings, adapters
        Settings, and those of layers with adapters, as texts by name.
    mixes_adapters
        Whether a running forward has an adapter per prompt.
    random
        The name of a module whose output is random, because it is in training mode, or "".
    """

    def __init__(self, model: nn.Module, tower: nn.Module, ignored: frozenset[str] = frozenset()) -> None:
        parts = WatchedParts(model, ignored)
        weight = next(tower.parameters(), None)
        if weight is None:
            raise RuntimeError("the tower of the attached model has no parameters any more: detach the model")
        self.tower_device: torch.device = weight.device
        self.settings, self.adapters = parts.settings, parts.adapters
        self.mixes_adapters, self.random = parts.mixes_adapters, parts.random
        self._merged = {
            name: text for name, text in (parts.adapters | parts.settings).items() if is_merge(name)
        }
        self._states = {name: _state(tensor) for name, tensor in parts.weights.items()}
        # Weak references, because a fingerprint must not keep replaced weights in memory. They refer to the
        # storages: torch does not swap tensors that have weak references.
        self._freed: list[Any] = []
        self._storages = {name: self._watch(storage_of(tensor)) for name, tensor in parts.weights.items()}
        self._methods = {name: (id(method), self._watch(method)) for name, method in parts.methods.items()}
        # This list keeps the weights of a replaced module in memory. So it is emptied when one is freed.
        self._namespaces = parts.namespaces
        self._values = parts.values
        release = partial(_release, self._freed, self._namespaces)
        self._modules = [weakref.ref(module, release) for module in parts.modules]
        self._owners = version_owners(parts.weights.values())
        addresses = {key: owner._cdata for key, owner in self._owners.items()}
        self._native = ModuleWatch(
            self._namespaces, parts.watched, self._freed, addresses, tensor_reader, Tensor, _DATA_POINTER
        )

    @property
    def num_weights(self) -> int:
        """Number of tensors, with the inner tensors of subclasses."""
        return len(self._states)

    def is_current(self) -> bool:
        """Whether nothing changed since this fingerprint was made. False may be a false alarm.

        Every call of the model runs this method, so the comparison is native (csrc/python/module_watch.h).
        """
        return self._native.is_current(self._namespaces)

    def change_since(self, earlier: WeightsFingerprint) -> tuple[str, str] | None:
        """Return the kind and the name of the first weight or method that differs from `earlier`, or None."""
        if self._states.keys() != earlier._states.keys():
            return REPLACED, min(self._states.keys() ^ earlier._states.keys())
        for name, state in self._states.items():
            before, storage = earlier._states[name], earlier._storages[name]
            if state[:-1] != before[:-1] or (storage is not None and storage() is None):
                return REPLACED, name
            if state != before:
                return WRITTEN, name
        if merged := self._merged.items() ^ earlier._merged.items():
            return WRITTEN, min(merged)[0]
        for name, other in zip_longest(self._methods, earlier._methods):
            if name != other:
                return METHODS, name or other
            number, reference = earlier._methods[name]
            if self._methods[name][0] != number or (reference is not None and reference() is None):
                return METHODS, name
        return None

    def changed_settings(self, earlier: WeightsFingerprint) -> frozenset[str]:
        """Return the names of settings, not of adapters, that differ from `earlier`."""
        return frozenset(name for name, _ in self.settings.items() ^ earlier.settings.items())

    def setting_changes_since(self, earlier: WeightsFingerprint) -> list[tuple[str, str]]:
        """Return each kind of settings that differ from `earlier`, with the name of one of them."""
        found: dict[str, str] = {}
        if self.adapters != earlier.adapters:
            found[ADAPTERS] = min(self.adapters.items() ^ earlier.adapters.items())[0]
        for name in sorted(self.changed_settings(earlier)):
            found.setdefault(HOOKS if is_hook(name) else SETTINGS, name)
        return list(found.items())

    def _watch(self, value: Any) -> Callable[[], Any] | None:
        """Return a weak reference to an object; None for None, and for an object that can have none."""
        try:
            return None if value is None else weakref.ref(value, self._freed.append)
        except TypeError:
            return None


def _state(tensor: Tensor) -> tuple[int, int, torch.dtype, int]:
    """Return the identity, address, dtype and version of a tensor. An offloaded tensor has its dtype only.

    Hooks replace an offloaded tensor at each run.
    """
    if tensor.is_meta:
        return 0, 0, tensor.dtype, -1
    address = 0
    if not inner_tensors(tensor):
        try:
            address = tensor.data_ptr()
        except RuntimeError:  # for instance, a sparse tensor
            address = 0
    return id(tensor), address, tensor.dtype, -1 if tensor.is_inference() else tensor._version


def _release(freed: list[Any], namespaces: list[Any], module: Any) -> None:
    """Note that a module was freed, and release the references to all modules' tables."""
    freed.append(module)
    namespaces.clear()
