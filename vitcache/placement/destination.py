"""Where the rows of a call go: checked once, and seen as rows from then on."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from vitcache.rows import check_dtype, check_layout

ANY_NUM_TOKENS = 1 << 62


class Destination:
    """Checked destination of one call: `inputs_embeds` as rows ``(T, H)`` and `deepstack` as ``(L, T, H)``
    or None.

    `planes` is what is written, as ``(T, H)`` each: inputs_embeds, then the `levels` of deepstack. `width` is
    that of a row of embeddings that fills them all.
    """

    __slots__ = ("deepstack", "hidden", "levels", "num_tokens", "planes", "rows", "width")

    @classmethod
    def unbound(cls, width: int, device: torch.device, num_tokens: int | None) -> Destination:
        """A stand-in for a destination of which only rows' width and device are known, and perhaps its
        tokens.
        """
        self = cls("rows", torch.empty(0, width, device=device), None)
        self.num_tokens = ANY_NUM_TOKENS if num_tokens is None else num_tokens
        return self

    def __init__(self, name: str, inputs_embeds: Tensor, deepstack: Tensor | None) -> None:
        if not isinstance(inputs_embeds, Tensor):
            raise TypeError(f"{name} must be a tensor, it is {type(inputs_embeds).__name__}")
        check_dtype(name, inputs_embeds)
        if inputs_embeds.dim() not in (2, 3):
            raise ValueError(f"{name} has {inputs_embeds.dim()} dimensions, it must be (T, H) or (B, T, H)")
        self.rows = _as_rows(name, inputs_embeds, 2)
        self.num_tokens, self.hidden = self.rows.shape
        self.deepstack, self.levels, self.width, self.planes = deepstack, 0, self.hidden, [self.rows]
        if deepstack is None:
            return
        if not isinstance(deepstack, Tensor):
            raise TypeError(f"deepstack must be a tensor, it is {type(deepstack).__name__}")
        if deepstack.dtype != inputs_embeds.dtype:
            raise TypeError(f"deepstack is {deepstack.dtype}, {name} is {inputs_embeds.dtype}")
        if deepstack.device != inputs_embeds.device:
            raise ValueError(f"deepstack is on {deepstack.device}, {name} is on {inputs_embeds.device}")
        if tuple(deepstack.shape[1:]) not in (tuple(inputs_embeds.shape), (self.num_tokens, self.hidden)):
            raise ValueError(
                f"deepstack has shape {tuple(deepstack.shape)}, "
                f"it must be (L, {self.num_tokens}, {self.hidden})"
            )
        check_layout("deepstack", deepstack)
        self.deepstack = levels = _as_rows("deepstack", deepstack, 3)
        self.levels = len(levels)
        self.width *= 1 + self.levels
        self.planes += levels
        if not _lie_in_order(self.rows, levels):
            self._refuse_shared_planes(name)

    def check_apart_from(self, name: str, other: Tensor) -> None:
        """Raise ValueError if another tensor lies where this one writes."""
        first, last = extent(other)
        for plane in self.planes:
            begin, end = extent(plane)
            if first < end and begin < last:
                raise ValueError(f"{name} shares memory with the destination")

    def _refuse_shared_planes(self, name: str) -> None:
        """Raise ValueError if a row would be written twice."""
        for (one, first), (other, second) in combinations(enumerate(self.planes), 2):
            if _share_rows(first, second):
                what = f"deepstack levels {one - 1} and {other - 1} share memory"
                raise ValueError(what if one else f"deepstack shares memory with {name}")


def _as_rows(name: str, tensor: Tensor, dimensions: int) -> Tensor:
    """A view of `tensor` with `dimensions` dimensions, all tokens in the one before the last."""
    if tensor.is_neg():  # as `x.conj().imag` may be: what is written there would be read with the other sign
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
                f"{name} has stride {tensor.stride(-2)} between rows of {tensor.shape[-1]} elements"
            )
        return tensor
    except RuntimeError:
        raise ValueError(
            f"{name} of shape {tuple(tensor.shape)} and strides {tensor.stride()} is not one block of rows"
        ) from None


def _lie_in_order(rows: Tensor, levels: Tensor) -> bool:
    """Whether planes lie as they mostly do: the levels apart from the rows, and one behind the other."""
    begin, end = extent(rows)
    first, last = extent(levels)
    if first < end and begin < last:
        return False
    stride_level, stride_row, _ = levels.stride()
    return len(levels) < 2 or stride_level >= stride_row * (levels.shape[1] - 1) + levels.shape[2]


def _share_rows(one: Tensor, other: Tensor) -> bool:
    """Whether two planes ``(T, H)`` have bytes in common; columns of one buffer have not."""
    begin, end = extent(one)
    first, last = extent(other)
    if first >= end or begin >= last:
        return False
    pitch, row_bytes = (count * one.element_size() for count in (one.stride(0), one.shape[1]))
    return one.stride(0) != other.stride(0) or not row_bytes <= (first - begin) % pitch <= pitch - row_bytes


def extent(tensor: Tensor) -> tuple[int, int]:
    """Address of the first element, and the one behind the last."""
    if tensor.numel() == 0:
        return 0, 0
    reach = 0
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        reach += (size - 1) * stride
    first = tensor.data_ptr()
    return first, first + (reach + 1) * tensor.element_size()
