"""A thread that works for another has its modes, and gives its own ones back."""

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


def modes_here() -> tuple[object, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch.is_autocast_cache_enabled(),
    )


def in_a_thread(call: Callable[[], Any]) -> Any:
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
def test_the_modes_are_those_of_the_thread_that_captured_them(
    mode: Callable[[], contextlib.AbstractContextManager[object]],
) -> None:
    with mode():
        captured, expected = TorchModes.capture(), modes_here()

    def apply() -> tuple[object, ...]:
        before = modes_here()
        with captured.apply():
            inside = modes_here()
        assert modes_here() == before
        return inside

    assert in_a_thread(apply) == expected
    with torch.no_grad(), captured.apply():
        assert modes_here() == expected


class Cuda:
    """`torch.cuda` of three devices; notes which devices and streams are made current, in what order."""

    def __init__(self, current: int) -> None:
        self.current, self.entered = current, []

    def is_initialized(self) -> bool:
        return True

    def current_device(self) -> int:
        return self.current

    def device_count(self) -> int:
        return 3

    def current_stream(self, device: int) -> SimpleNamespace:
        return SimpleNamespace(device=device, name="side" if device == 0 else "default")

    def default_stream(self, device: int) -> SimpleNamespace:
        return SimpleNamespace(device=device, name="default")

    @contextlib.contextmanager
    def _enter(self, what: object) -> Iterator[None]:
        self.entered.append(what)
        yield
        self.entered.append("left")

    def device(self, index: int) -> contextlib.AbstractContextManager[None]:
        return self._enter(f"device {index}")

    def stream(self, stream: str) -> contextlib.AbstractContextManager[None]:
        return self._enter(stream)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    cuda = Cuda(current=1)
    monkeypatch.setattr(thread_modes.torch, "cuda", cuda)
    return cuda


def test_the_device_is_entered_first_and_left_last(cuda: Cuda) -> None:
    captured = TorchModes.capture()
    with captured.apply(["one", "two"]):  # type: ignore[list-item]
        assert cuda.entered == ["device 1", "one", "two"]
    assert cuda.entered[3:] == ["left"] * 3


def test_streams_are_those_off_the_default_and_last_that_of_the_current_device(cuda: Cuda) -> None:
    assert [(stream.device, stream.name) for stream in current_streams()] == [(0, "side"), (1, "default")]


def test_a_process_without_cuda_has_no_streams_and_stays_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", None)  # to call it would initialise CUDA
    monkeypatch.setattr(torch.cuda, "device_count", None)
    assert current_streams() == []
    with TorchModes.capture().apply():
        pass
