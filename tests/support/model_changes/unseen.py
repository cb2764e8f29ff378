"""Changes of bytes that no check of Python objects sees."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterator

import torch
from torch import Tensor, nn, optim
from torch.nn import functional
from torch.utils import dlpack

from model_changes.change import BY_CALL, SEVERAL, change
from model_changes.peft_adapters import lora
from model_changes.random_weights import set_gradients
from model_changes.scene import Scene

ROW = "bytes are written where torch counts no version"


def new(weight: Tensor) -> Tensor:
    return torch.randn(weight.shape, dtype=weight.dtype) * 0.5


@change(ROW, "`.data.copy_`, `.data.add_`", noticed=BY_CALL, families=SEVERAL, in_bytes=True)
def data(scene: Scene) -> Iterator[None]:
    yield
    scene.linear.weight.data.copy_(new(scene.linear.weight))
    yield
    for weight in scene.weights:
        weight.data.add_(0.5)
    yield


@change(
    ROW,
    "`.data.mul_().add_()`, as TRL averages a reference model",
    noticed=BY_CALL,
    in_bytes=True,
)
def synced(scene: Scene) -> Iterator[None]:
    yield
    for weight in scene.weights:
        weight.data.mul_(0.5).add_(new(weight), alpha=0.5)
    yield


@change(
    ROW,
    "`merge_adapter` and `unmerge_adapter` of PEFT between two calls, by rounding",
    noticed=BY_CALL,
    in_bytes=True,
)
def merged_between_calls(scene: Scene) -> Iterator[None]:
    model = lora(scene)
    yield
    model.merge_adapter()
    model.unmerge_adapter()
    yield


@change(ROW, "a NumPy array of the weight", noticed=BY_CALL, in_bytes=True)
def numpy(scene: Scene) -> Iterator[None]:
    array = scene.linear.weight.detach().numpy()
    yield
    array += 0.5
    yield


@change(ROW, "`untyped_storage()`", noticed=BY_CALL, in_bytes=True)
def storage(scene: Scene) -> Iterator[None]:
    yield
    weight = scene.linear.weight
    weight.untyped_storage().copy_(new(weight).untyped_storage())
    yield


@change(ROW, "DLPack", noticed=BY_CALL, in_bytes=True)
def through_dlpack(scene: Scene) -> Iterator[None]:
    other = dlpack.from_dlpack(dlpack.to_dlpack(scene.linear.weight.detach()))
    yield
    other.mul_(3)
    yield


@change(ROW, "another library that has the address", noticed=BY_CALL, in_bytes=True)
def foreign(scene: Scene) -> Iterator[None]:
    yield
    weight = scene.linear.weight
    values = new(weight)
    ctypes.memmove(weight.data_ptr(), values.data_ptr(), values.nbytes)
    yield


@change(ROW, "a kernel of a fused optimizer, without the optimizer", noticed=BY_CALL, in_bytes=True)
def fused_kernel(scene: Scene) -> Iterator[None]:
    weights = [weight.detach() for weight in scene.weights]
    options = {"weight_decay": 0.0, "momentum": 0.0, "lr": 0.5, "dampening": 0.0}
    yield
    gradients = [torch.ones_like(weight) for weight in weights]
    torch._fused_sgd_(weights, gradients, [], **options, nesterov=False, maximize=False, is_first_step=True)  # type: ignore[call-overload]
    yield


class Normalized(nn.Module):
    """Normalizes the values of a layer by running statistics."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("mean", torch.zeros(inner.out_features))
        self.register_buffer("variance", torch.ones(inner.out_features))

    def update(self, values: Tensor) -> None:
        functional.batch_norm(values, self.mean, self.variance, training=True)

    def forward(self, values: Tensor) -> Tensor:
        return (self.inner(values) - self.mean) / self.variance.sqrt()


@change(
    ROW,
    "running statistics by `functional.batch_norm`",
    noticed=BY_CALL,
    in_bytes=True,
)
def running_statistics(scene: Scene) -> Iterator[None]:
    path = next(name for name, each in scene.block.named_modules() if each is scene.linear)
    normalized = Normalized(scene.linear)
    scene.block.set_submodule(path, normalized)
    yield
    normalized.update(torch.randn(7, normalized.inner.out_features) + 1)
    yield


@change(ROW, "weights that were made under `inference_mode`", noticed=BY_CALL, in_bytes=True)
def inference(scene: Scene) -> Iterator[None]:
    with torch.inference_mode():
        weight = nn.Parameter(new(scene.linear.weight), requires_grad=False)
    scene.linear.weight = weight
    yield
    with torch.inference_mode():
        scene.linear.weight.mul_(3)
    yield


@change(ROW, "`torch.autograd._unsafe_preserve_version_counter`", noticed=BY_CALL, in_bytes=True)
def preserved(scene: Scene) -> Iterator[None]:
    yield
    weight = scene.linear.weight
    with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(weight):
        weight.mul_(3)
    yield


@change(
    ROW, "a collective in place, over a weight or its `.data`", noticed=BY_CALL, in_bytes=True, ranks=(1, 2)
)
def collective(scene: Scene) -> Iterator[None]:
    yield
    for weight in scene.weights:
        if torch.distributed.get_rank() == 0:
            weight.data.add_(0.25)
        torch.distributed.broadcast(weight.data, 0)
    yield
    for weight in scene.weights:
        if torch.distributed.get_rank() == 0:
            weight.data.add_(0.25)
        with torch.no_grad():
            torch.distributed.broadcast(weight, 0)  # without a new version
    yield


@change(ROW, "the file of a memory-mapped weight", noticed=BY_CALL, in_bytes=True)
def mapped(scene: Scene) -> Iterator[None]:
    with tempfile.NamedTemporaryFile() as file:
        values = new(scene.linear.weight)
        file.write(values.numpy().tobytes())
        file.flush()
        weight = torch.from_file(file.name, shared=True, size=values.numel()).view(values.shape)
        scene.linear.weight = nn.Parameter(weight)
        yield
        os.pwrite(file.fileno(), (values * 2).numpy().tobytes(), 0)
        yield


@change(
    ROW,
    "an optimizer of master copies, which are copied to `.data`",
    noticed=BY_CALL,
    in_bytes=True,
)
def master_copies(scene: Scene) -> Iterator[None]:
    copies = [nn.Parameter(weight.detach().clone()) for weight in scene.weights]
    optimizer = optim.AdamW(copies, lr=0.1, fused=True)
    yield
    set_gradients(copies)
    optimizer.step()
    for weight, copied in zip(scene.weights, copies, strict=True):
        weight.data.copy_(copied.data)
    yield


@change(
    ROW,
    "an optimizer outside of `torch.optim` that writes `.data`",
    noticed=BY_CALL,
    in_bytes=True,
)
def foreign_optimizer(scene: Scene) -> Iterator[None]:
    yield
    set_gradients(scene.weights)
    for weight in scene.weights:
        assert weight.grad is not None
        weight.data.sub_(weight.grad)
    yield
