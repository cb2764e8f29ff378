"""Weights that hooks of accelerate move."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import numpy
import torch

from model_changes.change import BY_CALL, change
from model_changes.scene import Scene
from vitcache.adapters.changes.model_changes import REPLACED, WRITTEN

ROW = "accelerate offloads or dispatches the tower"
HOST = "a write to an offloaded weight in host memory"


def offload(scene: Scene) -> dict[str, Any]:
    """Offload the tower, and return its weights in host memory."""
    from accelerate import cpu_offload

    state = {name: tensor.clone() for name, tensor in scene.tower.state_dict().items()}
    cpu_offload(scene.tower, execution_device=torch.device("cpu"), state_dict=state)
    return state


def name_of_linear(scene: Scene) -> str:
    path = next(name for name, each in scene.tower.named_modules() if each is scene.linear)
    return f"{path}.weight"


@change(ROW, "`cpu_offload` with another state dict", REPLACED)
def offloaded(scene: Scene) -> Iterator[None]:
    from accelerate import cpu_offload

    yield
    state = {name: tensor * 0.5 for name, tensor in scene.tower.state_dict().items()}
    cpu_offload(scene.tower, execution_device=torch.device("cpu"), state_dict=state)
    yield


@change(ROW, "`remove_hook_from_submodules`, and a write", REPLACED)
def removed(scene: Scene) -> Iterator[None]:
    from accelerate.hooks import remove_hook_from_submodules

    offload(scene)
    yield
    remove_hook_from_submodules(scene.tower)
    with torch.no_grad():
        scene.linear.weight.mul_(2)
    yield


@change(ROW, "`dispatch_model`, and a write", WRITTEN)
def dispatched(scene: Scene) -> Iterator[None]:
    from accelerate import dispatch_model

    dispatch_model(scene.model, {"": "cpu"}, force_hooks=True)
    yield
    with torch.no_grad():
        scene.linear.weight.mul_(2)
    yield


@change(HOST, "in place", WRITTEN, families=("internvl", "qwen3_vl"))
def written(scene: Scene) -> Iterator[None]:
    state = offload(scene)
    name = name_of_linear(scene)
    yield
    state[name].mul_(2)
    yield
    state[name].mul_(2)
    yield


@change(HOST, "another tensor in the state dict", REPLACED)
def replaced(scene: Scene) -> Iterator[None]:
    state = offload(scene)
    name = name_of_linear(scene)
    yield
    state[name] = state[name] * 2
    yield


@change(HOST, "through `.data`", noticed=BY_CALL, in_bytes=True)
def through_data(scene: Scene) -> Iterator[None]:
    state = offload(scene)
    name = name_of_linear(scene)
    yield
    state[name].data.mul_(2)
    yield


@change(HOST, "in a file, with `disk_offload`", noticed=BY_CALL)
def on_disk(scene: Scene) -> Iterator[None]:
    from accelerate import disk_offload

    with tempfile.TemporaryDirectory() as folder:
        disk_offload(scene.tower, folder, execution_device=torch.device("cpu"))
        yield
        path = f"{folder}/{name_of_linear(scene)}.dat"
        numpy.memmap(path, dtype="float32", mode="r+")[:] *= 2
        yield
