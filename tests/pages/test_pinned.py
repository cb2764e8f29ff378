"""Page-locked memory, on the stand-in for the CUDA runtime."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def switch_interval(seconds: float) -> Iterator[None]:
    """Let a thread run for this time before it must release the GIL to another thread."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


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


def test_pinned_memory_is_freed_without_the_gil(runtime: CudaRuntime) -> None:
    memory = allocate_pinned(128 << 20, CPU, runtime)
    steps, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            steps[0] += 1
            time.sleep(0)  # gives the GIL back

    thread = threading.Thread(target=count)
    with switch_interval(60.0):  # the counting thread runs only while this thread has released the GIL
        thread.start()
        before = steps[0]
        del memory
        after = steps[0]
        stop.set()
    thread.join()
    assert after > before


def test_pinned_memory_in_a_forked_child_does_not_unmap_new_memory(runtime: CudaRuntime) -> None:
    memory = allocate_pinned(PAGE, CPU, runtime)
    address = memory.data_ptr()
    if (child := os.fork()) == 0:
        private, anonymous, fixed = mmap.MAP_PRIVATE, mmap.MAP_ANONYMOUS, 0x10
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), 3, private | anonymous | fixed, -1, 0)
        del memory
        gc.collect()
        ctypes.memset(address, 1, PAGE)  # a segmentation fault if the memory was unmapped
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


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
