"""Writes in place."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn, optim

from model_changes.change import SEVERAL, change
from model_changes.random_weights import fill
from model_changes.scene import Scene
from vitcache.adapters.changes.model_changes import REPLACED, WRITTEN

LOADED = "`load_state_dict`"
ROW = "a write in place"


def new_state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: torch.randn(tensor.shape) * 0.5 for name, tensor in module.state_dict().items()}


@change(LOADED, "of the tower", WRITTEN, families=SEVERAL)
def load(scene: Scene) -> Iterator[None]:
    yield
    scene.tower.load_state_dict(new_state(scene.tower))
    yield


@change(LOADED, "with `assign=True`", REPLACED, families=SEVERAL)
def assign(scene: Scene) -> Iterator[None]:
    yield
    scene.tower.load_state_dict(new_state(scene.tower), assign=True)
    yield


@change(LOADED, "with `strict=False` and one weight", WRITTEN)
def load_one(scene: Scene) -> Iterator[None]:
    yield
    state = new_state(scene.linear)
    scene.linear.load_state_dict({"weight": state["weight"]}, strict=False)
    yield


@change(LOADED, "of the whole model", WRITTEN)
def load_model(scene: Scene) -> Iterator[None]:
    yield
    state = scene.model.state_dict()
    scene.model.load_state_dict({name: tensor * 0.5 for name, tensor in state.items()})
    yield


@change(ROW, "`copy_` under `no_grad`", WRITTEN, families=SEVERAL)
def copied(scene: Scene) -> Iterator[None]:
    yield
    fill(scene.weights)
    yield


@change(ROW, "`copy_` under `inference_mode`", WRITTEN)
def copied_in_inference_mode(scene: Scene) -> Iterator[None]:
    yield
    with torch.inference_mode():
        scene.linear.weight.copy_(torch.randn(scene.linear.weight.shape))
    yield


@change(ROW, "one element of one weight", WRITTEN)
def one_element(scene: Scene) -> Iterator[None]:
    yield
    with torch.no_grad():
        scene.linear.weight[0, 0] += 1
    yield


@change(ROW, "through `detach()` or a view", WRITTEN)
def through_views(scene: Scene) -> Iterator[None]:
    yield
    scene.linear.weight.detach().mul_(2)
    yield
    with torch.no_grad():
        scene.linear.weight.view(-1)[1:].add_(0.5)
    yield


@change(ROW, "`torch.nn.init`", WRITTEN)
def initialized(scene: Scene) -> Iterator[None]:
    yield
    nn.init.xavier_normal_(scene.linear.weight)
    yield


@change(ROW, "`torch._foreach_mul_`", WRITTEN)
def foreach(scene: Scene) -> Iterator[None]:
    yield
    with torch.no_grad():
        torch._foreach_mul_(scene.weights, 0.5)
    yield


@change(ROW, "the projector", WRITTEN)
def projector(scene: Scene) -> Iterator[None]:
    yield
    fill(scene.model.base_model.multi_modal_projector.parameters())
    yield


@change(ROW, "a buffer of the tower", WRITTEN)
def buffer(scene: Scene) -> Iterator[None]:
    linear = scene.linear
    linear.register_buffer("gain", torch.ones(()))
    linear.forward = lambda value: nn.functional.linear(value, linear.weight, linear.bias) * linear.gain
    yield
    linear.gain.fill_(2.0)
    yield


@change(ROW, "`vector_to_parameters`", REPLACED)
def from_vector(scene: Scene) -> Iterator[None]:
    yield
    size = sum(weight.numel() for weight in scene.weights)
    nn.utils.vector_to_parameters(torch.randn(size) * 0.5, scene.weights)
    yield


@change(ROW, "a moving average that is copied back", WRITTEN)
def averaged(scene: Scene) -> Iterator[None]:
    average = optim.swa_utils.get_ema_multi_avg_fn(0.5)
    yield
    with torch.no_grad():
        average(scene.weights, [torch.randn_like(weight) for weight in scene.weights], 1)
    yield
