"""The destination of a call, checked once and then viewed as rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from vitcache import _native
from vitcache.placement.levels import level_arguments, read_levels
from vitcache.rows import KINDS, check_dtype, check_extent, plain_tensor

tensor_reader = _native.TensorReader(Tensor, Parameter)
memory_check = _native.MemoryCheck(tensor_reader, torch._C.DisableTorchFunctionSubclass, check_extent)
ANY_NUM_TOKENS = 1 << 62


class Destination:
    """The checked destination of one call: `rows` is ``(T, H)``.

    `planes` lists the tensors that the call writes: `rows`, then each of the `levels` deepstack levels
    ``(T, H)``. If the levels are evenly spaced in one tensor, this tensor is `deepstack` ``(L, T, H)``; the
    levels of a list of two or more tensors are in `planes` alone. If the levels are packed, they have one row
    per placed token, `num_packed` rows; else `num_packed` is None.

    `level_tensors` are the caller's tensors that contain the levels. `width` is the number of elements of an
    embedding row, ``H * (1 + levels)``. `native` contains the addresses of the planes.
    """

    __slots__ = (
        "deepstack",
        "device",
        "hidden",
        "level_tensors",
        "levels",
        "native",
        "num_packed",
        "num_tokens",
        "planes",
        "rows",
        "width",
    )

    rows: Tensor
    deepstack: Tensor | None
    levels: int
    num_packed: int | None
    level_tensors: Sequence[Tensor]

    @classmethod
    def unbound(cls, width: int, device: torch.device, num_tokens: int | None) -> Destination:
        """A destination without memory, to check a placement against a width, a device and `num_tokens`.

        None stands for an unknown number of tokens: every span fits.
        """
        self = cls("rows", torch.empty(0, width, device=device), None)
        self.num_tokens = ANY_NUM_TOKENS if num_tokens is None else num_tokens
        self.planes = []
        self.native = self._describe()
        return self

    def __init__(
        self,
        name: str,
        inputs_embeds: Tensor,
        deepstack: Tensor | Sequence[Tensor] | None,
        deepstack_rows: Tensor | None = None,
    ) -> None:
        native = None
        levels: Sequence[Tensor] = ()
        if deepstack_rows is not None:
            if deepstack is None:
                native = tensor_reader.read_packed(inputs_embeds, deepstack_rows)
        elif deepstack is None:
            native = tensor_reader.read_rows(inputs_embeds)
        elif type(deepstack) is list:
            levels = deepstack
            native = tensor_reader.read_planes(inputs_embeds, deepstack)
        if native is None:
            self._check(name, inputs_embeds, deepstack, deepstack_rows)
            self.level_tensors = level_arguments(deepstack, deepstack_rows) if self.levels else ()
            self.device = self.rows.device
            self.native = self._describe()
            return
        self.native, self.device = native, inputs_embeds.device
        self.num_tokens, self.hidden = native.num_tokens, native.hidden
        self.rows = (
            inputs_embeds if inputs_embeds.dim() == 2 else inputs_embeds.view(self.num_tokens, self.hidden)
        )
        if deepstack_rows is None:
            self.level_tensors = tuple(levels)
            self.deepstack, self.num_packed = levels[0][None] if len(levels) == 1 else None, None
        else:
            levels = deepstack_rows.unbind()
            self.level_tensors = (deepstack_rows,) if levels else ()
            self.deepstack, self.num_packed = deepstack_rows, deepstack_rows.shape[1]
        self.levels = len(levels)
        self.width = self.hidden * (1 + self.levels)
        self.planes = [self.rows, *levels]

    @property
    def is_listed(self) -> bool:
        """Whether the levels are separate tensors, whose addresses and strides a launch reads."""
        return self.levels > 0 and self.deepstack is None

    @property
    def is_packed(self) -> bool:
        """Whether there are levels, and they are packed."""
        return self.levels > 0 and self.num_packed is not None

    def _check(self, name: str, inputs_embeds: Tensor, deepstack: Any, deepstack_rows: Any) -> None:
        """Check arguments that the native reader refuses, and set all fields that need no address."""
        if not isinstance(inputs_embeds, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(inputs_embeds).__name__}")
        inputs_embeds = plain_tensor(name, inputs_embeds)
        check_dtype(name, inputs_embeds)
        if inputs_embeds.dim() not in (2, 3):
            raise ValueError(f"{name} has {inputs_embeds.dim()} dimensions, it must be (T, H) or (B, T, H)")
        self.rows = _as_rows(name, inputs_embeds, 2)
        self.num_tokens, self.hidden = self.rows.shape
        self.deepstack, self.num_packed, self.planes = None, None, [self.rows]
        levels, listed = read_levels(name, inputs_embeds, deepstack, deepstack_rows)
        is_packed = deepstack_rows is not None
        label = "deepstack_rows" if is_packed else "deepstack"
        are_apart = True
        if levels is not None:
            self.deepstack = levels = _as_rows(label, levels, 3)
            self.num_packed = levels.shape[1] if is_packed else None
            self.planes += levels.unbind()  # `+=` with the tensor itself would call its `__radd__` first
            are_apart = _lie_in_order(self.rows, levels)
        elif listed:
            tensors = [_as_rows(f"{label}[{level}]", tensor, 2) for level, tensor in enumerate(listed)]
            self.deepstack = tensors[0][None] if len(tensors) == 1 else None
            self.planes += tensors
            are_apart = False  # unknown yet
        self.levels = len(self.planes) - 1
        self.width = self.hidden * (1 + self.levels)
        if not are_apart:
            self._refuse_shared_planes(name, label)

    def _describe(self) -> _native.Destination:
        planes = [(plane.data_ptr(), row_stride(plane)) for plane in self.planes]
        return _native.Destination(
            planes,
            self.num_tokens,
            self.hidden,
            self.width,
            KINDS[self.rows.dtype],
            self.device.type == "cuda",
            self.device.index or 0,
            self.num_packed,
        )

    def check_apart_from(self, name: str, other: Tensor) -> None:
        """Raise ValueError if the memory of `other` overlaps that of the destination."""
        if tensor_reader.is_apart(self.native, other):
            return
        first, last = extent(other)
        for plane in self.planes:
            begin, end = extent(plane)
            if first < end and begin < last:
                raise ValueError(f"{name} shares memory with the destination")

    def _refuse_shared_planes(self, name: str, label: str) -> None:
        """Raise ValueError if two planes share memory, so that a row would be written twice."""
        for (index, plane), (other_index, other) in combinations(enumerate(self.planes), 2):
            if _share_rows(plane, other):
                if index == 0:
                    raise ValueError(f"{label} shares memory with {name}")
                raise ValueError(f"{label} levels {index - 1} and {other_index - 1} share memory")


def _as_rows(name: str, tensor: Tensor, dimensions: int) -> Tensor:
    """A view of `tensor` with `dimensions` dimensions. The dimension before the last counts all tokens."""
    tensor = plain_tensor(name, tensor)
    if not tensor.is_meta:
        check_extent(name, tensor)
    # `x.conj().imag` is an example: torch would read the written values with the sign flipped.
    if tensor.is_neg():
        raise ValueError(f"{name} has torch's negative bit set: write to its resolve_neg()")
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ValueError(f"{name} has stride {tensor.stride(-1)} between elements of a row, it must be 1")
    try:
        if tensor.dim() > dimensions:
            *leading, tokens_of_a_batch, hidden = tensor.shape
            levels = leading[: dimensions - 2]
            num_tokens = tokens_of_a_batch * leading[-1]
            tensor = tensor.view(*levels, num_tokens, hidden)
        if tensor.shape[-2] > 1 and tensor.stride(-2) < tensor.shape[-1]:
            raise ValueError(
                f"{name} has stride {tensor.stride(-2)} between rows, it must be at least {tensor.shape[-1]}"
            )
        return tensor
    except RuntimeError:
        raise ValueError(
            f"{name} of shape {tuple(tensor.shape)} and strides {tensor.stride()} cannot be viewed as rows"
        ) from None


def _lie_in_order(rows: Tensor, levels: Tensor) -> bool:
    """Whether the planes have a usual layout: levels outside of the rows, one after the other or as columns.

    Such planes share no memory.
    """
    begin, end = extent(rows)
    first, last = extent(levels)
    if first < end and begin < last:
        return False
    stride_level, stride_row, _ = levels.stride()
    count, num_tokens, hidden = levels.shape
    if count < 2 or stride_level >= stride_row * (num_tokens - 1) + hidden:
        return True
    return hidden <= stride_level and stride_level * (count - 1) + hidden <= stride_row


def _share_rows(plane: Tensor, other: Tensor) -> bool:
    """Whether two planes ``(T, H)`` share bytes. Disjoint columns of one buffer do not."""
    begin, end = extent(plane)
    first, last = extent(other)
    if first >= end or begin >= last:
        return False
    strides = {tensor.stride(0) for tensor in (plane, other) if tensor.shape[0] > 1}
    if len(strides) != 1:  # single rows, or rows of two pitches
        return True
    pitch, row_bytes = (count * plane.element_size() for count in (strides.pop(), plane.shape[1]))
    return not row_bytes <= (first - begin) % pitch <= pitch - row_bytes


def row_stride(tensor: Tensor) -> int:
    """Bytes from a row of ``(T, H)`` to the next row. The stride of a single row may be any number."""
    elements = tensor.stride(0) if tensor.shape[0] > 1 else tensor.shape[1]
    return elements * tensor.element_size()


def extent(tensor: Tensor) -> tuple[int, int]:
    """Address of the first element, and the address after the last element."""
    if tensor.numel() == 0:
        return 0, 0
    reach = 0
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        reach += (size - 1) * stride
    first = tensor.data_ptr()
    return first, first + (reach + 1) * tensor.element_size()
