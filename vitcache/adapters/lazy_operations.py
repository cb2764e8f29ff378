"""The operations that keep features lazy: those of the stock forwards and of `generate` before the merge.

Each takes the function of torch and its arguments. NotImplemented stands for: it needs tensors with memory.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitcache.adapters.lazy_features import LAZY_OPERATIONS, LazyFeatures
from vitcache.adapters.lazy_rows import Range, merged
from vitcache.placement.spans import runs_of_tokens
from vitcache.rows import DTYPES


def _merge(_: Any, inputs_embeds: Tensor, mask: Tensor, source: Any) -> Any:
    """Write the rows in place, if the thread is in a forward that allows it."""
    if not isinstance(source, LazyFeatures) or (call := source.thread.call) is None:
        return NotImplemented
    if source.memory:
        call.note("the features were read before the merge")
        return NotImplemented
    return call.place(inputs_embeds, mask, source)


def _cat(_: Any, tensors: Sequence[Any], dim: int = 0) -> Any:
    """Joined rows; those of a deepstack level that a merge has packed already have memory."""
    first = tensors[0]
    if dim != 0 or not _are_alike(tensors):
        return NotImplemented
    ranges, length = first.ranges, first.lengths[0]
    if len(tensors) > 1:
        ranges, length = (
            merged(chain(*(each.ranges for each in tensors))),
            sum(each.lengths[0] for each in tensors),
        )
    lengths = length, *first.lengths[1:]
    if first.plane and first.thread.call is not None:
        level = first.thread.call.take_level(first.rows, first.plane, ranges, first.element_type)
        if level is not None:
            return level.view(lengths)
    return first.copy_of(ranges, lengths)


def _stack(_: Any, tensors: Sequence[Any], dim: int = 0) -> Any:
    first = tensors[0]
    if dim != 0 or not _are_alike(tensors) or len(first.lengths) != 2:
        return NotImplemented
    if any(tensor.lengths != first.lengths for tensor in tensors):
        return NotImplemented
    ranges = merged(chain(*(each.ranges for each in tensors)))
    return first.copy_of(ranges, (len(tensors), *first.lengths))


def _to(_: Any, features: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(features, LazyFeatures) or features.memory or len(args) > 2:  # it may ask for a copy
        return NotImplemented
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    own = features.element_type
    if device not in (None, features.rows.device):
        return NotImplemented
    if dtype in (None, own):
        return features
    # A second cast could round twice. A placement can write `DTYPES` only.
    if own != features.rows.dtype or dtype not in DTYPES:
        return NotImplemented
    return features.copy_of(features.ranges, features.lengths, dtype)


def _index(_: Any, features: Any, index: Any) -> Any:
    if not _is_lazy(features):
        return NotImplemented
    length, *rest = features.lengths
    per_index = rest[0] if len(rest) == 2 else 1
    if index is None and len(rest) == 1:
        return features.view_of(0, (1, *features.lengths))
    if type(index) is int and len(rest) == 2 and -length <= index < length:
        return features.view_of(index % length * per_index, rest)
    if type(index) is slice and index.step in (None, 1):
        chosen = range(length)[index]
        return features.view_of(chosen.start * per_index, (len(chosen), *rest))
    if isinstance(index, Tensor) and index.dim() == 1 and index.dtype == torch.int64 and len(rest) == 1:
        return _gather(features, index.numpy(force=True))
    return NotImplemented


def _gather(features: LazyFeatures, index: np.ndarray) -> Any:
    """The rows that `generate` takes for one chunk of a prompt."""
    if not len(index) or index.min() < 0 or index.max() >= features.lengths[0]:
        return NotImplemented
    ranges: list[Range] = []
    for run in runs_of_tokens(index):
        ranges += features.cut(run.start, run.stop)
    return features.copy_of(merged(ranges), (len(index), features.lengths[1]))


def _unbind(_: Any, features: Any, dim: int = 0) -> Any:
    if not _is_lazy(features) or dim != 0 or len(features.lengths) != 3:
        return NotImplemented
    length, *shape = features.lengths
    return tuple(features.view_of(number * shape[0], shape) for number in range(length))


def _split(_: Any, features: Any, sizes: Any, dim: int = 0) -> Any:
    if not _is_lazy(features) or dim != 0 or len(features.lengths) != 2 or sum(sizes) != features.lengths[0]:
        return NotImplemented
    parts, start = [], 0
    for size in sizes:
        parts.append(features.view_of(start, (size, features.lengths[1])))
        start += size
    return tuple(parts)


def _view(function: Any, features: Any, *args: Any, **kwargs: Any) -> Any:
    """Whole rows in their order, in another shape."""
    if not _is_lazy(features):
        return NotImplemented
    like = torch.empty(features.lengths, dtype=features.element_type, device="meta")
    view = function(like, *args, **kwargs)
    if view.dtype != like.dtype or not 2 <= view.dim() <= 3 or view.shape[-1] != like.shape[-1]:
        return NotImplemented
    return features.view_of(0, view.shape)


def _repeat(_: Any, features: Any, *sizes: Any) -> Any:
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        (sizes,) = sizes
    if not _is_lazy(features) or len(sizes) != len(features.lengths) or set(sizes[1:]) != {1}:
        return NotImplemented
    length, *rest = features.lengths
    try:
        times = operator.index(sizes[0])  # a number of numpy, or a tensor
    except TypeError:
        return NotImplemented  # torch 2.9 accepts a tuple here
    return features.copy_of(merged(features.ranges * times), (times * length, *rest))


def _copy(_: Any, features: Any, *memo: Any) -> Any:
    return features.copy_of(features.ranges, features.lengths) if _is_lazy(features) else NotImplemented


def _is_lazy(value: Any) -> bool:
    return isinstance(value, LazyFeatures) and not value.memory


def _are_alike(tensors: Sequence[Any]) -> bool:
    """Whether all are lazy features of one plane of the same items, and may be joined."""
    first = tensors[0]
    for tensor in tensors:
        if not isinstance(tensor, LazyFeatures) or tensor.memory or tensor.rows is not first.rows:
            return False
        if tensor.plane != first.plane or tensor.element_type != first.element_type:
            return False
        if tensor.lengths[1:] != first.lengths[1:]:
            return False
    return True


_FUNCTIONS: dict[Callable[..., Any], tuple[Callable[..., Any], ...]] = {
    _merge: (Tensor.masked_scatter,),
    _cat: (torch.cat,),
    _stack: (torch.stack,),
    _to: (Tensor.to,),
    _index: (Tensor.__getitem__,),
    _unbind: (Tensor.unbind,),
    _split: (Tensor.split_with_sizes,),
    _view: (
        *(Tensor.reshape, Tensor.view, Tensor.flatten, Tensor.unflatten, Tensor.unsqueeze),
        *(Tensor.contiguous, Tensor.detach),
    ),
    _repeat: (Tensor.repeat,),
    _copy: (Tensor.clone, Tensor.__deepcopy__),
}
LAZY_OPERATIONS.update({each: operation for operation, functions in _FUNCTIONS.items() for each in functions})
