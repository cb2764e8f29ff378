"""`SomeVlm`: a vision-language model that no table of `attach` names; tests derive classes from it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

HIDDEN = 8
SIDE = 4  # of a square image


class SomeVlm(nn.Module):
    """Encodes square images of one channel to one row per line of pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vision = nn.Linear(SIDE, HIDDEN)
        self.language_model = nn.ModuleDict({"embed": nn.Embedding(16, HIDDEN)})
        self.config = SimpleNamespace(
            model_type="some_vl",
            name_or_path="",
            return_dict=True,
            get_text_config=lambda: SimpleNamespace(hidden_size=HIDDEN),
            to_json_string=lambda use_diff: "{}",
        )
        self.eval()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model["embed"]

    def get_image_features(self, pixel_values: Tensor, **options: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(pooler_output=self.vision(pixel_values))

    def forward(self, **features: Any) -> Tensor:
        features = self.get_image_features(**features).pooler_output
        return features if isinstance(features, Tensor) else torch.cat(list(features))


def images(*seeds: int) -> Tensor:
    """Square images (n, SIDE, SIDE)."""
    return torch.stack([torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(s)) for s in seeds])
