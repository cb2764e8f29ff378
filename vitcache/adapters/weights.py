"""`WeightsFingerprint`: shows whether the weights behind a model's vision features changed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from functools import partial
from itertools import chain, compress
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from vitcache._native import TensorTables
from vitcache.adapters.feature_owner import find_language_model
from vitcache.placement.destination import tensor_reader

_read_tables = itemgetter("_parameters", "_buffers", "_modules")
_read_dtype = attrgetter("dtype")
_read_version = attrgetter("_version")


class WeightsFingerprint:
    """Identity, dtype and version of every parameter and buffer outside the language model, at one moment.

    A write in place increments a tensor's version. Writes through `.data`, and writes to inference tensors,
    which have no version, are not noticed. Hooks replace offloaded weights at each run, so `unchanged_since`
    compares only their dtype.

    Attributes
    ----------
    tower_device
        Device of the tower's first parameter.
    """

    def __init__(self, model: nn.Module, tower: nn.Module) -> None:
        language_model = find_language_model(model)
        modules: list[nn.Module] = []
        pending: list[nn.Module | None] = [model]
        while pending:
            module = pending.pop()
            if module is not None and module is not language_model:
                modules.append(module)
                pending += module._modules.values()
        # These lists keep the weights of a replaced module in memory. So they are emptied when it is freed.
        self._namespaces = list(map(vars, modules))
        self._tables = list(_tables(self._namespaces))
        values = list(chain.from_iterable(table.values() for table in self._tables))
        self.tower_device: torch.device = next(tower.parameters()).device
        self._attention = _attention(model, tower)
        tensors = [value for value in values if isinstance(value, Tensor)]
        self._has_version = [not tensor.is_meta and not tensor.is_inference() for tensor in tensors]
        self._dtypes = list(map(_read_dtype, tensors))
        self._addresses = list(map(Tensor.data_ptr, tensors))  # 0 for an offloaded tensor
        self._versions = list(map(_read_version, compress(tensors, self._has_version)))
        # Weak references, because a fingerprint must not keep replaced weights in memory. If a tensor was
        # freed, a new tensor may have its id: then the reference is in `_freed`, too.
        self._freed: list[Any] = []
        self._tensors = [weakref.ref(tensor, self._freed.append) for tensor in tensors]
        release = partial(_release, self._freed, self._namespaces, self._tables)
        self._modules = [weakref.ref(module, release) for module in modules]
        self._native = TensorTables(self._namespaces, self._tables, tensor_reader, Tensor)

    def is_current(self, model: nn.Module, tower: nn.Module) -> bool:
        """Whether nothing changed since this fingerprint was made. False may be a false alarm.

        Every call of the model runs this method, so the comparison is native (csrc/python/tensor_tables.h).
        """
        return not self._freed and self._native.is_current() and _attention(model, tower) == self._attention

    def unchanged_since(self, earlier: WeightsFingerprint) -> bool:
        """Whether the weights and the attention implementation look the same as in `earlier`."""
        return (
            self._attention == earlier._attention
            and self._dtypes == earlier._dtypes
            and self._addresses == earlier._addresses
            and self._has_version == earlier._has_version
            and self._versions == earlier._versions
            and all(
                address == 0 or tensor() is other()
                for address, tensor, other in zip(
                    self._addresses, self._tensors, earlier._tensors, strict=True
                )
            )
        )


def _tables(namespaces: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the tables of the parameters, buffers and children of each module."""
    return chain.from_iterable(map(_read_tables, namespaces))


def _release(freed: list[Any], *others: list[Any]) -> None:
    """Note that a module was freed, and release the references to all modules' tables."""
    *references, module = others
    freed.append(module)
    for reference in references:
        reference.clear()


def _attention(*modules: Any) -> list[Any]:
    """Return the attention implementation of each module's config."""
    found = []
    for module in modules:
        config = getattr(module, "config", None)
        # transformers' property reads this entry. There, each attribute of a config is read by Python code.
        values = getattr(config, "__dict__", {})
        if "_attn_implementation_internal" in values:
            found.append(values["_attn_implementation_internal"])
        else:
            found.append(getattr(config, "_attn_implementation", None))
    return found
