"""`WeightIndex`: whether a tensor is a weight outside of the language model, or shares its memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from vitcache.adapters.changes.outer_modules import outer_weights

_PLAIN = (nn.Parameter, Tensor)


class WeightIndex:
    """The weights of a model outside of the language model, by identity and by memory, at one moment.

    The index keeps no tensor in memory. So another tensor may have the identity or the memory of a freed
    weight, and `find` then takes it for that weight.

    Parameters
    ----------
    model
        The module that `outer_weights` reads.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names: dict[int, str] = {}
        # The addresses of the first byte and behind the last one of each weight, by storage.
        self._spans: dict[int, list[tuple[int, int, str]]] = {}
        for name, weight in outer_weights(model):
            self._names[id(weight)] = name
            for piece in _pieces(weight):
                if address := _storage_address(piece):
                    self._spans.setdefault(address, []).append((*_span(piece), name))

    def find(self, tensors: Iterable[Tensor]) -> str | None:
        """Return the name of a weight that is one of the tensors, or has bytes of one. None: no weight does.

        A flat buffer has bytes of all weights that are its views.
        """
        names, spans = self._names, self._spans
        for tensor in tensors:
            if id(tensor) in names:
                return names[id(tensor)]
            for piece in (tensor,) if type(tensor) in _PLAIN else _pieces(tensor):
                if (address := _storage_address(piece)) in spans:
                    start, stop = _span(piece)
                    for first, last, name in spans[address]:
                        if start < last and first < stop:
                            return name
        return None


def _pieces(tensor: Tensor) -> Sequence[Tensor]:
    """Return the tensors that have the bytes of a tensor: those inside of a DTensor, or the tensor itself."""
    flatten = getattr(type(tensor), "__tensor_flatten__", None)
    if flatten is None:
        return (tensor,)
    inner = [getattr(tensor, name) for name in flatten(tensor)[0]]
    # The parts of a DTensor include its mesh.
    return [piece for part in inner if isinstance(part, Tensor) for piece in _pieces(part)]


def _storage_address(tensor: Tensor) -> int:
    """Return the address of the tensor's storage. 0: it has no storage, or one without memory."""
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:  # sparse and fake tensors
        return 0


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the address of the tensor's first byte, and the address behind its last byte."""
    start = tensor.data_ptr()
    if not tensor.numel():
        return start, start
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()
