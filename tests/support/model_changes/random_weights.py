"""Random values for weights and gradients, from torch's global seed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def fill(tensors: Iterable[Tensor]) -> None:
    """Write random numbers into tensors. The weights that adapters and merges start with are often zero."""
    for tensor in tensors:
        tensor.copy_(torch.randn(tensor.shape) * 0.5)


def set_gradients(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, dtype=parameter.dtype)
