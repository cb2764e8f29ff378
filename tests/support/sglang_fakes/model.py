"""A model with encoders for images, videos and audio clips, and the rows that they compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglang_fakes.requests import DataItem, Modality

HIDDEN = 4
VOCABULARY = 11


def rows_of(modality: Modality, feature: Any, width: int = HIDDEN) -> Tensor:
    """The rows of a feature with one patch per row: a multiple of its sum per column, by modality."""
    patches = torch.from_numpy(np.array(feature)) if isinstance(feature, np.ndarray) else feature
    sums = patches.float().sum(1) + modality.value
    return torch.stack([sums * (column + 1) for column in range(width)], dim=1)


class Model:
    """As a model of SGLang. It records its calls. `levels`: deepstack levels of images and videos.

    `form` makes the result of an encoder from the rows of each item.
    """

    def __init__(self, levels: int = 0, form: Any = list) -> None:
        self.levels = levels
        self.form = form
        self.deepstack_visual_indexes = list(range(levels))
        self.calls: list[list[DataItem]] = []

    @property
    def use_deepstack(self) -> dict[Modality, bool]:
        return {Modality.IMAGE: True, Modality.VIDEO: True} if self.levels else {}

    def width(self, modality: Modality) -> int:
        return HIDDEN * (1 + self.levels) if self.use_deepstack.get(modality) else HIDDEN

    def get_image_feature(self, items: list[DataItem]) -> Any:
        return self.encode(items)

    def get_video_feature(self, items: list[DataItem]) -> Any:
        return self.encode(items)

    def get_audio_feature(self, items: list[DataItem]) -> Any:
        return self.encode(items)

    def encode(self, items: list[DataItem]) -> Any:
        self.calls.append(list(items))
        return self.form([rows_of(item.modality, item.feature, self.width(item.modality)) for item in items])

    @property
    def num_encoded(self) -> int:
        return sum(map(len, self.calls))


class Table(torch.nn.Embedding):
    """The text rows: random, as the embedding of a language model."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(VOCABULARY, HIDDEN, dtype=dtype)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            self.weight.copy_(torch.randn(VOCABULARY, HIDDEN, generator=generator))
