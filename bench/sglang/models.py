"""A language model and a model with a tower, as SGLang's functions call them. Both compute nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitcache.bench.sglang.scene import Scene


class LanguageModel(nn.Module):
    """An embedding table, and a forward pass that keeps its inputs."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(scene.table.to(scene.device))
        self.input_embeds: Tensor | None = None
        self.deepstack: Tensor | None = None

    def get_input_embeddings(self) -> nn.Embedding:
        """The table, as SGLang looks text tokens up."""
        return self.table

    def forward(
        self,
        input_ids: Tensor | None,
        forward_batch: Any,
        input_embeds: Tensor,
        input_deepstack_embeds: Tensor | None = None,
    ) -> Tensor:
        """Keep the rows that SGLang has built."""
        self.input_embeds, self.deepstack = input_embeds, input_deepstack_embeds
        return input_embeds


class VisionModel:
    """A tower whose output is the features. It counts the images that it encodes."""

    def __init__(self, scene: Scene) -> None:
        self.deepstack_visual_indexes = list(range(scene.levels))
        self.num_encoded = 0
        self._hidden = scene.hidden

    def get_image_feature(self, items: list[Any]) -> Tensor:
        """Return the rows of SGLang's items in one tensor, as most models of SGLang do."""
        self.num_encoded += len(items)
        return torch.cat([item.feature for item in items])

    def separate_deepstack_embeds(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Split rows in those of the text model's width and those of the deepstack levels."""
        return rows[:, : self._hidden], rows[:, self._hidden :]
