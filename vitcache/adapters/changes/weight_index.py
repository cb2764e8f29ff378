"""`WeightIndex`: whether a tensor is a weight outside of the language model, or shares its memory."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from vitcache.adapters.changes.outer_modules import all_weights
from vitcache.adapters.changes.weight_parts import parts_of, storage_of


class WeightIndex:
    """The weights of a model outside of the language model, by identity and by memory, at one moment.

    The index keeps no tensor in memory. So another tensor may have the identity or the memory of a freed
    weight, and `find` then takes it for that weight.

    Parameters
    ----------
    model
        The module that `all_weights` reads.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names: dict[int, str] = {}
        # The addresses of the first byte and behind the last one of each weight, by storage.
        self._spans: dict[int, list[tuple[int, int, str]]] = {}
        for name, weight in all_weights(model):
            for part, tensor in parts_of(name, weight):
                self._names.setdefault(id(tensor), part)
                if (storage := storage_of(tensor)) is not None:
                    self._spans.setdefault(storage.data_ptr(), []).append((*_span(tensor), part))

    def find(self, tensors: Iterable[Tensor]) -> str | None:
        """Return the name of a weight that is one of the tensors, or has bytes of one. None: no weight does.

        A flat buffer has bytes of all weights that are its views.
        """
        names, spans = self._names, self._spans
        for tensor in tensors:
            if id(tensor) in names:
                return names[id(tensor)]
            for part in (tensor,) if type(tensor) is nn.Parameter else dict(parts_of("", tensor)).values():
                storage = storage_of(part)
                if storage is not None and (address := storage.data_ptr()) in spans:
                    start, stop = _span(part)
                    for first, last, name in spans[address]:
                        if start < last and first < stop:
                            return name
        return None


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the address of the tensor's first byte, and the address behind its last byte."""
    start = tensor.data_ptr()
    if not tensor.numel():
        return start, start
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()
