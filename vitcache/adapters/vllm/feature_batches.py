"""Features of items in micro-batches, on the encoder's device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


class FeatureBatches:
    """Encodes items one by one."""

    def __init__(self, device: torch.device, ring: Any) -> None:
        self._device = device

    def run(
        self,
        items: Sequence[tuple[str, Any]],
        num_rows: Sequence[int],
        encode: Callable[[str, int, dict[str, Any]], Sequence[Tensor]],
    ) -> Iterator[tuple[list[int], Sequence[Tensor]]]:
        """Yield the positions and the rows of each micro-batch."""
        from vllm.multimodal.utils import group_and_batch_mm_kwargs

        for position, item in enumerate(items):
            for modality, number, features in group_and_batch_mm_kwargs([item], device=self._device):
                yield [position], encode(modality, number, features)
