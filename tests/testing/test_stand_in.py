"""The controls of the stand-in for the CUDA runtime, seen through its entry points."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from vitcache import CudaError
from vitcache._native import copy_batch
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


def test_recorded_calls_number_streams_and_events_by_their_first_call(runtime: ctypes.CDLL) -> None:
    native = open_runtime()
    first, second = (native.create_stream(0) for _ in range(2))
    event = ctypes.c_void_p()
    assert runtime.cudaEventCreateWithFlags(ctypes.byref(event), 2) == 0
    source, target = ctypes.create_string_buffer(b"rows", 4), ctypes.create_string_buffer(4)
    ends = [ctypes.addressof(buffer) for buffer in (target, source)]
    with stand_in.recorded_calls() as calls:
        copy_batch(native, [(*ends, 3), (ends[0] + 3, ends[1] + 3, 1)], second)
        assert runtime.cudaEventRecord(event, ctypes.c_void_p(second.handle)) == 0
        assert runtime.cudaStreamWaitEvent(ctypes.c_void_p(first.handle), event, 0) == 0
        assert runtime.cudaStreamWaitEvent(None, event, 4) == 0
        assert runtime.cudaEventRecord(event, ctypes.c_void_p(1 << 40)) == 400  # not recorded: it fails
        assert runtime.cudaEventSynchronize(event) == 0
        assert not calls
    assert runtime.cudaStreamSynchronize(None) == 0  # after the end of the record
    assert calls == [
        stand_in.Call("cudaMemcpyBatchAsync", stream=0, bytes=4, copies=2),
        stand_in.Call("cudaEventRecord", stream=0, event=0),
        stand_in.Call("cudaStreamWaitEvent", stream=1, event=0),
        stand_in.Call("cudaStreamWaitEvent", stream=2, event=0),
        stand_in.Call("cudaEventSynchronize", event=0),
    ]
    assert [call.handle for call in calls] == [second.handle, second.handle, first.handle, 0, 0]
    assert target.raw == b"rows"


def test_recorded_calls_include_pinned_bytes_and_exclude_calls_before_the_context(
    runtime: ctypes.CDLL,
) -> None:
    memory = ctypes.c_void_p()
    copy(runtime)
    with stand_in.recorded_calls() as calls:
        assert runtime.cudaHostAlloc(ctypes.byref(memory), ctypes.c_size_t(64), 0) == 0
        assert runtime.cudaFreeHost(memory) == 0
    assert calls == [stand_in.Call("cudaHostAlloc", bytes=64), stand_in.Call("cudaFreeHost")]


def test_recorded_calls_of_a_context_that_raised_are_kept(runtime: ctypes.CDLL) -> None:
    calls: list[stand_in.Call] = []

    def fail_while_recording() -> None:
        nonlocal calls
        with stand_in.recorded_calls() as calls:
            copy(runtime)
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail_while_recording()
    assert [call.entry for call in calls] == ["cudaMemcpyAsync", "cudaStreamSynchronize"]


def test_capture_counts_the_calls_of_a_stream_and_ends_once(runtime: ctypes.CDLL) -> None:
    stream = open_runtime().create_stream(0).handle
    assert stand_in.begin_capture(stream, mode=1) == 0
    source, target = ctypes.create_string_buffer(b"rows", 4), ctypes.create_string_buffer(4)
    assert runtime.cudaMemcpyAsync(target, source, ctypes.c_size_t(4), 4, ctypes.c_void_p(stream)) == 0
    assert stand_in.end_capture(stream) == (0, 1)
    assert stand_in.end_capture(stream) == (401, 0)
    assert target.raw == bytes(4)


def test_reset_ends_all_captures(runtime: ctypes.CDLL) -> None:
    assert stand_in.begin_capture(open_runtime().create_stream(0).handle) == 0
    stand_in.reset()
    assert runtime.cudaStreamSynchronize(None) == 0


def test_limit_locked_bytes_refuses_the_next_byte(runtime: ctypes.CDLL) -> None:
    stand_in.limit_locked_bytes(stand_in.count().locked_bytes + 4096)
    memory, more = ctypes.c_void_p(), ctypes.c_void_p()
    assert runtime.cudaHostAlloc(ctypes.byref(memory), ctypes.c_size_t(4096), 0) == 0
    assert runtime.cudaHostAlloc(ctypes.byref(more), ctypes.c_size_t(1), 0) == 2
    assert runtime.cudaFreeHost(memory) == 0
