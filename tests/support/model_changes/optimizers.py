"""Steps of optimizers, in eval mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import optim

from model_changes.change import SEVERAL, change
from model_changes.random_weights import set_gradients
from model_changes.scene import Scene
from vitcache.adapters.changes.model_changes import OPTIMIZER

ROW = "a step of an optimizer that holds a weight outside of the language model"

CLASSES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "SGD": (optim.SGD, {}),
    "SGD with momentum": (optim.SGD, {"momentum": 0.9}),
    "SGD(foreach=True)": (optim.SGD, {"foreach": True}),
    "SGD(fused=True)": (optim.SGD, {"fused": True}),
    "Adam": (optim.Adam, {}),
    "Adam(fused=True)": (optim.Adam, {"fused": True}),
    "AdamW": (optim.AdamW, {}),
    "AdamW(foreach=True)": (optim.AdamW, {"foreach": True}),
    "AdamW(fused=True)": (optim.AdamW, {"fused": True}),
    "Adagrad": (optim.Adagrad, {}),
    "Adagrad(fused=True)": (optim.Adagrad, {"fused": True}),
    "RMSprop": (optim.RMSprop, {}),
    "Adafactor": (optim.Adafactor, {}),
}


def with_gradients(make: Callable[..., Any], options: dict[str, Any]) -> Callable[[Scene], Iterator[None]]:
    def steps(scene: Scene) -> Iterator[None]:
        optimizer = make(scene.weights, lr=0.1, **options)
        yield
        for _ in range(2):
            set_gradients(scene.weights)
            optimizer.step()
            yield

    return steps


for _name, (_make, _options) in CLASSES.items():
    change(ROW, _name, OPTIMIZER, families=SEVERAL if "fused" in _name else SEVERAL[:1])(
        with_gradients(_make, _options)
    )


@change(ROW, "LBFGS", OPTIMIZER)
def lbfgs(scene: Scene) -> Iterator[None]:
    optimizer = optim.LBFGS(scene.weights, lr=0.1, max_iter=2)
    yield

    def closure() -> float:
        set_gradients(scene.weights)
        return 1.0

    optimizer.step(closure)
    yield


@change(ROW, "made after `attach`", OPTIMIZER)
def late(scene: Scene) -> Iterator[None]:
    yield
    set_gradients(scene.weights)
    optim.AdamW(scene.weights, lr=0.1, fused=True).step()
    yield


@change(ROW, "with one weight of the tower, all other weights frozen", OPTIMIZER)
def one_weight(scene: Scene) -> Iterator[None]:
    scene.model.requires_grad_(False)
    scene.linear.weight.requires_grad_(True)
    optimizer = optim.SGD([scene.linear.weight], lr=0.1, fused=True)
    yield
    set_gradients([scene.linear.weight])
    optimizer.step()
    yield


@change(ROW, "forward, backward and step in eval mode", OPTIMIZER, families=SEVERAL)
def in_eval_mode(scene: Scene) -> Iterator[None]:
    optimizer = optim.AdamW(scene.model.parameters(), lr=0.1, fused=True)
    yield
    scene.model(**scene.prompt).logits.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    yield


@change(ROW, "`GradScaler.step`", OPTIMIZER)
def scaled(scene: Scene) -> Iterator[None]:
    optimizer = optim.SGD(scene.weights, lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu")
    yield
    scaler.scale(scene.model(**scene.prompt).logits.sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    yield


@change(ROW, "compiled by `torch.compile`", OPTIMIZER)
def compiled(scene: Scene) -> Iterator[None]:
    optimizer = optim.SGD(scene.weights, lr=0.1, fused=True)
    step = torch.compile(optimizer.step, backend="eager")
    yield
    set_gradients(scene.weights)
    step()
    yield
    torch._dynamo.reset()


@change(ROW, "prepared by accelerate", OPTIMIZER)
def accelerated(scene: Scene) -> Iterator[None]:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    optimizer = accelerator.prepare(optim.AdamW(scene.weights, lr=0.1, fused=True))
    yield
    set_gradients(scene.weights)
    optimizer.step()
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@change(ROW, "with a hook of its own", OPTIMIZER)
def hooked(scene: Scene) -> Iterator[None]:
    optimizer = optim.SGD(scene.weights, lr=0.1, fused=True)
    optimizer.register_step_post_hook(lambda *_: None)
    yield
    set_gradients(scene.weights)
    optimizer.step()
    yield


@change(ROW, "in backward, by `register_post_accumulate_grad_hook`", OPTIMIZER)
def in_backward(scene: Scene) -> Iterator[None]:
    optimizers = {weight: optim.SGD([weight], lr=0.1, fused=True) for weight in scene.weights}
    for weight in scene.weights:
        weight.register_post_accumulate_grad_hook(lambda each: optimizers[each].step())
    yield
    scene.model(**scene.prompt).logits.sum().backward()
    yield


class OwnOptimizer(optim.Optimizer):
    """Writes weights through `.data`, which counts no version."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                weight.data.add_(weight.grad, alpha=-group["lr"])


@change(ROW, "a subclass of `torch.optim.Optimizer` that writes `.data`", OPTIMIZER)
def own(scene: Scene) -> Iterator[None]:
    optimizer = OwnOptimizer(scene.weights, lr=0.1)
    yield
    set_gradients(scene.weights)
    optimizer.step()
    yield


@change(ROW, "with a scheduler of learning rates", OPTIMIZER)
def scheduled(scene: Scene) -> Iterator[None]:
    optimizer = optim.SGD(scene.weights, lr=0.1, fused=True)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 1)
    yield
    for _ in range(2):
        set_gradients(scene.weights)
        optimizer.step()
        scheduler.step()
        yield
