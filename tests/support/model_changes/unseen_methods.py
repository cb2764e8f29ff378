"""Changes outside of the model's objects: classes, functions of modules, and closures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from model_changes.change import BY_CALL, change
from model_changes.scene import Scene

ROW = "code or a value outside of the model"


@change(ROW, "a method of a class is replaced", noticed=BY_CALL)
def method_of_a_class(scene: Scene) -> Iterator[None]:
    cls: Any = type(scene.block)
    stock = cls.forward
    yield

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = stock(self, *args, **kwargs)
        return output * 2 if isinstance(output, Tensor) else (output[0] * 2, *output[1:])

    cls.forward = forward
    try:
        yield
    finally:
        cls.forward = stock


@change(ROW, "a function of a module is replaced", noticed=BY_CALL)
def function(scene: Scene) -> Iterator[None]:
    stock = nn.functional.layer_norm
    yield
    nn.functional.layer_norm = lambda *args, **kwargs: stock(*args, **kwargs) * 2
    try:
        yield
    finally:
        nn.functional.layer_norm = stock


@change(ROW, "a global variable or a closure of a hook", noticed=BY_CALL)
def closure(scene: Scene) -> Iterator[None]:
    factor = [1.0]
    scene.linear.register_forward_hook(lambda module, args, output: output * factor[0])
    yield
    factor[0] = 2.0
    yield


@change(ROW, "a tensor that is an attribute, but no parameter or buffer", noticed=BY_CALL)
def loose_tensor(scene: Scene) -> Iterator[None]:
    linear = scene.linear
    linear.gain = torch.ones(())
    stock = linear.forward
    linear.forward = lambda value: stock(value) * linear.gain
    yield
    linear.gain.mul_(2)
    yield


@change(ROW, "an object that is an attribute", noticed=BY_CALL)
def loose_object(scene: Scene) -> Iterator[None]:
    class Gain:
        value = 1.0

    linear = scene.linear
    linear.gain = Gain()
    stock = linear.forward
    linear.forward = lambda value: stock(value) * linear.gain.value
    yield
    linear.gain.value = 2.0
    yield


@change(ROW, "a module in a plain list", noticed=BY_CALL)
def unregistered(scene: Scene) -> Iterator[None]:
    own = [nn.Linear(scene.linear.out_features, scene.linear.out_features)]
    linear, stock = scene.linear, scene.linear.forward
    linear.own = own
    linear.forward = lambda value: linear.own[0](stock(value))
    yield
    nn.init.normal_(own[0].weight)
    yield


@change(ROW, "`module.__class__` is set", noticed=BY_CALL)
def class_of_a_module(scene: Scene) -> Iterator[None]:
    class Doubled(nn.Linear):
        def forward(self, value: Tensor) -> Tensor:
            return super().forward(value) * 2

    yield
    scene.linear.__class__ = Doubled
    yield


@change(ROW, "an entry of `_forward_hooks` is overwritten", noticed=BY_CALL)
def overwritten_hook(scene: Scene) -> Iterator[None]:
    handle = scene.linear.register_forward_hook(lambda module, args, output: output * 2)
    yield
    scene.linear._forward_hooks[handle.id] = lambda module, args, output: output * 3
    yield


@change(ROW, "a switch of torch, such as the kernel of attention", noticed=BY_CALL)
def kernel(scene: Scene) -> Iterator[None]:
    yield
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        yield
