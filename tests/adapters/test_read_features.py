"""Lazy features whose rows were read behave as one tensor, also when an operation changes its metadata."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lazy_scene import LazyScene, same
from torch import Tensor


def transpose(features: Any) -> Tensor:
    features.unsqueeze_(0)
    features.transpose_(0, 1)
    assert features.dim() == 3
    return features + 0


def resize(features: Any) -> Tensor:
    features.resize_(2, 2)
    assert len(features) == 2
    return features + 0


def replace(features: Any) -> Tensor:
    features.data = torch.ones(2, 3)
    assert features.shape == (2, 3)
    return features + 0


def train(features: Any) -> Tensor:
    features.requires_grad_(True)
    assert features.requires_grad
    (features * features).sum().backward()
    with torch.no_grad():
        features -= features.grad
    return torch.stack([features.detach(), features.grad])


def train_by_attribute(features: Any) -> Tensor:
    features.requires_grad = True
    features.retain_grad()
    features.sum().backward()
    return features.grad


CHANGES: list[Callable[[Any], Tensor]] = [transpose, resize, replace, train, train_by_attribute]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_change_of_the_metadata_in_place_stays(change: Callable[[Any], Tensor], mode: Any) -> None:
    for is_view in (False, True):
        scene = LazyScene.of()
        plain, lazy = scene.plain[0], scene.lazy[0]
        if is_view:
            plain, lazy = plain.clone()[2:7], lazy[2:7]
        with mode():
            lazy.sum()
        assert same(change(lazy), change(plain))
