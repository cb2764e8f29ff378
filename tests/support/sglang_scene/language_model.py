"""A language model of SGLang that returns the rows it gets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

HIDDEN = 32
VOCABULARY = 500


class LanguageModel(torch.nn.Module):
    """An embedding table in bfloat16. A forward pass stores its arguments."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(0))
        self.table = torch.nn.Embedding.from_pretrained(table.to(torch.bfloat16))
        self.embeds: Tensor | None = None
        self.arguments: dict[str, Any] = {}

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.table

    def text_rows(self, ids: Tensor) -> Tensor:
        """The rows of tokens, also of placeholders: SGLang clamps their ids."""
        return self.table.weight[ids.clamp(0, VOCABULARY - 1)]

    def forward(self, input_ids: None, forward_batch: Any, input_embeds: Tensor, **arguments: Any) -> Tensor:
        self.embeds, self.arguments = input_embeds, arguments
        return input_embeds
