"""Timelines and events of a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from vitcache import _native
from vitcache.device import stand_in, streams
from vitcache.device.streams import CpuTimeline, Event, is_capturing, make_timeline


def test_the_cpu_has_one_stream_that_is_always_done() -> None:
    timeline = make_timeline(torch.device("cpu"))
    assert isinstance(timeline, CpuTimeline)
    fence = timeline.record(timeline.current())
    assert fence.stream == timeline.current()
    timeline.wait(fence)
    timeline.synchronize()


class Recorded:
    """A `torch.cuda.Event`, and the runtime that is asked for it: both note what they are asked."""

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
        self.calls.append(("synchronize", *(each.handle for each in event)))


@pytest.mark.parametrize(("available", "handle"), [(True, 7), (True, 0), (False, 7)])
def test_events_are_asked_through_the_runtime_that_leaves_captures_alone(
    available: bool, handle: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recorded(available, handle)
    monkeypatch.setattr(torch.cuda, "Event", lambda **options: recorded)
    monkeypatch.setattr(streams, "_runtime", lambda: recorded)
    event = Event(blocking=True)
    assert event.query()
    event.synchronize()
    if available and handle:  # torch makes an event when it is first recorded
        assert recorded.calls == [("is_done", 7), ("synchronize", 7)]
    else:
        assert recorded.calls == [("query",), ("synchronize",)]


class Stream:
    """A stream of CUDA that notes what it is given."""

    def __init__(self, name: str, handle: int) -> None:
        self.name, self.cuda_stream = name, handle
        self.given: list[tuple[str, object]] = []


class CudaEvent:
    """A `torch.cuda.Event` in the streams' own notes."""

    def __init__(self, **options: object) -> None:
        self.options = options
        self.cuda_event = 0

    def record(self, stream: Stream) -> None:
        stream.given.append(("record", self))

    def wait(self, stream: Stream) -> None:
        stream.given.append(("wait", self))


DEVICE = torch.device("cuda", 1)


class Capturing:
    """Two devices of which `current` is; a graph is captured on the current stream of device `captured`."""

    def __init__(self, captured: int, current: int) -> None:
        self.captured, self.current = captured, current

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device.index
        yield
        self.current = before

    def is_current_stream_capturing(self) -> bool:
        return self.current == self.captured


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> list[Stream]:
    """Streams of a CUDA device: the copy stream comes first, the last one is current."""
    made = [Stream("copies", 7), Stream("default", 0), Stream("side", 9)]
    fake = SimpleNamespace(
        Stream=lambda device, priority: made[0],
        Event=CudaEvent,
        current_stream=lambda device: made[-1],
        stream=lambda stream: f"{stream.name} is current",
        synchronize=lambda device: made[0].given.append(("synchronize", device)),
    )
    monkeypatch.setattr(streams.torch, "cuda", fake)
    return made


def test_a_fence_is_recorded_on_the_stream_that_was_asked_for_and_waited_for_on_the_current_one(
    cuda: list[Stream],
) -> None:
    timeline = make_timeline(DEVICE)
    side = timeline.current()
    cuda.append(cuda[1])
    assert (side, timeline.current()) == (9, 0)
    fence = timeline.record(side)
    timeline.wait(fence)
    copies, default, other = cuda[:3]
    assert fence.stream == side
    assert other.given == [("record", fence.event._event)]
    assert default.given == [("wait", fence.event._event)]
    assert copies.given == []
    assert fence.event._event.options == {"blocking": True, "external": False}  # who waits for it sleeps


def test_the_copy_stream_is_known_before_it_was_current(cuda: list[Stream]) -> None:
    timeline = make_timeline(DEVICE)
    assert timeline.copy_stream == 7
    assert timeline.on_copy_stream() == "copies is current"
    fence = timeline.record(timeline.copy_stream)
    assert cuda[0].given == [("record", fence.event._event)]


def test_the_whole_device_is_waited_for(cuda: list[Stream]) -> None:
    make_timeline(DEVICE).synchronize()
    assert cuda[0].given == [("synchronize", DEVICE)]


@pytest.mark.parametrize("captured", [0, 1])
@pytest.mark.parametrize("current", [0, 1])
def test_the_current_stream_of_the_device_is_asked_whether_it_captures(
    captured: int, current: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    capturing = Capturing(captured, current)
    fake = SimpleNamespace(
        device=capturing.on,
        current_device=lambda: capturing.current,
        is_current_stream_capturing=capturing.is_current_stream_capturing,
    )
    monkeypatch.setattr(streams.torch, "cuda", fake)
    assert is_capturing(DEVICE) == (captured == 1)
    assert capturing.current == current


def test_only_a_cuda_device_can_be_capturing() -> None:
    assert not is_capturing(torch.device("cpu"))


@pytest.mark.parametrize("call", ["is_done", "synchronize"])
def test_a_stream_or_a_number_in_the_place_of_an_event_is_a_type_error(call: str) -> None:
    ask = getattr(stand_in.open_runtime(), call)
    for other in (_native.Stream(0, 0), 0):
        with pytest.raises(TypeError, match="incompatible function arguments"):
            ask(other)
