"""`Scene`: a tiny model, its tower and a prompt, for the functions that change the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import cached_property
from typing import Any

import torch
from attached import logits
from model_changes.change import Change
from tiny_models import Call, TinyFamily
from torch import Tensor, nn

TOWERS = {"internvl": "vision_tower", "llava_onevision": "vision_tower", "qwen3_vl": "visual"}


class Scene:
    """A model that a `Change` changes.

    Attributes
    ----------
    model, family, prompt
        The model, its family, and the arguments of its forward, with one image.
    kept
        Objects that must live as long as the scene.
    """

    def __init__(self, family: TinyFamily, model: nn.Module) -> None:
        self.family = family
        self.model: Any = model
        self.prompt: Call = family.prompt(model, 0)
        self.kept: list[Any] = []

    @property
    def tower(self) -> Any:
        return getattr(self.model.base_model, TOWERS[self.family.name])

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks of the tower."""
        found = dict(self.tower.named_modules())
        names = ("encoder.layer", "encoder.layers", "blocks")
        blocks = next(found[name] for name in names if name in found)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    @property
    def block(self) -> nn.Module:
        return self.blocks[0]

    @property
    def linears(self) -> list[nn.Linear]:
        return [module for module in self.block.modules() if isinstance(module, nn.Linear)]

    @property
    def linear(self) -> Any:
        """The first linear layer of the first block."""
        return self.linears[0]

    @property
    def weights(self) -> list[nn.Parameter]:
        return list(self.tower.parameters())

    @cached_property
    def lora_targets(self) -> str:
        """A regular expression for the modules of the tower that adapters change."""
        return rf".*{TOWERS[self.family.name]}.*\.(q_proj|qkv)"

    @property
    def text_targets(self) -> str:
        """A regular expression for modules of the language model."""
        return r".*language_model.*\.q_proj"

    def logits(self) -> Tensor:
        return logits(self.model, self.prompt)

    @torch.no_grad()
    def rows(self) -> Tensor:
        """The rows of the image as the class's own method returns them, whatever is attached."""
        base = self.model.base_model
        rows = type(base).get_image_features(base, **self.family.call(0)).pooler_output
        return rows if isinstance(rows, Tensor) else torch.cat(list(rows))


def run(change: Change, scene: Scene) -> Iterator[int]:
    """Prepare the scene, then change it step by step: yield the number of each step, 0 before a change."""
    with closing(change.steps(scene)) as steps:  # type: ignore[type-var]
        number = 0
        while True:
            torch.manual_seed(number)  # so that twins get equal random numbers
            try:
                next(steps)
            except StopIteration:
                return
            yield number
            number += 1
