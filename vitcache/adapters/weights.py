"""`WeightsFingerprint`: shows whether the weights behind a model's vision features changed."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterable

from torch import Tensor, nn


class WeightsFingerprint:
    """Identity, dtype and version of every parameter and buffer outside the language model, at one moment.

    A write in place increments a tensor's version. Writes through `.data`, and writes to inference tensors,
    which have no version, are not noticed. Hooks replace offloaded weights at each run, so only their dtype
    is compared.
    """

    def __init__(self, model: nn.Module, tower: nn.Module) -> None:
        self._attention = [
            getattr(getattr(part, "config", None), "_attn_implementation", None) for part in (model, tower)
        ]
        # This runs in every call of the model. `Module.parameters()` would take several times as long.
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
        present = [tensor for tensor in tensors if not tensor.is_meta]
        self._dtypes = [tensor.dtype for tensor in tensors]
        self._addresses = [tensor.data_ptr() for tensor in present]
        self._versions = _versions(present)
        # A tensor has one weak reference object while that object is alive, so `is` compares tensors, even if
        # a new tensor gets the address of a freed one.
        self._refs = [weakref.ref(tensor) for tensor in present]

    def unchanged_since(self, earlier: WeightsFingerprint) -> bool:
        """Whether the weights and the attention implementation look the same as in `earlier`."""
        return (
            self._attention == earlier._attention
            and self._dtypes == earlier._dtypes
            and self._addresses == earlier._addresses
            and self._versions == earlier._versions
            and all(map(operator.is_, self._refs, earlier._refs))
        )


def _versions(tensors: Iterable[Tensor]) -> list[int | None]:
    versions: list[int | None] = []
    for tensor in tensors:  # inline: a function call per tensor would take longer than all the rest
        try:
            versions.append(tensor._version)
        except RuntimeError:  # an inference tensor; calling is_inference() first takes four times as long
            versions.append(None)
    return versions
