"""Which weights a vision tower has, so that a change of them is noticed."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterable

from torch import Tensor, nn


class WeightsFingerprint:
    """Which weights outside the language model there are at one moment, and what tells of their change.

    Writing in place raises a tensor's version; the exceptions are writes through `.data` and those to
    inference tensors, which have none. Offloaded weights come and go, so only their dtype counts.
    """

    def __init__(self, model: nn.Module, tower: nn.Module) -> None:
        self._attention = [
            getattr(getattr(part, "config", None), "_attn_implementation", None) for part in (model, tower)
        ]
        # Every call comes here: `Module.parameters()` would take several times as long.
        found: list[Tensor | None] = []
        modules: list[nn.Module | None] = [model]
        language_model = getattr(model, "language_model", None)
        while modules:
            module = modules.pop()
            if module is not None and module is not language_model:
                found += module._parameters.values()
                found += module._buffers.values()
                modules += module._modules.values()
        tensors = [tensor for tensor in found if tensor is not None]
        there = [tensor for tensor in tensors if not tensor.is_meta]
        self._dtypes = [tensor.dtype for tensor in tensors]
        self._addresses = [tensor.data_ptr() for tensor in there]
        self._versions = _versions(there)
        # While a reference lives, no other tensor gets it, not even one at the same address.
        self._refs = [weakref.ref(tensor) for tensor in there]

    def unchanged_since(self, earlier: WeightsFingerprint) -> bool:
        return (
            self._attention == earlier._attention
            and self._dtypes == earlier._dtypes
            and self._addresses == earlier._addresses
            and self._versions == earlier._versions
            and all(map(operator.is_, self._refs, earlier._refs))
        )


def _versions(tensors: Iterable[Tensor]) -> list[int | None]:
    versions: list[int | None] = []
    for tensor in tensors:  # a function called for each would take longer than all the rest
        try:
            versions.append(tensor._version)
        except RuntimeError:  # an inference tensor; to ask for that first takes four times as long
            versions.append(None)
    return versions
