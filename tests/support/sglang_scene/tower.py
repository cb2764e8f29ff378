"""A tower that encodes images, videos and audio by one matrix, and returns rows as SGLang's encoders do."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.managers.schedule_batch import Modality
from torch import Tensor

from sglang_scene.language_model import HIDDEN
from sglang_scene.prompts import FEATURE_WIDTH

DEEP = {Modality.IMAGE: True, Modality.VIDEO: True}  # `use_deepstack` of Qwen3-VL and Qwen3-Omni


class Tower:
    """Encodes an item by one product of its feature and a matrix.

    Parameters
    ----------
    levels
        Deepstack levels of images and videos. Audio has none.
    form
        The form of an output: ``"tensor"``, ``"list"`` (a tensor for each item) or ``"3-D"``
        ``(1, rows, width)``.

    Attributes
    ----------
    batches
        The items of each call.
    failing, short
        Hashes of the items that raise, and that lack their last row.
    """

    def __init__(self, levels: int = 0, form: str = "tensor") -> None:
        self.levels, self.form = levels, form
        self.deepstack_visual_indexes = list(range(levels))
        width = HIDDEN * (1 + levels)
        self.weight = torch.randn(FEATURE_WIDTH, width, generator=torch.Generator().manual_seed(1))
        self.batches: list[list[Any]] = []
        self.failing: set[int] = set()
        self.short: set[int] = set()

    @property
    def use_deepstack(self) -> dict[Modality, bool]:
        return DEEP if self.levels else {}

    @property
    def num_encodes(self) -> int:
        """Items that were encoded."""
        return sum(map(len, self.batches))

    @property
    def most_rows(self) -> int:
        """Rows of the largest call."""
        return max(sum(len(self.feature(item)) for item in batch) for batch in self.batches)

    @staticmethod
    def feature(item: Any) -> Tensor:
        feature = item.feature
        return torch.cat(list(feature)) if isinstance(feature, list) else torch.as_tensor(feature)

    def rows(self, item: Any) -> Tensor:
        """The rows of an item, in the tower's arithmetic: the truth of tests."""
        width = HIDDEN if item.is_audio() else self.weight.shape[1]
        return (self.feature(item).float() @ self.weight[:, :width]).to(torch.bfloat16)

    def get_image_feature(self, items: list[Any]) -> Any:
        self.batches.append(list(items))
        if any(item.hash in self.failing for item in items):
            raise ValueError("the tower cannot read an item")
        rows = [self.rows(item)[: -1 if item.hash in self.short else None] for item in items]
        if self.form == "list":
            return rows
        joined = torch.cat(rows)
        return joined[None] if self.form == "3-D" else joined

    get_video_feature = get_audio_feature = get_image_feature

    @staticmethod
    def separate_deepstack_embeds(rows: Tensor) -> tuple[Tensor, Tensor]:
        return rows[:, :HIDDEN], rows[:, HIDDEN:]
