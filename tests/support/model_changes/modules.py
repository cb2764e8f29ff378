"""Replaced, added and removed parameters and modules."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from model_changes.change import NAMED, SEVERAL, change
from model_changes.random_weights import fill
from model_changes.scene import Scene
from vitcache.adapters.changes.model_changes import METHODS, REPLACED, SETTINGS, WRITTEN

ROW = "a parameter, module or tower is replaced, added or removed"
WRITES = "a write in place"


class Scaled(nn.Module):
    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, value: Tensor) -> Tensor:
        return self.inner(value) * self.factor


@change(ROW, "a new `nn.Parameter`", REPLACED, families=SEVERAL)
def new_parameter(scene: Scene) -> Iterator[None]:
    yield
    for _ in range(2):
        scene.linear.weight = nn.Parameter(torch.randn(scene.linear.weight.shape))
        yield


@change(ROW, "a bias is removed", REPLACED)
def no_bias(scene: Scene) -> Iterator[None]:
    fill([scene.biased.bias])
    yield
    scene.biased.bias = None
    yield


@change(ROW, "a module is replaced, and the old one is put back", REPLACED)
def module(scene: Scene) -> Iterator[None]:
    path = next(name for name, each in scene.block.named_modules() if each is scene.linear)
    old = scene.linear
    yield
    scene.block.set_submodule(path, Scaled(old, 2.0))
    yield
    scene.block.set_submodule(path, old)
    yield


@change(ROW, "the tower is replaced", REPLACED, families=SEVERAL)
def tower(scene: Scene) -> Iterator[None]:
    yield
    new = copy.deepcopy(scene.tower)
    fill(new.parameters())
    setattr(scene.model.base_model, scene.family.tower, new)
    yield


@change(ROW, "the projector is replaced", REPLACED)
def projector(scene: Scene) -> Iterator[None]:
    yield
    base = scene.model.base_model
    new = copy.deepcopy(base.multi_modal_projector)
    fill(new.parameters())
    base.multi_modal_projector = new
    yield


@change(ROW, "a block is appended to the tower", REPLACED)
def appended(scene: Scene) -> Iterator[None]:
    yield
    new = copy.deepcopy(scene.block)
    fill(new.parameters())
    scene.blocks.append(new)
    yield


@change(ROW, "a block is removed from the tower", REPLACED)
def removed(scene: Scene) -> Iterator[None]:
    yield
    del scene.blocks[1]
    yield


class Activated(nn.Module):
    """A layer, and two modules without weights behind it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.last = nn.ModuleDict({"tanh": nn.Tanh(), "softsign": nn.Softsign()})

    def forward(self, value: Tensor) -> Tensor:
        value = self.inner(value)
        for module in self.last.values():
            value = module(value)
        return value


def activated(scene: Scene) -> Any:
    path = next(name for name, each in scene.block.named_modules() if each is scene.linear)
    module = Activated(scene.linear)
    scene.block.set_submodule(path, module)
    return module.last


@change(ROW, "a module without weights is replaced", SETTINGS, NAMED)
def activation(scene: Scene) -> Iterator[None]:
    modules = activated(scene)
    yield
    modules["tanh"] = nn.Sigmoid()
    yield
    modules["tanh"] = nn.Tanh()
    yield


@change(ROW, "a module without weights is replaced by one of another class of the same name", SETTINGS)
def same_name(scene: Scene) -> Iterator[None]:
    modules = activated(scene)
    yield
    for gain in (2.0, 3.0):  # as if a cell of a notebook ran again
        modules["tanh"] = type("Gain", (nn.Module,), {"forward": lambda self, x, gain=gain: x * gain})()
        yield


@change(ROW, "modules of a `ModuleDict` in another order", SETTINGS, NAMED)
def reordered(scene: Scene) -> Iterator[None]:
    modules = activated(scene)
    yield
    for name in ("tanh", "softsign"):
        modules[name] = modules.pop(name)
        yield


@change(WRITES, "a weight that two layers of the tower share", WRITTEN)
def tied(scene: Scene) -> Iterator[None]:
    first, second = (each for each in scene.linears[:3:2])
    second.weight = first.weight
    yield
    fill([second.weight])
    yield


@change(WRITES, "a weight that a layer outside of the model shares", WRITTEN)
def tied_outside(scene: Scene) -> Iterator[None]:
    other = copy.deepcopy(scene.linear)
    other.weight = scene.linear.weight
    yield
    nn.init.normal_(other.weight)
    yield


@change("a method of a module is replaced on the object", "`module.forward = ...`", METHODS, families=SEVERAL)
def forward(scene: Scene) -> Iterator[None]:
    linear, stock = scene.linear, scene.linear.forward
    yield
    for factor in (2.0, 3.0):
        linear.forward = lambda value, factor=factor: stock(value) * factor
        yield
    del linear.forward
    yield


@change("a method of a module is replaced on the object", "`block.forward` as wrapped by accelerate", METHODS)
def wrapped_forward(scene: Scene) -> Iterator[None]:
    block: Any = scene.block
    stock = block.forward
    yield
    block.forward = lambda *args, **kwargs: _doubled(stock(*args, **kwargs))
    yield


def _doubled(output: Any) -> Any:
    return output * 2 if isinstance(output, Tensor) else (output[0] * 2, *output[1:])


@change(ROW, "other weights for one call, by `torch.func.functional_call`", REPLACED)
def functional(scene: Scene) -> Iterator[None]:
    name = next(name for name, weight in scene.model.named_parameters() if weight is scene.linear.weight)
    yield
    other = torch.randn(scene.linear.weight.shape)
    scene.call = lambda: torch.func.functional_call(scene.model, {name: other}, (), scene.prompt).logits
    yield
    scene.call = lambda: scene.model(**scene.prompt).logits
    yield


@change("a method of a module is replaced on the object", "`pixel_shuffle` of the base model", METHODS)
def method_of_the_owner(scene: Scene) -> Iterator[None]:
    base = scene.model.base_model
    stock = base.pixel_shuffle
    yield
    base.pixel_shuffle = lambda *args, **kwargs: stock(*args, **kwargs) * 2
    yield
