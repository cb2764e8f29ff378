"""Hooks on the tower, its blocks and the projector, and global hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from model_changes.change import NAMED, SEVERAL, change
from model_changes.modules import ROW as MODULES
from model_changes.scene import Scene
from vitcache.adapters.changes.model_changes import HOOKS, REPLACED

ROW = "a hook on the tower, a module in it, or the projector is registered or removed"
GLOBAL = "a hook of all modules is registered or removed"


def doubled(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output * 2
    if isinstance(output, tuple):
        return (output[0] * 2, *output[1:])
    return type(output)(**{name: _doubled(value) for name, value in output.items()})


def _doubled(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_doubled, value))
    return value * 2 if isinstance(value, Tensor) else value


def after(module: nn.Module, args: Any, output: Any) -> Any:
    return doubled(output)


def before(module: nn.Module, inputs: Any) -> Any:
    return doubled(inputs)


def around(scene: Scene, register: Callable[[], Any]) -> Iterator[None]:
    yield
    handle = register()
    yield
    handle.remove()
    yield


@change(ROW, "a forward hook on the tower", HOOKS, NAMED, families=SEVERAL)
def tower(scene: Scene) -> Iterator[None]:
    yield from around(scene, lambda: scene.tower.register_forward_hook(after))


@change(ROW, "a forward hook on a block", HOOKS, NAMED)
def block(scene: Scene) -> Iterator[None]:
    yield from around(scene, lambda: scene.block.register_forward_hook(after))


@change(ROW, "a forward hook with kwargs", HOOKS, NAMED)
def with_kwargs(scene: Scene) -> Iterator[None]:
    hook = scene.linear.register_forward_hook
    yield from around(scene, lambda: hook(lambda module, args, kwargs, output: output * 2, with_kwargs=True))


@change(ROW, "a forward pre-hook on a linear layer", HOOKS, NAMED, families=SEVERAL)
def pre_hook(scene: Scene) -> Iterator[None]:
    yield from around(scene, lambda: scene.linear.register_forward_pre_hook(before))


@change(ROW, "a forward hook on the projector", HOOKS, NAMED)
def projector(scene: Scene) -> Iterator[None]:
    hook = scene.model.base_model.multi_modal_projector.register_forward_hook
    yield from around(scene, lambda: hook(after))


@change(ROW, "another hook in place of the first", HOOKS)
def replaced(scene: Scene) -> Iterator[None]:
    handle = scene.linear.register_forward_hook(after)
    yield
    handle.remove()
    scene.linear.register_forward_hook(lambda module, args, output: output * 3)
    yield


@change(GLOBAL, "`register_module_forward_hook`", HOOKS, NAMED)
def global_hook(scene: Scene) -> Iterator[None]:
    linear = scene.linear

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return output * 2 if module is linear else None

    yield from around(scene, lambda: nn.modules.module.register_module_forward_hook(hook))


@change(GLOBAL, "`register_module_forward_pre_hook`", HOOKS, NAMED)
def global_pre_hook(scene: Scene) -> Iterator[None]:
    linear = scene.linear

    def hook(module: nn.Module, args: Any) -> Any:
        return doubled(args) if module is linear else None

    yield from around(scene, lambda: nn.modules.module.register_module_forward_pre_hook(hook))


@change(MODULES, "a new weight of a compiled tower", REPLACED)
def compiled(scene: Scene) -> Iterator[None]:
    scene.tower.compile(backend="eager")
    yield
    scene.linear.weight = nn.Parameter(scene.linear.weight.detach() * 2)
    yield
