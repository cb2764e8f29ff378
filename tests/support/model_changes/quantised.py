"""Quantised weights: modules of torch.ao, and tensor subclasses as torchao has them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from quantised_tensor import QuantisedTensor
from torch import nn

from model_changes.change import BY_CALL, change
from model_changes.scene import Scene
from vitcache.adapters.changes.model_changes import REPLACED, WRITTEN

ROW = "quantisation"
INNER = "a write to an inner tensor of a subclass with `__tensor_flatten__`"


def quantise(scene: Scene) -> QuantisedTensor:
    weight = QuantisedTensor.from_float(scene.linear.weight.detach())
    scene.linear.weight = nn.Parameter(weight, requires_grad=False)
    return weight


@change(ROW, "`torch.ao.quantization.quantize_dynamic`", REPLACED)
def dynamic(scene: Scene) -> Iterator[None]:
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.ao.quantization.quantize_dynamic(scene.tower, {nn.Linear}, dtype=torch.qint8, inplace=True)
    yield


@change(ROW, "weights become a tensor subclass, as by torchao's `quantize_`", REPLACED)
def subclass(scene: Scene) -> Iterator[None]:
    yield
    quantise(scene)
    yield


@change(INNER, "in place", WRITTEN)
def written(scene: Scene) -> Iterator[None]:
    quantise(scene)
    yield
    scene.linear.weight.scale.mul_(2)
    yield
    scene.linear.weight.data.values.neg_()
    yield


@change(INNER, "`copy_` of the outer tensor", WRITTEN)
def copied(scene: Scene) -> Iterator[None]:
    quantise(scene)
    yield
    with torch.no_grad():
        scene.linear.weight.copy_(QuantisedTensor.from_float(torch.randn(scene.linear.weight.shape)))
    yield


@change(INNER, "an inner tensor is replaced", REPLACED)
def replaced(scene: Scene) -> Iterator[None]:
    quantise(scene)
    yield
    scene.linear.weight.scale = scene.linear.weight.scale * 2
    yield


@change(INNER, "through `.data` of the inner tensor", noticed=BY_CALL, in_bytes=True)
def through_data(scene: Scene) -> Iterator[None]:
    quantise(scene)
    yield
    scene.linear.weight.scale.data.mul_(2)
    yield
