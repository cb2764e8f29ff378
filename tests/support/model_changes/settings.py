"""Settings: plain attributes of modules and of configs that a forward reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

from model_changes.change import NAMED, SEVERAL, change
from model_changes.scene import Scene
from vitcache.adapters.changes.model_changes import SETTINGS

ROW = "a plain attribute of a module: a bool, number or str, or a list, tuple or dict of these"
CONFIG = "a value of the config of a module"
ATTENTION = "the attention implementation"


@change(ROW, "`eps` of a norm", SETTINGS, NAMED, families=SEVERAL)
def eps(scene: Scene) -> Iterator[None]:
    norm = next(module for module in scene.block.modules() if isinstance(module, nn.LayerNorm))
    first = norm.eps
    yield
    norm.eps = 0.5
    yield
    norm.eps = first
    yield


@change(ROW, "`scaling` of an attention layer", SETTINGS, NAMED)
def scaling(scene: Scene) -> Iterator[None]:
    attention = next(module for module in scene.block.modules() if hasattr(module, "scale"))
    first: Any = attention.scale
    yield
    attention.scale = first * 3
    yield
    attention.scale = first
    yield


class Gains(nn.Module):
    """Multiplies by a number in a dict."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.gains = {"default": {"value": 1.0}}

    def forward(self, value: Tensor) -> Tensor:
        return self.inner(value) * self.gains["default"]["value"]


@change(ROW, "a number in a dict in a dict", SETTINGS, NAMED)
def in_a_dict(scene: Scene) -> Iterator[None]:
    path = next(name for name, each in scene.block.named_modules() if each is scene.linear)
    gains = Gains(scene.linear)
    scene.block.set_submodule(path, gains)
    yield
    gains.gains["default"]["value"] = 2.0
    yield
    gains.gains["default"]["value"] = 1.0
    yield


def read_by_a_layer(scene: Scene, read: Callable[[Any], Any]) -> Any:
    """Return a module: the first linear layer multiplies by a number that `read` finds in it."""
    linear, stock = scene.linear, scene.linear.forward
    linear.forward = lambda value: stock(value) * read(linear)
    return linear


@change(ROW, "a scalar of NumPy", SETTINGS, NAMED)
def numpy_scalar(scene: Scene) -> Iterator[None]:
    layer = read_by_a_layer(scene, lambda layer: float(layer.gain))
    layer.gain = np.float32(1.0)
    yield
    layer.gain = None  # the next number may get the address of the first one
    layer.gain = np.float32(2.0)
    yield
    layer.gain = np.float32(1.0)
    yield


@change(ROW, "an element of a list in a tuple", SETTINGS, NAMED)
def in_a_tuple(scene: Scene) -> Iterator[None]:
    layer = read_by_a_layer(scene, lambda layer: layer.gains[0][0])
    layer.gains = ([1.0],)
    yield
    layer.gains[0][0] = 2.0
    yield
    layer.gains[0][0] = 1.0
    yield


class Numbers(list[float]):
    """A subclass of list."""


@change(ROW, "an element of a subclass of list", SETTINGS, NAMED)
def in_a_list_subclass(scene: Scene) -> Iterator[None]:
    layer = read_by_a_layer(scene, lambda layer: layer.gains[0])
    layer.gains = Numbers([1.0])
    yield
    layer.gains[0] = 2.0
    yield
    layer.gains[0] = 1.0
    yield


@change(ROW, "an attribute of the base model", SETTINGS, NAMED)
def of_the_owner(scene: Scene) -> Iterator[None]:
    base, linear, stock = scene.model.base_model, scene.linear, scene.linear.forward
    base.gain = 1.0
    linear.forward = lambda value: stock(value) * base.gain
    yield
    base.gain = 2.0
    yield
    base.gain = 1.0
    yield


@change(CONFIG, "`config.vision_config` of the tower", SETTINGS, NAMED)
def of_the_tower(scene: Scene) -> Iterator[None]:
    linear, stock, config = scene.linear, scene.linear.forward, scene.tower.config
    linear.forward = lambda value: stock(value) * config.initializer_range
    first = config.initializer_range
    yield
    config.initializer_range = first * 2
    yield
    config.initializer_range = first
    yield


@change(CONFIG, "a new value of `model.config`", SETTINGS, NAMED)
def of_the_model(scene: Scene) -> Iterator[None]:
    linear, stock, config = scene.linear, scene.linear.forward, scene.model.config
    linear.forward = lambda value: stock(value) * getattr(config, "gain", 1.0)
    yield
    config.gain = 2.0
    yield
    del config.gain
    yield


@change("a value of the config that the model's forward passes on", "`vision_feature_layer`", "", NAMED)
def feature_layer(scene: Scene) -> Iterator[None]:
    config = scene.model.config
    first = config.vision_feature_layer
    yield
    config.vision_feature_layer = -2
    yield
    config.vision_feature_layer = first
    yield


@change(ATTENTION, "`set_attn_implementation`", SETTINGS, NAMED, families=SEVERAL)
def set_attention(scene: Scene) -> Iterator[None]:
    scene.model.set_attn_implementation("sdpa")
    yield
    scene.model.set_attn_implementation("eager")
    yield
    scene.model.set_attn_implementation("sdpa")
    yield


@change(ATTENTION, "`set_attn_implementation` of the tower", SETTINGS, NAMED)
def set_attention_of_tower(scene: Scene) -> Iterator[None]:
    scene.tower.set_attn_implementation("sdpa")
    yield
    scene.tower.set_attn_implementation("eager")
    yield
    scene.tower.set_attn_implementation("sdpa")
    yield


@change(ATTENTION, "`config._attn_implementation`", SETTINGS, NAMED, families=SEVERAL)
def attention_by_config(scene: Scene) -> Iterator[None]:
    config = scene.tower.config
    config._attn_implementation = "sdpa"
    yield
    config._attn_implementation = "eager"
    yield
    config._attn_implementation = "sdpa"
    yield
