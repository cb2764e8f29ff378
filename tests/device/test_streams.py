"""Timelines and events of a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from vitcache import _native
from vitcache.device import stand_in, streams
from vitcache.device.streams import CpuTimeline, Event, check_current_stream, is_capturing, make_timeline


def test_cpu_timeline_has_one_stream_and_complete_fences() -> None:
    timeline = make_timeline(torch.device("cpu"))
    assert isinstance(timeline, CpuTimeline)
    fence = timeline.record(timeline.current())
    assert fence == (timeline.current(), None)
    timeline.wait(fence)
    timeline.wait_on_host(fence)
    timeline.synchronize()


class FakeEventAndRuntime:
    """Stands for a `torch.cuda.Event` and for a native runtime. Records the calls of both."""

    def __init__(self, available: bool, handle: int) -> None:
        self.available, self.cuda_event = available, handle
        self.calls: list[tuple[object, ...]] = []

    def query(self) -> bool:
        self.calls.append(("query",))
        return True

    def is_done(self, event: _native.Event) -> bool:
        self.calls.append(("is_done", event.handle))
        return True

    def synchronize(self, *event: _native.Event) -> None:
        self.calls.append(("synchronize", *(argument.handle for argument in event)))


@pytest.mark.parametrize(("available", "handle"), [(True, 7), (True, 0), (False, 7)])
def test_event_with_a_handle_is_queried_through_the_native_runtime(
    available: bool, handle: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeEventAndRuntime(available, handle)
    monkeypatch.setattr(torch.cuda, "Event", lambda **options: fake)
    monkeypatch.setattr(streams, "_runtime", lambda: fake)
    event = Event(blocking=True)
    assert event.query()
    event.synchronize()
    if available and handle:  # an event has no handle before its first record
        assert fake.calls == [("is_done", 7), ("synchronize", 7)]
    else:
        assert fake.calls == [("query",), ("synchronize",)]


class FakeStream:
    """A CUDA stream that records the work that is queued on it."""

    def __init__(self, name: str, handle: int) -> None:
        self.name, self.cuda_stream, self.device = name, handle, DEVICE
        self.work: list[tuple[str, object]] = []


class FakeEvent:
    """A `torch.cuda.Event` that appends itself to the work of a `FakeStream`."""

    def __init__(self, **options: object) -> None:
        self.options = options
        self.cuda_event = 0

    def record(self, stream: FakeStream) -> None:
        stream.work.append(("record", self))

    def wait(self, stream: FakeStream) -> None:
        stream.work.append(("wait", self))


DEVICE = torch.device("cuda", 1)


class FakeDevices:
    """Two devices. Device `current` is current; a graph is captured on the stream of device `captured`."""

    def __init__(self, captured: int, current: int) -> None:
        self.captured, self.current = captured, current

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device.index
        yield
        self.current = before

    def is_current_stream_capturing(self) -> bool:
        return self.current == self.captured


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> list[FakeStream]:
    """Streams of a CUDA device: the first is the copy stream, the last is the current stream."""
    streams_of_device = [FakeStream("copies", 7), FakeStream("default", 0), FakeStream("side", 9)]
    fake = SimpleNamespace(
        Stream=lambda device, priority: streams_of_device[0],
        Event=FakeEvent,
        current_stream=lambda device: streams_of_device[-1],
        stream=lambda stream: f"{stream.name} is current",
        synchronize=lambda device: streams_of_device[0].work.append(("synchronize", device)),
    )
    monkeypatch.setattr(streams.torch, "cuda", fake)
    return streams_of_device


def test_timeline_records_on_the_given_stream_and_waits_on_the_current_one(
    cuda: list[FakeStream],
) -> None:
    timeline = make_timeline(DEVICE)
    side = timeline.current()
    cuda.append(cuda[1])
    assert (side, timeline.current()) == (9, 0)
    fence = timeline.record(side)
    timeline.wait(fence)
    copy_stream, default_stream, side_stream = cuda[:3]
    assert fence.stream == side
    assert side_stream.work == [("record", fence.event._event)]
    assert default_stream.work == [("wait", fence.event._event)]
    assert copy_stream.work == []
    # A waiting thread sleeps.
    assert fence.event._event.options == {"enable_timing": False, "blocking": True, "external": False}


def test_timeline_refuses_the_per_thread_stream_and_accepts_the_next_stream(
    cuda: list[FakeStream],
) -> None:
    timeline = make_timeline(DEVICE)
    side = cuda[-1]
    cuda.append(FakeStream("per thread", 2))
    with pytest.raises(
        RuntimeError, match=r"the current stream of cuda:1 is cudaStreamPerThread \(handle 2\)"
    ):
        timeline.current()
    cuda.append(side)
    assert timeline.current() == side.cuda_stream


def test_check_current_stream_refuses_the_per_thread_stream_of_a_cuda_device(
    cuda: list[FakeStream],
) -> None:
    check_current_stream(DEVICE)
    cuda.append(FakeStream("per thread", 2))
    check_current_stream(torch.device("cpu"))
    with pytest.raises(RuntimeError, match=r"cuda:1 is cudaStreamPerThread \(handle 2\)"):
        check_current_stream(DEVICE)


def test_timeline_records_on_the_copy_stream_before_it_was_ever_current(cuda: list[FakeStream]) -> None:
    timeline = make_timeline(DEVICE)
    assert timeline.copy_stream == 7
    assert timeline.on_copy_stream() == "copies is current"
    fence = timeline.record(timeline.copy_stream)
    assert cuda[0].work == [("record", fence.event._event)]


def test_timeline_synchronize_waits_for_the_device(cuda: list[FakeStream]) -> None:
    make_timeline(DEVICE).synchronize()
    assert cuda[0].work == [("synchronize", DEVICE)]


@pytest.mark.parametrize("captured", [0, 1])
@pytest.mark.parametrize("current", [0, 1])
def test_is_capturing_asks_the_device_and_restores_the_current_device(
    captured: int, current: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = FakeDevices(captured, current)
    fake = SimpleNamespace(
        device=devices.device,
        current_device=lambda: devices.current,
        is_current_stream_capturing=devices.is_current_stream_capturing,
    )
    monkeypatch.setattr(streams.torch, "cuda", fake)
    assert is_capturing(DEVICE) == (captured == 1)
    assert devices.current == current


def test_is_capturing_on_the_cpu_is_false() -> None:
    assert not is_capturing(torch.device("cpu"))


@pytest.mark.parametrize("call", ["is_done", "synchronize"])
def test_runtime_given_a_stream_or_an_int_for_an_event_is_a_type_error(call: str) -> None:
    function = getattr(stand_in.open_runtime(), call)
    for argument in (_native.Stream(0, 0), 0):
        with pytest.raises(TypeError, match="incompatible function arguments"):
            function(argument)
