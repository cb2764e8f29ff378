"""The capture mode of a thread, through the stand-in for the CUDA runtime."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from vitcache._native import CudaRuntime
from vitcache.device import capture, stand_in
from vitcache.device.capture import relaxed_capture_mode
from vitcache.testing import stand_in as controls

GLOBAL_MODE, RELAXED_MODE = 0, 2


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaRuntime]:
    """The stand-in, in the place of the runtime that the machine has."""
    controls.reset()
    runtime = stand_in.open_runtime()
    monkeypatch.setattr(capture, "open_cuda_runtime", lambda: runtime)
    yield runtime
    controls.reset()


def mode_of_thread(runtime: CudaRuntime) -> int:
    mode = runtime.exchange_capture_mode(GLOBAL_MODE)
    runtime.exchange_capture_mode(mode)
    return mode


def test_relaxed_capture_mode_is_set_for_this_thread_and_restored(runtime: CudaRuntime) -> None:
    modes: list[int] = []
    with relaxed_capture_mode():
        assert mode_of_thread(runtime) == RELAXED_MODE
        thread = threading.Thread(target=lambda: modes.append(mode_of_thread(runtime)))
        thread.start()
        thread.join()
    assert mode_of_thread(runtime) == GLOBAL_MODE
    assert modes == [GLOBAL_MODE]


def test_relaxed_capture_mode_is_restored_after_an_exception(runtime: CudaRuntime) -> None:
    with pytest.raises(ValueError, match="inside"), relaxed_capture_mode(), relaxed_capture_mode():
        raise ValueError("inside")
    assert mode_of_thread(runtime) == GLOBAL_MODE


@pytest.mark.parametrize("relaxed", [False, True])
def test_relaxed_capture_mode_keeps_the_capture_of_another_thread_valid(
    runtime: CudaRuntime, relaxed: bool
) -> None:
    library = ctypes.CDLL(stand_in.path())
    captured = runtime.create_stream(0)
    assert controls.begin_capture(captured.handle) == 0
    errors: list[int] = []

    def allocate() -> None:
        """As torch does for pinned memory, without a mode of its own."""
        memory = ctypes.c_void_p()
        with relaxed_capture_mode() if relaxed else nullcontext():
            errors.append(library.cudaHostAlloc(ctypes.byref(memory), ctypes.c_size_t(64), 0))
            errors.append(library.cudaFreeHost(memory) if memory else 0)

    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()
    assert (errors, controls.end_capture(captured.handle)) == (
        ([0, 0], (0, 0)) if relaxed else ([900, 0], (901, 0))
    )


def test_relaxed_capture_mode_without_a_runtime_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITCACHE_NO_CUDA", "1")
    with relaxed_capture_mode():
        pass
