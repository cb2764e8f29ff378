"""`TorchModes` and `current_streams`: a worker thread applies a caller's modes, and restores its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vitcache.device import thread_modes
from vitcache.device.thread_modes import TorchModes, current_streams


def current_modes() -> tuple[object, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch.is_autocast_cache_enabled(),
    )


def run_in_thread(call: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    return results[0]


@pytest.mark.parametrize(
    "mode",
    [
        contextlib.nullcontext,
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.float16),
        lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
    ],
    ids=["none", "no_grad", "inference", "autocast", "autocast without a cache"],
)
def test_torch_modes_apply_in_another_thread_and_are_restored(
    mode: Callable[[], contextlib.AbstractContextManager[object]],
) -> None:
    with mode():
        captured, expected = TorchModes.capture(), current_modes()

    def apply() -> tuple[object, ...]:
        before = current_modes()
        with captured.apply():
            inside = current_modes()
        assert current_modes() == before
        return inside

    assert run_in_thread(apply) == expected
    with torch.no_grad(), captured.apply():
        assert current_modes() == expected


class FakeCuda:
    """`torch.cuda` with three devices. Records each device and stream that is entered or left."""

    def __init__(self, current: int) -> None:
        self.current = current
        self.calls: list[str] = []
        self.side_handle = 9

    def is_initialized(self) -> bool:
        return True

    def current_device(self) -> int:
        return self.current

    def device_count(self) -> int:
        return 3

    def current_stream(self, device: int) -> SimpleNamespace:
        name = "side" if device == 0 else "default"
        return SimpleNamespace(device=device, name=name, cuda_stream=self.side_handle if device == 0 else 0)

    def default_stream(self, device: int) -> SimpleNamespace:
        return SimpleNamespace(device=device, name="default", cuda_stream=0)

    @contextlib.contextmanager
    def _enter(self, name: str) -> Iterator[None]:
        self.calls.append(f"enter {name}")
        yield
        self.calls.append(f"leave {name}")

    def device(self, index: int) -> contextlib.AbstractContextManager[None]:
        return self._enter(f"device {index}")

    def stream(self, stream: str) -> contextlib.AbstractContextManager[None]:
        return self._enter(stream)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    cuda = FakeCuda(current=1)
    monkeypatch.setattr(thread_modes.torch, "cuda", cuda)
    return cuda


def test_torch_modes_apply_enters_the_device_first_and_leaves_it_last(cuda: FakeCuda) -> None:
    captured = TorchModes.capture()
    with captured.apply(["one", "two"]):  # type: ignore[list-item]
        assert cuda.calls == ["enter device 1", "enter one", "enter two"]
    assert cuda.calls[3:] == ["leave two", "leave one", "leave device 1"]


def test_current_streams_are_side_streams_then_that_of_the_current_device(cuda: FakeCuda) -> None:
    assert [(stream.device, stream.name) for stream in current_streams()] == [(0, "side"), (1, "default")]


@pytest.mark.parametrize("current", [0, 1])  # the side stream is the current device's, or another's
def test_current_streams_refuse_the_per_thread_stream(cuda: FakeCuda, current: int) -> None:
    cuda.current, cuda.side_handle = current, 2
    with pytest.raises(RuntimeError, match="the current stream of 0 is cudaStreamPerThread"):
        current_streams()


def test_current_streams_without_cuda_are_empty_and_do_not_initialize_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", None)  # a call would initialize CUDA
    monkeypatch.setattr(torch.cuda, "device_count", None)
    assert current_streams() == []
    with TorchModes.capture().apply():
        pass
