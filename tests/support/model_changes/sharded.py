"""FSDP2 and DTensor: sharded weights of the tower. These changes need a process group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import distributed, optim
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from model_changes.change import change
from model_changes.optimizers import ROW as OPTIMIZERS
from model_changes.scene import Scene
from vitcache.adapters.changes.model_changes import OPTIMIZER, REPLACED, WRITTEN

FSDP = "FSDP2 (`fully_shard`) of the model, the tower or its blocks"
DTENSOR = "DTensor weights (`distribute_module`, `parallelize_module`)"
RANKS = (1, 2)


def mesh() -> Any:
    return init_device_mesh("cpu", (distributed.get_world_size(),))


def as_one_group(scene: Scene, **options: Any) -> None:
    fully_shard(scene.model, mesh=mesh(), **options)


def per_block(scene: Scene, **options: Any) -> None:
    for block in scene.blocks:
        fully_shard(block, mesh=mesh(), **options)
    fully_shard(scene.tower, mesh=mesh(), **options)
    fully_shard(scene.model, mesh=mesh(), **options)


# The last word: how a loaded state is noticed. Forward leaves the parameters of some groups unsharded.
GROUPS: dict[str, tuple[Callable[..., None], dict[str, Any], str]] = {
    "one group": (as_one_group, {}, REPLACED),
    "one group, `reshard_after_forward=False`": (as_one_group, {"reshard_after_forward": False}, REPLACED),
    "per block": (per_block, {}, WRITTEN),
    "per block, `reshard_after_forward=False`": (per_block, {"reshard_after_forward": False}, REPLACED),
}


def stepped(shard: Callable[..., None], options: dict[str, Any]) -> Callable[[Scene], Iterator[None]]:
    def steps(scene: Scene) -> Iterator[None]:
        shard(scene, **options)
        weights = list(scene.tower.parameters())
        optimizers = [optim.SGD(weights, lr=0.1), optim.AdamW(weights, lr=0.1, fused=True)]
        yield
        for optimizer in optimizers:
            reshard(scene)
            for weight in weights:
                weight.grad = torch.ones_like(weight) * 0.5
            optimizer.step()
            yield

    return steps


def loaded(shard: Callable[..., None], options: dict[str, Any]) -> Callable[[Scene], Iterator[None]]:
    def steps(scene: Scene) -> Iterator[None]:
        state = {name: torch.randn(tensor.shape) * 0.5 for name, tensor in scene.model.state_dict().items()}
        shard(scene, **options)
        yield
        reshard(scene)
        set_model_state_dict(scene.model, state, options=StateDictOptions(full_state_dict=True))
        yield

    return steps


def reshard(scene: Scene) -> None:
    for module in scene.model.modules():
        if hasattr(module, "reshard"):
            module.reshard()


for _group, (_shard, _options, _kind) in GROUPS.items():
    change(FSDP, f"optimizers, plain and fused: {_group}", OPTIMIZER, ranks=RANKS)(stepped(_shard, _options))
    change(FSDP, f"`set_model_state_dict`: {_group}", _kind, ranks=RANKS)(loaded(_shard, _options))


@change(FSDP, "`fully_shard` after `attach`, and a step", OPTIMIZER, ranks=RANKS)
def late(scene: Scene) -> Iterator[None]:
    yield
    per_block(scene)
    weights = list(scene.tower.parameters())
    for weight in weights:
        weight.grad = torch.ones_like(weight) * 0.5
    optim.AdamW(weights, lr=0.1, fused=True).step()
    yield


@change(FSDP, "a write to the sharded weights", WRITTEN, ranks=RANKS)
def written(scene: Scene) -> Iterator[None]:
    per_block(scene)
    yield
    reshard(scene)
    with torch.no_grad():
        for weight in scene.tower.parameters():
            weight.mul_(0.5)
    yield


@change(OPTIMIZERS, "`ZeroRedundancyOptimizer`", OPTIMIZER, ranks=RANKS)
def zero(scene: Scene) -> Iterator[None]:
    optimizer = ZeroRedundancyOptimizer(scene.weights, optim.SGD, lr=0.1, fused=True)
    yield
    for weight in scene.weights:
        weight.grad = torch.ones_like(weight) * 0.5
    optimizer.step()
    yield


@change(DTENSOR, "an optimizer's step", OPTIMIZER, ranks=RANKS)
def dtensor_step(scene: Scene) -> Iterator[None]:
    distribute(scene)
    yield
    weights = list(scene.linear.parameters())
    for weight in weights:
        weight.grad = torch.ones_like(weight) * 0.5
    optim.AdamW(weights, lr=0.1, fused=True).step()
    yield


@change(DTENSOR, "a write in place, and to the local tensor", WRITTEN, ranks=RANKS)
def dtensor_written(scene: Scene) -> Iterator[None]:
    distribute(scene)
    yield
    with torch.no_grad():
        scene.linear.weight.mul_(2)
    yield
    with torch.no_grad():
        scene.linear.weight.to_local().mul_(2)
    yield


@change(DTENSOR, "`distribute_module` after `attach`, and a write", REPLACED, ranks=RANKS)
def dtensor_late(scene: Scene) -> Iterator[None]:
    yield
    distribute(scene)
    with torch.no_grad():
        scene.linear.weight.mul_(2)
    yield


def distribute(scene: Scene) -> None:
    """Replicate or shard the first linear layer over all ranks."""
    parallelize_module(scene.linear, mesh(), ColwiseParallel(output_layouts=Replicate()))
