"""`Owner`: stands for the attachment of a `ByteFingerprint`; and writes that change no version."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from vitcache.adapters.changes.byte_fingerprint import ByteFingerprint


class Weights(nn.Module):
    """A module with tensors as buffers, by name."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def odd_weights() -> Weights:
    """Weights with an odd number of bytes, with gaps, without elements, without dimensions."""
    torch.manual_seed(0)
    return Weights(
        matrix=torch.randn(5, 3),
        short=torch.randn(7).to(torch.bfloat16),
        bytes=torch.randint(0, 255, (13,), dtype=torch.uint8),
        column=torch.randn(4, 3).T[1],
        nothing=torch.zeros(0, 4),
        number=torch.tensor(1.0),
    )


class Owner:
    """Notes which weights changed, the warnings, and how many namespaces began."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.fingerprint: ByteFingerprint | None = None
        self.changed: list[str] = []
        self.warnings: list[str] = []
        self.num_namespaces = 0

    def forget(self, kind: str, detail: str = "") -> None:
        assert kind == "the fingerprint of the weights differs"
        self.changed.append(detail)
        self.begin_namespace()
        if self.fingerprint is not None:
            self.fingerprint.reset()

    def begin_namespace(self) -> None:
        self.num_namespaces += 1

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def watch(calls: int, model: nn.Module, **options: object) -> tuple[ByteFingerprint, Owner]:
    """A fingerprint of a model, and its owner."""
    owner = Owner(model)
    owner.fingerprint = ByteFingerprint(calls, model, **options)
    return owner.fingerprint, owner


def checks_until_found(fingerprint: ByteFingerprint, owner: Owner, most: int) -> int | None:
    """The number of the check that finds a change, or None if none of `most` checks does."""
    before = len(owner.changed)
    for number in range(1, most + 1):
        fingerprint.check(owner)
        if len(owner.changed) > before:
            return number
    return None


def storage_bytes(tensor: Tensor) -> np.ndarray:
    """All bytes of a tensor's storage, as a NumPy array that shares its memory."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()


def own_bytes(tensor: Tensor) -> np.ndarray:
    """For each byte of a tensor's storage, whether it belongs to the tensor: by NumPy alone."""
    size = tensor.element_size()
    places = np.arange(len(storage_bytes(tensor)))
    own = np.zeros(len(places), bool)
    if tensor.numel():
        shape = (*tensor.shape, size)
        strides = tuple(stride * size * places.itemsize for stride in tensor.stride())
        first = places[tensor.storage_offset() * size :]
        own[np.lib.stride_tricks.as_strided(first, shape, (*strides, places.itemsize))] = True
    return own


def write_data(weight: Tensor) -> None:
    weight.data.mul_(1.5)


def write_numpy(weight: Tensor) -> None:
    storage_bytes(weight)[0] ^= 1


def write_pointer(weight: Tensor) -> None:
    """As a kernel of another library writes: at an address."""
    ctypes.memset(weight.data_ptr() + 1, 0x5A, 1)


def swap_elements(weight: Tensor) -> None:
    flat = weight.data.view(-1)
    first, last = flat[0].item(), flat[-1].item()
    assert first != last
    flat[0], flat[-1] = last, first


def add_and_subtract(weight: Tensor) -> None:
    flat = weight.data.view(-1)
    flat[0] += 0.5
    flat[1] -= 0.5


def flip_two_signs(weight: Tensor) -> None:
    weight.data.view(-1)[1:4:2].neg_()


def flip_all_signs(weight: Tensor) -> None:
    weight.data.neg_()


def scatter_in_place(weight: Tensor) -> None:
    """A collective writes to the weight. Needs a process group with one rank."""
    torch.distributed.scatter(weight.detach(), [weight.detach() * 3])


UNSEEN_WRITES: list[Callable[[Tensor], None]] = [
    *(write_data, write_numpy, write_pointer, swap_elements, add_and_subtract),
    *(flip_two_signs, flip_all_signs),
]
