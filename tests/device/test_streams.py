"""Timelines and events of a device."""

from __future__ import annotations

import pytest
import torch

from vitcache.device import streams
from vitcache.device.streams import CpuTimeline, Event, make_timeline


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

    def is_done(self, event: int) -> bool:
        self.calls.append(("is_done", event))
        return True

    def synchronize(self, *event: int) -> None:
        self.calls.append(("synchronize", *event))


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
