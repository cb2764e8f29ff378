"""The controls of the stand-in for the CUDA runtime, seen through its entry points."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from vitcache import CudaError
from vitcache.device.stand_in import open_runtime, path
from vitcache.testing import stand_in


@pytest.fixture(autouse=True)
def reset_stand_in() -> Iterator[None]:
    stand_in.reset()
    yield
    stand_in.reset()


@pytest.fixture
def runtime() -> ctypes.CDLL:
    return ctypes.CDLL(path())


def test_stand_in_controls_act_on_the_library_that_open_runtime_opens() -> None:
    assert stand_in.has_controls()
    before = stand_in.count().streams
    open_runtime().create_stream(0)
    assert stand_in.count().streams == before + 1


def test_fail_makes_the_nth_call_fail_once(runtime: ctypes.CDLL) -> None:
    stand_in.fail("cudaGetDevice", 2, 77)
    device = ctypes.c_int()
    assert [runtime.cudaGetDevice(ctypes.byref(device)) for _ in range(3)] == [0, 77, 0]


def test_reset_ends_a_failure_that_did_not_occur() -> None:
    stand_in.fail("cudaGetDeviceCount")
    with pytest.raises(CudaError, match="999"):
        open_runtime().devices()
    stand_in.fail("cudaGetDeviceCount")
    stand_in.reset()
    assert len(open_runtime().devices()) == 1


def copy(runtime: ctypes.CDLL) -> tuple[ctypes.Array[ctypes.c_char], bytes]:
    source, target = ctypes.create_string_buffer(b"rows", 4), ctypes.create_string_buffer(4)
    assert runtime.cudaMemcpyAsync(target, source, ctypes.c_size_t(4), 4, None) == 0
    runtime.cudaStreamSynchronize(None)
    return target, source.raw


def test_count_includes_copies_and_synchronizing_calls(runtime: ctypes.CDLL) -> None:
    target, rows = copy(runtime)
    assert target.raw == rows
    counts = stand_in.count()
    assert (counts.copies, counts.copied_bytes) == (1, 4)
    assert counts.synchronizing_calls == 2  # the copy of pageable memory, and cudaStreamSynchronize


def test_fail_copy_loses_the_device_until_reset(runtime: ctypes.CDLL) -> None:
    stand_in.fail_copy(2)
    assert copy(runtime)[0].raw == b"rows"
    assert copy(runtime)[0].raw == bytes(4)
    assert runtime.cudaStreamSynchronize(None) == 700
    stand_in.reset()
    assert copy(runtime)[0].raw == b"rows"


def test_paused_streams_run_no_copy_until_they_resume(runtime: ctypes.CDLL) -> None:
    source, target = ctypes.create_string_buffer(b"rows", 4), ctypes.create_string_buffer(4)
    with stand_in.paused():
        assert runtime.cudaMemcpyAsync(target, source, ctypes.c_size_t(4), 4, None) == 0
        assert not any(stand_in.count().copies for _ in range(20_000))  # a running stream would copy sooner
        assert target.raw == bytes(4)
    runtime.cudaStreamSynchronize(None)
    assert target.raw == b"rows"


def test_limit_locked_bytes_refuses_the_next_byte(runtime: ctypes.CDLL) -> None:
    stand_in.limit_locked_bytes(stand_in.count().locked_bytes + 4096)
    memory, more = ctypes.c_void_p(), ctypes.c_void_p()
    assert runtime.cudaHostAlloc(ctypes.byref(memory), ctypes.c_size_t(4096), 0) == 0
    assert runtime.cudaHostAlloc(ctypes.byref(more), ctypes.c_size_t(1), 0) == 2
    assert runtime.cudaFreeHost(memory) == 0
