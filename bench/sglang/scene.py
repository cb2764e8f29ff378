"""`Scene`: one request with images, and the rows that a step of it must build."""

from __future__ import annotations

import torch
from torch import Tensor

VOCABULARY = 64
GAP = 4  # text tokens behind each image


class Scene:
    """A prompt: one text token, then each image with `GAP` text tokens behind it.

    The feature of an image is its rows, so the tower has nothing to compute.

    Parameters
    ----------
    images
        Images of the prompt.
    rows, hidden, levels
        Rows of an image, elements of a text row, and deepstack levels of an image's rows.
    device
        The device of the step. Features are on the CPU.
    """

    dtype = torch.bfloat16

    def __init__(self, images: int, *, rows: int, hidden: int, levels: int, device: torch.device) -> None:
        self.rows, self.hidden, self.levels, self.device = rows, hidden, levels, device
        self.starts = [1 + image * (rows + GAP) for image in range(images)]
        self.num_tokens = 1 + images * (rows + GAP)
        self.table = torch.randn(VOCABULARY, hidden, dtype=self.dtype)
        self.features = [self.new_feature() for _ in range(images)]

    def new_feature(self) -> Tensor:
        """Return the rows ``(rows, hidden * (1 + levels))`` of an image that no step has had."""
        return torch.randn(self.rows, self.hidden * (1 + self.levels), dtype=self.dtype)

    def text_ids(self) -> Tensor:
        """Return the ids of the prompt on the CPU. Those of image tokens are arbitrary."""
        return torch.arange(self.num_tokens) % VOCABULARY

    def truth(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return `inputs_embeds` and deepstack rows ``(tokens, hidden * levels)`` for features, by slices."""
        embeds = self.table[self.text_ids()]
        deepstack = torch.zeros(self.num_tokens, self.hidden * self.levels, dtype=self.dtype)
        for start, feature in zip(self.starts, features, strict=True):
            embeds[start : start + self.rows] = feature[:, : self.hidden]
            deepstack[start : start + self.rows] = feature[:, self.hidden :]
        return embeds, deepstack
