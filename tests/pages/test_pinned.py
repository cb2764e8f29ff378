"""Page-locked memory, on the stand-in for the CUDA runtime."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vitcache import CudaError
from vitcache._native import CudaRuntime
from vitcache.device.stand_in import open_runtime
from vitcache.pages.pinned import allocate_pinned
from vitcache.pages.pool import PagePool
from vitcache.testing import stand_in

CPU = torch.device("cpu")
PAGE = os.sysconf("SC_PAGESIZE")


@pytest.fixture
def runtime() -> Iterator[CudaRuntime]:
    stand_in.reset()
    yield open_runtime()
    stand_in.reset()


def resident_bytes(address: int) -> int | None:
    """Bytes of the mapping that begins at `address` that are in memory; None if none begins there."""
    text = Path("/proc/self/smaps").read_text()
    found = re.search(rf"^{address:x}-.*?^Rss: +(\d+) kB", text, re.M | re.S)
    return None if found is None else int(found[1]) * 1024


def test_pinned_memory_is_exact_and_locked_while_a_view_is_alive(runtime: CudaRuntime) -> None:
    before = stand_in.count().locked_bytes
    with stand_in.recorded_calls() as calls:
        memory = allocate_pinned(3 * PAGE - 5, CPU, runtime)
    assert calls == [stand_in.Call("cudaHostRegister", bytes=3 * PAGE)]  # whole pages are locked
    assert (memory.numel(), memory.dtype, memory.device) == (3 * PAGE - 5, torch.uint8, CPU)
    view = memory[:80].view(torch.float32).view(-1, 4)[2:4]
    del memory
    gc.collect()
    assert stand_in.count().locked_bytes == before + 3 * PAGE
    view.fill_(1.0)
    address = view.data_ptr() - 32
    assert resident_bytes(address) is not None
    with stand_in.recorded_calls() as calls:
        del view
        gc.collect()
    assert calls == [stand_in.Call("cudaHostUnregister")]
    assert resident_bytes(address) is None, "the memory is still mapped"
    assert stand_in.count().locked_bytes == before


def test_pinned_memory_is_touched_before_it_is_locked(runtime: CudaRuntime) -> None:
    """The stand-in locks pages without touching them, so resident pages were touched by the allocation."""
    num_bytes = 2048 * PAGE
    memory = allocate_pinned(num_bytes, CPU, runtime)
    assert resident_bytes(memory.data_ptr()) == num_bytes
    assert not memory.any()


def test_pinned_memory_is_locked_for_the_given_device(runtime: CudaRuntime) -> None:
    stand_in.set_devices(2)
    memory = allocate_pinned(PAGE, torch.device("cuda", 1), runtime)
    assert stand_in.count().locking_devices == 0b10
    assert memory.device == CPU


def test_allocate_pinned_failed_registration_raises_with_the_size(runtime: CudaRuntime) -> None:
    before = stand_in.count().locked_bytes
    stand_in.limit_locked_bytes(before + PAGE)
    with pytest.raises(MemoryError, match=rf"cannot page-lock {2 * PAGE} bytes; lower host_bytes .*Register"):
        allocate_pinned(2 * PAGE, CPU, runtime)
    assert stand_in.count().locked_bytes == before


def test_allocate_pinned_beyond_the_address_space_raises_with_the_size(runtime: CudaRuntime) -> None:
    with pytest.raises(MemoryError, match=rf"cannot page-lock {1 << 62} bytes"):
        allocate_pinned(1 << 62, CPU, runtime)


def test_pinned_memory_in_a_forked_child_is_not_unlocked(runtime: CudaRuntime) -> None:
    memory = allocate_pinned(PAGE, CPU, runtime)
    before = stand_in.count().locked_bytes
    if (child := os.fork()) == 0:
        del memory
        gc.collect()
        os._exit(0 if stand_in.count().locked_bytes == before else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_host_tier_without_a_cuda_runtime_raises_before_memory_is_locked(
    runtime: CudaRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stand_in.count().locked_bytes
    monkeypatch.setenv("VITCACHE_NO_CUDA", "1")
    with pytest.raises(
        CudaError, match="a host tier of cuda:0 needs the CUDA runtime: VITCACHE_NO_CUDA is 1"
    ):
        PagePool("host", 2, 4, 3, torch.float32, torch.device("cuda", 0))
    assert stand_in.count().locked_bytes == before
