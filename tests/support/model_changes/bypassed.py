"""Calls whose rows depend on more than the model: they are not cached."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from model_changes.change import BYPASSED, SEVERAL, change
from model_changes.peft_adapters import lora
from model_changes.scene import Scene
from vitcache.adapters.changes.model_changes import TRAINING

MODES = "a call in another mode"


@change(MODES, "in training mode, and in eval mode again", TRAINING, BYPASSED, families=SEVERAL)
def training(scene: Scene) -> Iterator[None]:
    _double_in_training(scene)
    yield
    scene.model.train()
    yield
    scene.model.eval()
    _halve(scene)
    yield


@change(MODES, "with a part of the tower in training mode", TRAINING, BYPASSED, families=SEVERAL)
def part_in_training(scene: Scene) -> Iterator[None]:
    _double_in_training(scene)
    yield
    scene.tower.train()
    yield


@change(MODES, "under autocast", "", BYPASSED)
def autocast(scene: Scene) -> Iterator[None]:
    yield
    with torch.autocast("cpu", torch.bfloat16):
        yield


@change(MODES, "with `adapter_names=` of PEFT: mixed adapters in one batch", "", BYPASSED)
def mixed(scene: Scene) -> Iterator[None]:
    model = lora(scene)
    yield
    scene.call = lambda: model(**scene.prompt, adapter_names=["b"]).logits
    yield
    scene.call = lambda: model(**scene.prompt, adapter_names=["__base__"]).logits
    yield


def _double_in_training(scene: Scene) -> None:
    """A layer whose output depends on the mode, like dropout, but not random."""
    scene.linear.register_forward_hook(lambda module, args, output: output * (2 if module.training else 1))


def _halve(scene: Scene) -> None:
    with torch.no_grad():
        nn.init.constant_(scene.linear.weight, 0.25)


@change(MODES, "with dropout in one block, the model in eval mode", "", BYPASSED)
def dropout(scene: Scene) -> Iterator[None]:
    dropout = nn.Dropout(0.5).eval()
    scene.block.register_forward_hook(lambda module, args, output: _dropped(dropout, output))
    scene.block.add_module("dropout_of_a_user", dropout)
    call = scene.call

    def seeded() -> torch.Tensor:
        torch.manual_seed(7)
        return call()

    scene.call = seeded
    yield
    dropout.train()
    yield


def _dropped(dropout: nn.Module, output: Any) -> Any:
    return dropout(output) if isinstance(output, torch.Tensor) else (dropout(output[0]), *output[1:])
