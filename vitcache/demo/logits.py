"""The comparison of the logits of two models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_POSITIONS_PER_COMPARISON = 1024  # bounds the logits in memory: 0.3 GB in bfloat16 with 152 k token ids


def compare_logits(first: tuple[Any, Tensor], second: tuple[Any, Tensor]) -> tuple[bool, float]:
    """Return whether the logits of all positions are bit-equal, and the largest difference of a logit.

    `first` and `second` are each a model and its hidden states ``(1, T, H)``. Each model runs its own head.
    """
    equal, largest = True, 0.0
    (model, hidden), (other_model, other_hidden) = first, second
    for part, other_part in zip(
        hidden.split(_POSITIONS_PER_COMPARISON, 1),
        other_hidden.split(_POSITIONS_PER_COMPARISON, 1),
        strict=True,
    ):
        logits, other_logits = model.lm_head(part), other_model.lm_head(other_part)
        equal &= torch.equal(logits, other_logits)
        largest = max(largest, (logits.float() - other_logits.float()).abs().max().item())
    return equal, largest
