"""Where the rows of a call go: checked once, and seen as rows from then on."""

from __future__ import annotations

import torch
from torch import Tensor

from vitcache.dtypes import KINDS

ANY_NUM_TOKENS = 1 << 62


class Destination:
    """Checked destination of one call: `inputs_embeds` as rows ``(T, H)`` and `deepstack` as ``(L, T, H)``
    or None.
    """

    __slots__ = ("deepstack", "hidden", "levels", "num_tokens", "rows")

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
        self.deepstack, self.levels = deepstack, 0
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
        self.deepstack = _as_rows("deepstack", deepstack, 3)
        self.levels = len(deepstack)
        begin, end = extent(self.rows)
        first, last = extent(self.deepstack)
        if first < end and begin < last:
            raise ValueError(f"deepstack shares memory with {name}")

    def planes(self) -> list[Tensor]:
        """What is written, as ``(T, H)`` each: inputs_embeds, then the deepstack levels."""
        return [self.rows] if self.deepstack is None else [self.rows, *self.deepstack]

    def check_apart_from(self, name: str, other: Tensor) -> None:
        """Raise ValueError if another tensor lies where this one writes."""
        first, last = extent(other)
        for plane in self.planes():
            begin, end = extent(plane)
            if first < end and begin < last:
                raise ValueError(f"{name} shares memory with the destination")

    @property
    def width(self) -> int:
        """Elements of a row of embeddings that fills this destination."""
        return self.hidden * (1 + self.levels)


def check_dtype(name: str, tensor: Tensor) -> torch.dtype:
    if tensor.dtype not in KINDS:
        raise TypeError(f"{name} is {tensor.dtype}, it must be float32, float16 or bfloat16")
    return tensor.dtype


def _as_rows(name: str, tensor: Tensor, dimensions: int) -> Tensor:
    """A view of `tensor` with `dimensions` dimensions, all tokens in the one before the last."""
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


def extent(tensor: Tensor) -> tuple[int, int]:
    """Address of the first element, and the one behind the last."""
    if tensor.numel() == 0:
        return 0, 0
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first = tensor.data_ptr()
    return first, first + (reach + 1) * tensor.element_size()
