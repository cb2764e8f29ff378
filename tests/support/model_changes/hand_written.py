"""Adapters that a user wrote: modules with a plain attribute that switches them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from model_changes.change import NAMED, change
from model_changes.random_weights import fill
from model_changes.scene import Scene
from vitcache.adapters.changes.model_changes import SETTINGS, WRITTEN

ROW = "a LoRA layer of your own"


class HandWrittenLora(nn.Module):
    """A linear layer with a low-rank update."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.down = nn.Parameter(torch.empty(2, inner.in_features))
        self.up = nn.Parameter(torch.empty(inner.out_features, 2))
        fill([self.down, self.up])
        self.scale = 1.0
        self.disabled = False

    def forward(self, value: Tensor) -> Tensor:
        base = self.inner(value)
        return base if self.disabled else base + value @ self.down.T @ self.up.T * self.scale


def add_lora(scene: Scene) -> HandWrittenLora:
    path = next(name for name, each in scene.block.named_modules() if each is scene.linear)
    lora = HandWrittenLora(scene.linear)
    scene.block.set_submodule(path, lora)
    return lora


@change(ROW, "its attribute `scale`", SETTINGS, NAMED)
def scale(scene: Scene) -> Iterator[None]:
    lora = add_lora(scene)
    yield
    lora.scale = 2.0
    yield
    lora.scale = 1.0
    yield


@change(ROW, "its attribute `disabled`", SETTINGS, NAMED)
def disabled(scene: Scene) -> Iterator[None]:
    lora = add_lora(scene)
    yield
    lora.disabled = True
    yield
    lora.disabled = False
    yield


@change("a write in place", "a weight of a LoRA layer of your own", WRITTEN)
def weights(scene: Scene) -> Iterator[None]:
    lora = add_lora(scene)
    yield
    fill([lora.up])
    yield
