"""Parametrizations, weight normalization and pruning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from model_changes.change import NAMED, change
from model_changes.random_weights import fill
from model_changes.scene import Scene
from vitcache.adapters.changes.model_changes import REPLACED, SETTINGS, WRITTEN

ROW = "a parametrization is registered, changed or removed"
NORMS = "a norm of a weight is registered, or its parts are written"
PRUNED = "pruning by `torch.nn.utils.prune`"


class Times(nn.Module):
    """Multiplies a weight by a parameter or by a plain attribute."""

    def __init__(self, factor: Any) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor


@change(ROW, "`register_parametrization`, `remove_parametrizations`", REPLACED)
def registered(scene: Scene) -> Iterator[None]:
    yield
    parametrize.register_parametrization(scene.linear, "weight", Times(nn.Parameter(torch.tensor(2.0))))
    yield
    parametrize.remove_parametrizations(scene.linear, "weight", leave_parametrized=False)
    yield


@change(ROW, "a weight of the parametrization is written", WRITTEN)
def written(scene: Scene) -> Iterator[None]:
    factor = nn.Parameter(torch.tensor(2.0))
    parametrize.register_parametrization(scene.linear, "weight", Times(factor))
    yield
    with torch.no_grad():
        factor.fill_(3.0)
    yield
    with torch.no_grad():
        scene.linear.parametrizations.weight.original.mul_(0.5)
    yield


@change(ROW, "an attribute of the parametrization is set", SETTINGS, NAMED)
def attribute(scene: Scene) -> Iterator[None]:
    parametrize.register_parametrization(scene.linear, "weight", Times(2.0))
    yield
    scene.linear.parametrizations.weight[0].factor = 3.0
    yield
    scene.linear.parametrizations.weight[0].factor = 2.0
    yield


@change(ROW, "`remove_parametrizations(leave_parametrized=True)` and a write", WRITTEN)
def left(scene: Scene) -> Iterator[None]:
    parametrize.register_parametrization(scene.linear, "weight", Times(2.0))
    parametrize.remove_parametrizations(scene.linear, "weight")
    yield
    fill([scene.linear.weight])
    yield


@change(NORMS, "`parametrizations.spectral_norm`", REPLACED)
def spectral(scene: Scene) -> Iterator[None]:
    yield
    parametrizations.spectral_norm(scene.linear)
    yield


@change(NORMS, "`parametrizations.weight_norm`, and a write to its `original0`", WRITTEN)
def weight_norm(scene: Scene) -> Iterator[None]:
    parametrizations.weight_norm(scene.linear)
    yield
    fill([scene.linear.parametrizations.weight.original0])
    yield


@change(NORMS, "the old `weight_norm`, and a write to `weight_g`", WRITTEN)
def old_weight_norm(scene: Scene) -> Iterator[None]:
    with_warnings = nn.utils.weight_norm
    with_warnings(scene.linear)
    yield
    fill([scene.linear.weight_g])
    yield


@change(NORMS, "the old `spectral_norm`", REPLACED)
def old_spectral_norm(scene: Scene) -> Iterator[None]:
    yield
    nn.utils.spectral_norm(scene.linear)
    yield


@change(PRUNED, "`random_unstructured`, `remove`", REPLACED)
def pruned(scene: Scene) -> Iterator[None]:
    yield
    prune.random_unstructured(scene.linear, "weight", 0.5)
    yield
    prune.remove(scene.linear, "weight")
    fill([scene.linear.weight])
    yield


@change(PRUNED, "`global_unstructured` over the tower", REPLACED)
def globally(scene: Scene) -> Iterator[None]:
    yield
    layers = [(module, "weight") for module in scene.tower.modules() if isinstance(module, nn.Linear)]
    prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=0.5)
    yield


@change(PRUNED, "a mask is written", WRITTEN)
def mask(scene: Scene) -> Iterator[None]:
    prune.identity(scene.linear, "weight")
    yield
    scene.linear.weight_mask[:3] = 0
    yield
