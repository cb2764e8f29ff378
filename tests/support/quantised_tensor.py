"""`QuantisedTensor`: a weight of int8 values and one scale per row, as torchao's subclasses hold them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing

aten = torch.ops.aten


class QuantisedTensor(Tensor):
    """A wrapper subclass: its own storage is empty, the inner tensors have the bytes."""

    values: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls: Any, values: Tensor, scale: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, values.shape, dtype=scale.dtype, device=values.device)

    def __init__(self, values: Tensor, scale: Tensor) -> None:
        self.values, self.scale = values, scale

    @classmethod
    def from_float(cls, weight: Tensor) -> QuantisedTensor:
        scale = weight.abs().amax(1, keepdim=True) / 127
        return cls((weight / scale).round().to(torch.int8), scale)

    def dequantise(self) -> Tensor:
        return self.values.to(self.scale.dtype) * self.scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["values", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: Any, context: None, size: Any, stride: Any) -> QuantisedTensor:
        return cls(inner["values"], inner["scale"])

    def __repr__(self) -> str:  # type: ignore[override]
        return f"QuantisedTensor({tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is aten.copy_.default:
            args[0].values.copy_(args[1].values)
            args[0].scale.copy_(args[1].scale)
            return args[0]
        if function in (aten.detach.default, aten.clone.default, aten.alias.default):
            inner = cls(function(args[0].values), function(args[0].scale))
            return return_and_correct_aliasing(function, args, kwargs, inner)

        def plain(value: Any) -> Any:
            return value.dequantise() if isinstance(value, QuantisedTensor) else value

        return function(*torch.utils._pytree.tree_map(plain, args), **kwargs)
