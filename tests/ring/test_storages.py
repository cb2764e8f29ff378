"""Sources and destinations whose storage is too small, or whose class hides its memory, are refused."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vitcache import PinnedRing


def resized(num_bytes: int) -> torch.Tensor:
    """Return a tensor of 1,000 float32 values whose storage has `num_bytes` bytes."""
    tensor = torch.zeros(1000)
    tensor.untyped_storage().resize_(num_bytes)
    return tensor


@pytest.mark.parametrize("num_bytes", [0, 3999])
@pytest.mark.parametrize("argument", ["dst", "src"])
def test_copy_to_with_a_resized_storage_raises_value_error(ring, argument, num_bytes):
    arguments = {"dst": torch.full((1000,), 7.0), "src": torch.ones(1000), argument: resized(num_bytes)}
    with pytest.raises(ValueError, match=rf"{argument} .* 4000 bytes .* {num_bytes} bytes"):
        ring.copy_to(**arguments)
    assert ring.stats().copies == 0


def test_copy_to_from_a_strided_view_that_ends_behind_its_storage_raises_value_error(ring):
    whole = torch.zeros(100, 10)
    view = whole.T[3]
    whole.untyped_storage().resize_(3900)
    with pytest.raises(ValueError, match=r"src .* 3900 bytes"):
        ring.copy_to(torch.zeros(100), view)
    dst = torch.full((90,), 7.0)
    ring.copy_to(dst, view[:90]).synchronize()
    assert int(dst.sum()) == 0


@pytest.mark.parametrize("argument", ["dst", "src"])
def test_native_copy_checks_the_storages_after_the_checks_of_python(ring, argument, monkeypatch):
    """The storage is resized at the last moment at which Python code runs."""
    arguments = {"dst": torch.zeros(1000), "src": torch.ones(1000)}
    increment = torch.autograd.graph.increment_version

    def resize(tensor: torch.Tensor) -> None:
        increment(tensor)
        arguments[argument].untyped_storage().resize_(0)

    monkeypatch.setattr(torch.autograd.graph, "increment_version", resize)
    with pytest.raises(ValueError, match=f"{argument} is a tensor of 4000 bytes .* which has 0 bytes"):
        ring.copy_to(**arguments)


class Liar(torch.Tensor):
    """A subclass whose attributes and methods describe other memory than its own."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.data_ptr, torch.Tensor.element_size):
            return 8
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @property
    def shape(self) -> torch.Size:
        return torch.Size([1000])

    def detach(self) -> torch.Tensor:
        return torch.ones(1000)

    def is_contiguous(self) -> bool:
        return True


class LyingArray(np.ndarray):
    """An array that describes other memory than its own."""

    shape = property(lambda self: (1000,))
    strides = property(lambda self: (1 << 20,))


def test_copy_to_reads_the_true_memory_of_subclasses(ring):
    dst = torch.zeros(4)
    ring.copy_to(dst, torch.arange(4.0).as_subclass(Liar)).synchronize()
    assert dst.tolist() == [0.0, 1.0, 2.0, 3.0]
    ring.copy_to(dst.as_subclass(Liar), np.full(4, 7, np.float32).view(LyingArray)).synchronize()
    assert dst.tolist() == [7.0] * 4
    with pytest.raises(ValueError, match=r"src has shape \(4,\), dst has \(1000,\)"):
        ring.copy_to(torch.zeros(1000), np.full(4, 7, np.float32).view(LyingArray))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("argument", ["dst", "src"])
def test_copy_to_refuses_tensors_without_dense_memory_of_their_own(ring, argument):
    with FakeTensorMode():
        fake = torch.zeros(4)
    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(2)])
    for tensor, error in ((fake, TypeError), (torch.zeros(4).to_sparse(), ValueError), (nested, ValueError)):
        arguments = {"dst": torch.zeros(4), "src": torch.zeros(4), argument: tensor}
        with pytest.raises(error, match=f"{argument} is a "):
            ring.copy_to(**arguments)


FREED_STORAGE = """
import torch
from vitcache import PinnedRing
ring = PinnedRing(1 << 20, num_threads=1, backend="host")
for name in ("dst", "src"):
    arguments = {"dst": torch.zeros(1 << 22), "src": torch.ones(1 << 22)}
    arguments[name].untyped_storage().resize_(0)
    try:
        ring.copy_to(**arguments).synchronize()
    except ValueError:
        print("refused")
"""


def test_freed_storages_of_many_pages_do_not_end_the_process():
    process = subprocess.run(
        [sys.executable, "-c", FREED_STORAGE], capture_output=True, text=True, timeout=120
    )
    assert (process.returncode, process.stdout) == (0, "refused\nrefused\n"), process.stderr


def test_ring_after_refused_copies_still_works(ring: PinnedRing):
    for num_bytes in (0, 1, 3999):
        with pytest.raises(ValueError, match="storage"):
            ring.copy_to(torch.zeros(1000), resized(num_bytes))
    dst = torch.zeros(1000)
    ring.copy_to(dst, torch.ones(1000)).synchronize()
    assert int(dst.sum()) == 1000
    ring.check_integrity()
