"""Page-locked memory, with a fake CUDA runtime that records its calls."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vitcache import CudaError
from vitcache.pages.pinned import allocate_pinned
from vitcache.pages.pool import PagePool

CPU = torch.device("cpu")


def is_mapped(address: int) -> bool:
    """Whether `address` is mapped in this process."""
    ranges = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
    return any(int(begin, 16) <= address < int(end, 16) for begin, end in ranges)


class Cudart:
    """The calls of the CUDA runtime that page-lock memory. `cudaHostRegister` returns `status`."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.registered: dict[int, int] = {}
        self.flags: set[int] = set()
        self.was_mapped: bool | None = None  # at the time of `cudaHostUnregister`

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
        if self.status == 0:
            self.registered[address] = num_bytes
            self.flags.add(flags)
        return self.status

    def cudaHostUnregister(self, address: int) -> int:
        self.was_mapped = is_mapped(address)
        del self.registered[address]
        return 0

    def cudaGetErrorString(self, status: int) -> str:
        return f"error {status}"


def use_cudart(monkeypatch: pytest.MonkeyPatch, cudart: Cudart) -> None:
    fake = SimpleNamespace(cudart=lambda: cudart, device=lambda device: contextlib.nullcontext())
    monkeypatch.setattr("vitcache.pages.pinned.torch.cuda", fake)


def test_pinned_memory_is_exact_and_locked_while_a_view_is_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cudart = Cudart()
    use_cudart(monkeypatch, cudart)
    memory = allocate_pinned(3 << 12, CPU)
    assert cudart.registered == {memory.data_ptr(): 3 << 12}
    assert cudart.flags == {3}  # portable, mapped
    view = memory.view(torch.float32).view(-1, 4)[5:7]
    del memory
    gc.collect()
    assert len(cudart.registered) == 1
    view.fill_(1.0)
    del view
    gc.collect()
    assert cudart.registered == {}
    assert cudart.was_mapped


def test_allocate_pinned_failed_registration_raises_with_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    cudart = Cudart(status=2)
    use_cudart(monkeypatch, cudart)
    with pytest.raises(MemoryError, match=r"cannot page-lock 8192 bytes; lower host_bytes .*: error 2"):
        allocate_pinned(8192, CPU)
    assert cudart.registered == {}


def test_allocate_pinned_beyond_the_address_space_raises_with_the_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_cudart(monkeypatch, Cudart())
    with pytest.raises(MemoryError, match=rf"cannot page-lock {1 << 62} bytes"):
        allocate_pinned(1 << 62, CPU)


def test_host_tier_without_a_cuda_runtime_raises_before_memory_is_locked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cudart = Cudart()
    use_cudart(monkeypatch, cudart)
    monkeypatch.setenv("VITCACHE_NO_CUDA", "1")
    with pytest.raises(
        CudaError, match="a host tier of cuda:0 needs the CUDA runtime: VITCACHE_NO_CUDA is 1"
    ):
        PagePool("host", 2, 4, 3, torch.float32, torch.device("cuda", 0))
    assert cudart.flags == set()
