"""`Scene`: a tiny model, its tower and a prompt, for the functions that change the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cached_property
from typing import Any

import torch
from tiny_models import Call, TinyFamily
from torch import Tensor, nn

from model_changes.change import Change


class Scene:
    """A model that a `Change` changes.

    Attributes
    ----------
    model, family, prompt
        The model, its family, and the arguments of its forward, with one image.
    call
        Computes the logits.
    kept
        Objects that must live as long as the scene.
    """

    def __init__(self, family: TinyFamily, model: nn.Module) -> None:
        self.family = family
        self.model: Any = model
        self.prompt: Call = family.prompt(model, 0)
        self.kept: list[Any] = []
        self.call: Callable[[], Tensor] = lambda: self.model(**self.prompt).logits

    @property
    def tower(self) -> Any:
        return getattr(self.model.base_model, self.family.tower)

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
    def biased(self) -> Any:
        """A linear layer of the first block that has a bias."""
        return next(linear for linear in self.linears if linear.bias is not None)

    @property
    def weights(self) -> list[nn.Parameter]:
        return list(self.tower.parameters())

    @cached_property
    def lora_targets(self) -> str:
        """A regular expression for the modules of the tower that adapters change."""
        return rf".*{self.family.tower}.*\.(q_proj|qkv)"

    @property
    def text_targets(self) -> str:
        """A regular expression for modules of the language model."""
        return r".*language_model.*\.q_proj"

    @torch.no_grad()
    def logits(self) -> Tensor:
        return self.call()


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
