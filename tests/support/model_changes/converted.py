"""Conversions of the tower, and weights that are swapped."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from model_changes.change import REFUSED, SEVERAL, change
from model_changes.scene import Scene
from vitcache.adapters.changes.model_changes import REPLACED

ROW = "a conversion there and back"
DTYPE = "a conversion that gives the rows another dtype"
DATA = "`.data` of a weight is set to another tensor"


@change(ROW, "`.to(bfloat16).to(float32)`", REPLACED, families=SEVERAL)
def there_and_back(scene: Scene) -> Iterator[None]:
    yield
    scene.tower.to(torch.bfloat16).to(torch.float32)
    yield


@change(ROW, "`.half().float()` of one linear layer", REPLACED)
def one_layer(scene: Scene) -> Iterator[None]:
    yield
    scene.linear.half().float()
    yield


@change(DTYPE, "`.to(bfloat16)` of the model", noticed=REFUSED, families=SEVERAL)
def to_bfloat16(scene: Scene) -> Iterator[None]:
    yield
    scene.model.to(torch.bfloat16)
    yield


@change(DTYPE, "`.double()` of the model", noticed=REFUSED)
def to_double(scene: Scene) -> Iterator[None]:
    yield
    scene.model.double()
    yield


@change(ROW, "both with `set_swap_module_params_on_conversion(True)`", REPLACED)
def swapped_on_conversion(scene: Scene) -> Iterator[None]:
    yield
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        scene.tower.to(torch.bfloat16).to(torch.float32)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    yield


@change(ROW, "`torch.utils.swap_tensors`", REPLACED, families=SEVERAL)
def swapped(scene: Scene) -> Iterator[None]:
    yield
    other = nn.Parameter(torch.randn(scene.linear.weight.shape))
    torch.utils.swap_tensors(scene.linear.weight, other)
    scene.kept.append(other)
    yield


@change(ROW, "`to_empty`, and then new values", REPLACED)
def emptied(scene: Scene) -> Iterator[None]:
    yield
    scene.biased.to_empty(device="cpu")
    nn.init.normal_(scene.biased.weight)
    nn.init.zeros_(scene.biased.bias)
    yield


@change(DATA, "the old tensor is freed", REPLACED, families=SEVERAL)
def data_freed(scene: Scene) -> Iterator[None]:
    yield
    for _ in range(2):
        scene.linear.weight.data = torch.randn(scene.linear.weight.shape)
        yield


@change(DATA, "the old tensor lives, and is set again", REPLACED)
def data_kept(scene: Scene) -> Iterator[None]:
    yield
    old = scene.linear.weight.data
    scene.linear.weight.data = torch.randn(scene.linear.weight.shape)
    yield
    scene.linear.weight.data = old
    yield


@change(DATA, "a tensor that was made under `inference_mode`", REPLACED)
def data_of_inference(scene: Scene) -> Iterator[None]:
    yield
    with torch.inference_mode():
        other = torch.randn(scene.linear.weight.shape)
    scene.linear.weight.data = other
    yield


@change(DATA, "a view of one flat buffer", REPLACED)
def data_of_flat_buffer(scene: Scene) -> Iterator[None]:
    size = scene.linear.weight.numel()
    flat = torch.randn(2 * size)
    shape = scene.linear.weight.shape
    scene.linear.weight.data = flat[:size].view(shape)
    yield
    scene.linear.weight.data = flat[size:].view(shape)
    yield
    scene.linear.weight.data = flat[:size].view(shape)
    yield
